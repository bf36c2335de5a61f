/* Linear layers in bfloat16: rows are rounded to it, as the weights are, and inputs are multiplied in pairs.
 *
 * AVX512_BF16 adds the two products of a pair to a float32 in one instruction. It gives the bits of two fused
 * multiply-adds, the odd input's first, but flushes subnormal numbers to zero. Here numbers below 2^-56 count as 0. All
 * others are multiples of 2^-63, so that their products and all sums of products are multiples of 2^-126, the smallest
 * normal number: no sum is subnormal, and instruction sets with and without pairs return the same bits.
 *
 * Rows are rounded piece by piece into a buffer that stays in the cache: as pairs, or on instruction sets without pairs
 * as float32, the odd input of each pair first. A piece of 128 rows is multiplied with some panels; few rows (decode)
 * are multiplied with a few panels from the first input to the last. */

MULTIPLY(multiply_pairs, BF16_PAIRS)

enum { WORDS = 128, DOT_ROWS = 128 }; /* words of a row in a piece, and rows */

#if PAIR_STEP == 1
ALWAYS_INLINE v16 round_to_bfloats(v16 x) {
    uint32_t words[LANES];
    memcpy(words, &x, sizeof words);
    /* 0x23800000 is 2^-56. */
    for (int l = 0; l < LANES; l++) words[l] = (words[l] & 0x7fffffff) < 0x23800000 ? 0 : nearest_bfloat(words[l]);
    memcpy(&x, words, sizeof words);
    return x;
}

/* Two inputs of 16 rows, and 32 of one row. */
ALWAYS_INLINE void put_rows(float *to, v16 even, v16 odd) {
    v16_store(to, round_to_bfloats(odd));
    v16_store(to + LANES, round_to_bfloats(even));
}
ALWAYS_INLINE void put_row(float *to, v16 first, v16 second) {
    v16_store(to, v16_swap_pairs(round_to_bfloats(first)));
    v16_store(to + LANES, v16_swap_pairs(round_to_bfloats(second)));
}
#else
ALWAYS_INLINE void put_rows(float *to, v16 even, v16 odd) { v16_store(to, v16_pair_lanes(even, odd)); }
ALWAYS_INLINE void put_row(float *to, v16 first, v16 second) { v16_store(to, v16_pair_neighbours(first, second)); }
#endif

/* The number of words of a row at this depth. The last pair may lack the odd input, which is then 0. */
ALWAYS_INLINE int64_t words_of(int64_t depth) { return (depth + 1) / 2 * 2 / PAIR_STEP; }

/* 16 rows that lie side by side: [depth][16]. */
static void round_rows_beside(const float *x, int64_t depth, float *to) {
    for (int64_t i = 0; i < depth / 2; i++, x += 2 * LANES, to += words_of(2) * LANES)
        put_rows(to, v16_load(x), v16_load(x + LANES));
    if (depth % 2) put_rows(to, v16_load(x), v16_set1(0.0f));
}

/* One row, a chunk at a time. */
static void round_row(const float *x, int64_t depth, float *to) {
    for (int64_t i = 0; i < depth; i += CHUNK, to += words_of(CHUNK)) {
        float rest[CHUNK] = {0};
        const float *inputs = depth - i >= CHUNK ? x + i : memcpy(rest, x + i, (size_t)(depth - i) * sizeof *x);
        put_row(to, v16_load(inputs), v16_load(inputs + LANES));
    }
}

/* The rows [first_row, first_row + n_rows) at a depth. */
ALWAYS_INLINE void round_piece(const refgpt_linear_args *a, int64_t first_row, int64_t n_rows, int64_t i, int64_t depth,
                               float *x) {
    const int64_t n_words = words_of(depth);
    if (a->x_panels)
        for (int64_t r = 0; r < n_rows; r += LANES, x += n_words * LANES)
            round_rows_beside(a->x_panels + (first_row + r) * a->n_in + i * LANES, depth, x);
    else
        for (int64_t r = 0; r < n_rows; r++, x += n_words) round_row(a->x + r * a->n_in + i, depth, x);
}

/* Words of some panels, without numbers that count as 0. */
static void pair_weights(panels w, int64_t n_panels, int64_t n_words, float *to) {
    for (int64_t p = 0; p < n_panels; p++)
        for (int64_t i = 0; i < n_words; i++, to += LANES)
            v16_store(to, load_stored(w.at, p * w.panel + place_of_step(i, BF16_PAIRS) * LANES, BF16_PAIRS));
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
        pair_weights(panels_from(w, p * w.panel), n, n_words, words);
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
    const int64_t n_panels = (n_outputs + LANES - 1) / LANES,
                  deepest = WORDS * PAIR_STEP * (few ? ROW_BLOCK / FEW_ROWS : 1);
    const int64_t n_last = a->n_in % 2 ? a->n_in % CHUNK : 0; /* inputs of a chunk whose last pair lacks the odd one */
    const panels w = panels_from(stream_of(a->w, a->n_in * LANES, BF16_PAIRS), first * a->n_in);
    start_panels(totals, WIDTH, n_rows, n_outputs, a->bias ? a->bias + first : NULL);
    for (int64_t i = 0; i < a->n_in - n_last; i += deepest) {
        const int64_t depth = smaller(deepest, a->n_in - n_last - i);
        round_piece(a, first_row, n_rows, i, depth, x);
        multiply_piece(x, n_rows, panels_from(w, i * LANES), n_panels, totals, WIDTH, depth, few);
    }
    if (n_last) {
        uint16_t last[PANEL_BLOCK * CHUNK * LANES] = {0};
        for (int64_t p = 0; p < n_panels; p++)
            memcpy(last + p * CHUNK * LANES, panels_from(w, p * w.panel + (a->n_in - n_last) * LANES).at,
                   (size_t)(n_last * LANES) * sizeof *last);
        round_piece(a, first_row, n_rows, a->n_in - n_last, n_last, x);
        multiply_piece(x, n_rows, stream_of(last, CHUNK * LANES, BF16_PAIRS), n_panels, totals, WIDTH, n_last + 1, few);
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
