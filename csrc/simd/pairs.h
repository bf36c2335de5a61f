/* Products in bfloat16, and the factors of those of gradients. Both factors are rounded into buffers, as words that a
 * step of a sum takes as they are: a pair of numbers in each lane, or on instruction sets without pairs two words in
 * float32, the odd number's first.
 *
 * As in linear_bf16_dots.h, sums of products must not become subnormal, so that small numbers count as 0. Gradients can
 * be far smaller than weights and activations, so that their limits differ: what is rounded to a smaller number than
 * 2^-80 counts as 0 among the gradients, 2^-32 among the others. All others are multiples of 2^-87 and 2^-39, and
 * products of 2^-126. */

#if PAIR_STEP == 1
MULTIPLY_BESIDE(multiply_ready_beside, READY_PAIRS)

enum { WORD_ROWS = LANES }; /* rows for one call of multiply_words, which divides them into tiles itself */

/* Adds the products of rows that lie side by side, up to 16, with some panels, `panel` numbers from one another, to y.
 * `first`: y is not read, and becomes their products. */
static void multiply_words(int64_t n_rows, const float *x, int64_t n_panels, const float *w, int64_t panel, float *y,
                           int64_t y_stride, int64_t n_words, int first) {
    if (first) start_totals(y, y_stride, n_rows, n_panels * LANES, NULL);
    multiply_ready_beside(n_rows, (rows){x, 1, LANES, 0, 0}, n_panels, (panels){w, panel, 0, READY_PAIRS}, y, y_stride,
                          n_words);
}
#else
enum { WORD_ROWS = 4 }; /* rows of a tile: 12 sums and 12 totals of 32 registers */

/* Chunks are so short in words that loading and storing totals after each would take a tenth of the time: here they
 * stay in registers. R and P are compile-time constants at every call. */
