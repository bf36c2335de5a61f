/* Linear layers in bfloat16: rows are rounded to it, as the weights are, and inputs are multiplied in pairs.
 *
 * AVX512_BF16 adds the two products of a pair to a float32 in one instruction. It gives the bits of two fused
 * multiply-adds, the odd input's first, but flushes subnormal numbers to zero. Here numbers below 2^-56, after they are
 * rounded, count as 0. All others are multiples of 2^-63, so that their products and all sums of products are multiples
 * of 2^-126, the smallest normal number: no sum is subnormal, and instruction sets with and without pairs return the
 * same bits.
 *
 * More than 8 rows come as panels of bfloat16. A piece of 128 rows is multiplied with some panels of weights, and the
 * words of both are kept in buffers that stay in the cache. A word is a pair, or on instruction sets without pairs one
 * float32, the odd input of each pair first. Few rows (decode) are rounded into such a buffer, and multiplied with a
 * few panels of weights from the first input to the last. */

MULTIPLY(multiply_pairs, BF16_PAIRS)

enum { WORDS = 128, DOT_ROWS = 128 }; /* words of a row in a piece, and rows */
enum { SMALLEST_INPUT = 0x2380 };     /* 2^-56 in bfloat16 */

/* Rounds 32 inputs of one row and stores their words. */
#if PAIR_STEP == 1
ALWAYS_INLINE void put_row(float *to, v16 first, v16 second) {
    v16_store(to, v16_swap_pairs(round_above(first, SMALLEST_INPUT)));
    v16_store(to + LANES, v16_swap_pairs(round_above(second, SMALLEST_INPUT)));
}
#else
ALWAYS_INLINE void put_row(float *to, v16 first, v16 second) {
    v16_store(to, v16_round_neighbours(first, second, SMALLEST_INPUT));
}
#endif

/* The number of words of a row at this depth. The last pair may lack the odd input, which is then 0. */
ALWAYS_INLINE int64_t words_of(int64_t depth) { return (depth + 1) / 2 * 2 / PAIR_STEP; }

/* Rounds inputs [start, start + depth) of all rows and stores their words, a chunk at a time. */
static void round_rows(const refgpt_linear_args *a, int64_t n_rows, int64_t start, int64_t depth, float *to) {
    for (int64_t r = 0; r < n_rows; r++) {
        const float *x = a->x + r * a->n_in + start;
        float *words = to + r * words_of(depth);
        for (int64_t i = 0; i < depth; i += CHUNK, words += words_of(CHUNK)) {
            float rest[CHUNK] = {0};
            const float *inputs = depth - i >= CHUNK ? x + i : memcpy(rest, x + i, (size_t)(depth - i) * sizeof *x);
            put_row(words, v16_load(inputs), v16_load(inputs + LANES));
        }
    }
}

/* Words of some panels, without numbers that count as 0. */
static void pair_panels(panels w, int64_t n_panels, int64_t n_words, float *to) {
    for (int64_t p = 0; p < n_panels; p++)
        for (int64_t i = 0; i < n_words; i++, to += LANES)
            v16_store(to, load_stored(w.at, p * w.panel + place_of_step(i, BF16_PAIRS) * LANES, BF16_PAIRS));
}

/* Copies the last n_last inputs of some panels, from input i on, and adds zeros: the last pair lacks its odd input. */
ALWAYS_INLINE panels with_zeros(panels w, int64_t n_panels, int64_t i, int64_t n_last, uint16_t *to) {
    memset(to, 0, (size_t)(n_panels * CHUNK * LANES) * sizeof *to);
    for (int64_t p = 0; p < n_panels; p++)
        memcpy(to + p * CHUNK * LANES, panels_from(w, p * w.panel + i * LANES).at,
               (size_t)(n_last * LANES) * sizeof *to);
    return stream_of(to, CHUNK * LANES, BF16_PAIRS);
}

/* Prefetches a part of n_parts of some panels' numbers into L2. */
static void prefetch_part(panels w, int64_t n_panels, int64_t depth, int64_t part, int64_t n_parts) {
    for (int64_t p = 0; p < n_panels; p++)
        for (int64_t i = depth * part / n_parts / 2 * 2; i < depth * (part + 1) / n_parts; i += 2)
            __builtin_prefetch((const uint16_t *)w.at + p * w.panel + i * LANES, 0, 2);
}

/* Adds the products of a piece: few rows with all panels in turn; more rows with some panels at a time, whose words are
 * made once for all rows and stay in a cache. Meanwhile the next panels are prefetched, a part beside each 16 rows:
 * processors wait when many prefetches follow one another. */
