/* Linear layers in bfloat16: rows are rounded to it, as the weights are, and inputs are multiplied in pairs.
 *
 * AVX512_BF16 adds the two products of a pair to a float32 in one instruction. It gives the bits of two fused
 * multiply-adds, the odd input's first, but flushes subnormal numbers to zero. Here numbers below 2^-56, after they are
 * rounded, count as 0. All others are multiples of 2^-63, so that their products and all sums of products are multiples
 * of 2^-126, the smallest normal number: no sum is subnormal, and instruction sets with and without pairs return the
 * same bits.
 *
 * A word is a pair, or on instruction sets without pairs one float32, the odd input of each pair first. More than 8
 * rows come as pairs, from the kernel round_rows. A piece of rows is multiplied with a few panels of weights at a time,
 * whose words are made once for all these rows and stay in the cache; without pairs, so are the words of the rows. Few
 * rows (decode) are rounded here, and multiplied with a few panels of weights from the first input to the last. */

MULTIPLY(multiply_pairs, BF16_PAIRS)

enum { DOT_ROWS = 128 * PAIR_STEP, WORDS = 128 };                         /* rows of a piece, and words of each */
enum { FEW_WORDS = 1024 };                                                /* words of each, if rows are few */
enum { ROOM = PAIR_STEP == 1 ? DOT_ROWS * WORDS : FEW_ROWS * FEW_WORDS }; /* words of rows; pairs of many need none */
enum { SMALLEST_INPUT = 0x2380 };                                         /* 2^-56 in bfloat16 */

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

/* Rounds inputs [start, start + depth) of few rows and stores their words, a chunk at a time. */
static void round_few_rows(const refgpt_linear_args *a, int64_t n_rows, int64_t start, int64_t depth, float *to) {
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

/* The words of some panels of rows, which the kernel round_rows wrote as pairs, `panel` pairs from one another. Pairs
 * are words already; without pairs, each becomes two words in `room`. */
static panels words_of_rows(const uint32_t *pairs, int64_t panel, int64_t n_panels, int64_t n_pairs, float *room) {
    if (PAIR_STEP == 2) return (panels){pairs, panel, 0, READY_PAIRS};
    for (int64_t p = 0; p < n_panels; p++)
        for (int64_t i = 0; i < n_pairs; i++) {
            const uint32_t *pair = pairs + p * panel + i * LANES;
            float *to = room + (p * n_pairs + i) * 2 * LANES;
            uint32_t odd[LANES], even[LANES];
            for (int l = 0; l < LANES; l++) odd[l] = pair[l] & 0xffff0000, even[l] = pair[l] << 16;
            memcpy(to, odd, sizeof odd), memcpy(to + LANES, even, sizeof even);
        }
    return (panels){room, n_pairs * 2 * LANES, 0, READY_PAIRS};
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

/* Adds the products of a piece of more than 8 rows with some panels at a time, whose words are made once for all rows
 * and stay in a cache. Meanwhile the next panels are prefetched, a part before each tile of rows: processors wait when
 * many prefetches follow one another. */
static void multiply_piece(panels x, int64_t n_rows, panels w, int64_t n_panels, float *totals, int64_t stride,
                           int64_t depth) {
    const int64_t n_words = words_of(depth), n_parts = (n_rows + WORD_ROWS - 1) / WORD_ROWS;
    __attribute__((aligned(64))) float words[TILE_PANELS * WORDS * LANES];
    for (int64_t p = 0; p < n_panels; p += TILE_PANELS) {
        const int64_t n = smaller(TILE_PANELS, n_panels - p),
                      ahead = p + n < n_panels ? n * w.panel : depth * LANES - p * w.panel;
        pair_panels(panels_from(w, p * w.panel), n, n_words, words);
        for (int64_t r = 0; r < n_rows; r += WORD_ROWS) {
            prefetch_part(panels_from(w, p * w.panel + ahead), n, depth, r / WORD_ROWS, n_parts);
            multiply_words(smaller(WORD_ROWS, n_rows - r), (const float *)x.at + r / LANES * x.panel + r % LANES, n,
                           words, n_words * LANES, totals + r * stride + p * LANES, stride, n_words, 0);
        }
    }
}

/* y for up to DOT_ROWS rows and PANEL_BLOCK panels. */
ALWAYS_INLINE void dots_block(const refgpt_linear_args *a, int64_t first_row, int64_t n_rows, int64_t first,
                              int64_t n_outputs, const int few) {
    enum { WIDTH = PANEL_BLOCK * LANES };
    __attribute__((aligned(64))) float totals[DOT_ROWS * WIDTH], room[ROOM];
    const int64_t n_panels = (n_outputs + LANES - 1) / LANES, n_row_panels = (n_rows + LANES - 1) / LANES,
                  row_panel = (a->n_in + 1) / 2 * LANES, deepest = PAIR_STEP * (few ? FEW_WORDS : WORDS);
    const int64_t n_last = a->n_in % 2 ? a->n_in % CHUNK : 0; /* inputs of a chunk whose last pair lacks the odd one */
    const uint32_t *pairs = few ? NULL : (const uint32_t *)a->x_panels + first_row / LANES * row_panel;
    const panels w = panels_from(stream_of(a->w, a->n_in * LANES, BF16_PAIRS), first * a->n_in);
    start_panels(totals, WIDTH, n_rows, n_outputs, a->bias ? a->bias + first : NULL);
    for (int64_t i = 0, depth; i < a->n_in; i += depth) {
        depth = i < a->n_in - n_last ? smaller(deepest, a->n_in - n_last - i) : n_last;
        const int64_t n_words = words_of(depth);
        uint16_t last[PANEL_BLOCK * CHUNK * LANES];
        const panels some = depth % 2 ? with_zeros(w, n_panels, i, depth, last) : panels_from(w, i * LANES);
        if (few) {
            round_few_rows(a, n_rows, i, depth, room);
            multiply_pairs(n_rows, (rows){room, n_words, 1, 0, 0}, n_panels, some, totals, WIDTH, n_words);
        } else {
            const panels x = words_of_rows(pairs + i / 2 * LANES, row_panel, n_row_panels, (depth + 1) / 2, room);
            multiply_piece(x, n_rows, some, n_panels, totals, WIDTH, depth + depth % 2);
        }
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