ALWAYS_INLINE void word_tile(const float *x, const float *w, int64_t panel, float *y, int64_t y_stride, int64_t n_words,
                             int first, const int R, const int P) {
    v16 total[WORD_ROWS][TILE_PANELS];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 3
        for (int p = 0; p < P; p++) total[r][p] = first ? v16_set1(0.0f) : v16_load(y + r * y_stride + p * LANES);
    for (int64_t start = 0; start < n_words; start += CHUNK / PAIR_STEP) {
        const int64_t stop = smaller(start + CHUNK / PAIR_STEP, n_words);
        v16 sum[WORD_ROWS][TILE_PANELS];
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 3
            for (int p = 0; p < P; p++) sum[r][p] = v16_set1(0.0f);
        for (int64_t i = start; i < stop; i++) {
            v16 words[TILE_PANELS];
#pragma GCC unroll 3
            for (int p = 0; p < P; p++) words[p] = v16_load(w + p * panel + i * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const v16 xr = v16_set1(x[i * LANES + r]);
#pragma GCC unroll 3
                for (int p = 0; p < P; p++) sum[r][p] = v16_add_pairs(sum[r][p], words[p], xr);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 3
            for (int p = 0; p < P; p++) total[r][p] = v16_add(total[r][p], sum[r][p]);
    }
    /* Hides from GCC that y was read above: otherwise it keeps these addresses in vector registers during the loop. */
    __asm__("" : "+r"(y), "+r"(y_stride));
#pragma GCC unroll 4
    for (int r = 0; r < R; r++)
#pragma GCC unroll 3
        for (int p = 0; p < P; p++) v16_store(y + r * y_stride + p * LANES, total[r][p]);
}

/* The largest tile takes most of the time, and has a function of its own: inlined beside other code that needs
 * registers, GCC may keep its words on the stack, and products take 1.7 times as long. */
static __attribute__((noinline)) void whole_word_tile(const float *x, const float *w, int64_t panel, float *y,
                                                      int64_t y_stride, int64_t n_words, int first) {
    word_tile(x, w, panel, y, y_stride, n_words, first, WORD_ROWS, TILE_PANELS);
}

ALWAYS_INLINE void word_tiles(int64_t n_rows, const float *x, const float *w, int64_t panel, float *y, int64_t y_stride,
                              int64_t n_words, int first, const int P) {
    for (int64_t r = 0, n; r < n_rows; r += n) {
        n = even_part(n_rows - r, WORD_ROWS);
        if (n == WORD_ROWS && P == TILE_PANELS)
            whole_word_tile(x + r, w, panel, y + r * y_stride, y_stride, n_words, first);
        else if (n == 4) word_tile(x + r, w, panel, y + r * y_stride, y_stride, n_words, first, 4, P);
        else if (n == 3) word_tile(x + r, w, panel, y + r * y_stride, y_stride, n_words, first, 3, P);
        else if (n == 2) word_tile(x + r, w, panel, y + r * y_stride, y_stride, n_words, first, 2, P);
        else word_tile(x + r, w, panel, y + r * y_stride, y_stride, n_words, first, 1, P);
    }
}

/* Adds the products of rows that lie side by side, up to 16, with some panels, `panel` numbers from one another, to y.
 * `first`: y is not read, and becomes their products. */
static void multiply_words(int64_t n_rows, const float *x, int64_t n_panels, const float *w, int64_t panel, float *y,
                           int64_t y_stride, int64_t n_words, int first) {
    for (int64_t p = 0, n; p < n_panels; p += n, w += n * panel, y += n * LANES) {
        n = even_part(n_panels - p, TILE_PANELS);
        if (n == 3) word_tiles(n_rows, x, w, panel, y, y_stride, n_words, first, 3);
        else if (n == 2) word_tiles(n_rows, x, w, panel, y, y_stride, n_words, first, 2);
        else word_tiles(n_rows, x, w, panel, y, y_stride, n_words, first, 1);
    }
}
#endif

enum { SMALLEST_GRADIENT = 0x1780, SMALLEST_FACTOR = 0x2f80 }; /* 2^-80 and 2^-32 in bfloat16 */

#if PAIR_STEP == 1
ALWAYS_INLINE v16 round_above(v16 x, const uint32_t least) {
    uint32_t words[LANES];
    memcpy(words, &x, sizeof words);
    for (int l = 0; l < LANES; l++) {
        const uint32_t rounded = nearest_bfloat(words[l]);
        words[l] = (rounded & 0x7fffffff) < least << 16 ? 0 : rounded;
    }
    memcpy(&x, words, sizeof words);
    return x;
}
/* Pairs of the numbers in each lane, rounded to bfloat16; those then smaller than `least` become 0. */
ALWAYS_INLINE v16 v16_round_pairs(v16 even, v16 odd, const uint32_t least) {
    uint32_t lower[LANES], upper[LANES];
    even = round_above(even, least), odd = round_above(odd, least);
    memcpy(lower, &even, sizeof lower), memcpy(upper, &odd, sizeof upper);
    for (int l = 0; l < LANES; l++) upper[l] |= lower[l] >> 16;
    memcpy(&even, upper, sizeof upper);
    return even;
}
ALWAYS_INLINE void put_pairs(float *to, v16 even, v16 odd, const uint32_t least) {
    v16_store(to, round_above(odd, least));
    v16_store(to + LANES, round_above(even, least));
}
#else
ALWAYS_INLINE void put_pairs(float *to, v16 even, v16 odd, const uint32_t least) {
    v16_store(to, v16_round_pairs(even, odd, least));
}
#endif

/* Up to 16 columns of some rows, `stride` apart, in pairs of rows: [words][16], zeros past the last column. The last
 * pair may lack the odd row, which is then 0. */
ALWAYS_INLINE void pair_rows(const float *x, int64_t stride, int64_t n_rows, int64_t n_columns, const uint32_t least,
                             float *to) {
    for (int64_t r = 0; r < n_rows; r += 2) {
        const v16 even = load_row(x + r * stride, 0, n_columns, 0.0f);
        const v16 odd = r + 1 < n_rows ? load_row(x + (r + 1) * stride, 0, n_columns, 0.0f) : v16_set1(0.0f);
        put_pairs(to + r / PAIR_STEP * LANES, even, odd, least);
    }
}