ALWAYS_INLINE void multiply_piece(const float *x, int64_t n_rows, panels w, int64_t n_panels, float *totals,
                                  int64_t stride, int64_t depth, const int few) {
    const int64_t n_words = words_of(depth);
    if (few) {
        multiply_pairs(n_rows, (rows){x, n_words, 1, 0, 0}, n_panels, w, totals, stride, n_words);
        return;
    }
    __attribute__((aligned(64))) float words[TILE_PANELS * WORDS * LANES];
    for (int64_t p = 0; p < n_panels; p += TILE_PANELS) {
        const int64_t n = smaller(TILE_PANELS, n_panels - p),
                      ahead = p + n < n_panels ? n * w.panel : depth * LANES - p * w.panel;
        pair_panels(panels_from(w, p * w.panel), n, n_words, words);
        for (int64_t r = 0; r < n_rows; r += LANES) {
            prefetch_part(panels_from(w, p * w.panel + ahead), n, depth, r / LANES, (n_rows + LANES - 1) / LANES);
            multiply_words(smaller(LANES, n_rows - r), x + r * n_words, n, words, n_words * LANES,
                           totals + r * stride + p * LANES, stride, n_words, 0);
        }
    }
}

/* y for up to DOT_ROWS rows and PANEL_BLOCK panels. */
ALWAYS_INLINE void dots_block(const refgpt_linear_args *a, int64_t first_row, int64_t n_rows, int64_t first,
                              int64_t n_outputs, const int few) {
    enum { WIDTH = PANEL_BLOCK * LANES };
    __attribute__((aligned(64))) float totals[DOT_ROWS * WIDTH], x[DOT_ROWS * WORDS];
    const int64_t n_panels = (n_outputs + LANES - 1) / LANES, n_groups = (n_rows + LANES - 1) / LANES,
                  deepest = WORDS * PAIR_STEP * (few ? ROW_BLOCK / FEW_ROWS : 1);
    const int64_t n_last = a->n_in % 2 ? a->n_in % CHUNK : 0; /* inputs of a chunk whose last pair lacks the odd one */
    const int64_t n_whole = a->n_in - n_last;
    const panels w = panels_from(stream_of(a->w, a->n_in * LANES, BF16_PAIRS), first * a->n_in);
    panels rows_beside = {0};
    if (!few) rows_beside = panels_from(stream_of(a->x_panels, a->n_in * LANES, BF16_PAIRS), first_row * a->n_in);
    start_panels(totals, WIDTH, n_rows, n_outputs, a->bias ? a->bias + first : NULL);
    for (int64_t i = 0; i < n_whole; i += deepest) {
        const int64_t depth = smaller(deepest, n_whole - i);
        if (few) round_rows(a, n_rows, i, depth, x);
        else pair_panels(panels_from(rows_beside, i * LANES), n_groups, words_of(depth), x);
        multiply_piece(x, n_rows, panels_from(w, i * LANES), n_panels, totals, WIDTH, depth, few);
    }
    if (n_last) {
        uint16_t last[PANEL_BLOCK * CHUNK * LANES];
        if (few) round_rows(a, n_rows, n_whole, n_last, x);
        else pair_panels(with_zeros(rows_beside, n_groups, n_whole, n_last, last), n_groups, words_of(n_last), x);
        multiply_piece(x, n_rows, with_zeros(w, n_panels, n_whole, n_last, last), n_panels, totals, WIDTH, n_last + 1,
                       few);
    }
    for (int64_t r = 0; r < n_rows; r++)
        memcpy(a->y + (first_row + r) * a->n_out + first, totals + r * WIDTH, (size_t)n_outputs * sizeof *totals);
}

KERNEL(linear_bf16_dots) {
    const refgpt_linear_args *a = args;
    const int few = !a->x_panels;
    const int64_t most = few ? (a->n_rows == 1 ? GEMV_PANELS : TILE_PANELS) : PANEL_BLOCK;
    for (int64_t p = begin; p < end; p += most) {
        const int64_t first = p * LANES, n_outputs = smaller(smaller(p + most, end) * LANES, a->n_out) - first;
        if (few) dots_block(a, 0, a->n_rows, first, n_outputs, 1);
        for (int64_t r = 0; r < a->n_rows && !few; r += DOT_ROWS)
            dots_block(a, r, smaller(DOT_ROWS, a->n_rows - r), first, n_outputs, 0);
    }
}
