/* Many rows times 8-bit weights, for instruction sets without an instruction for dot products of bytes. Rows and weights are widened
 * to 16 bits piece by piece, once for many products: a piece of a panel stays in the L1 cache while it is multiplied with up to four
 * groups of rows.
 *
 * Half of the multiplications are then replaced by additions, of which processors make twice as many (Winograd 1968). With a row's
 * integers x and a lane's w at even and odd places, w0 x0 + w1 x1 = (x0 + w1) (x1 + w0) - x0 x1 - w0 w1, and the sums of the last two
 * products belong to a row or a lane. */

enum { PIECE_BLOCKS = 8, PIECE_PANELS = 24 };
enum { WIDE = 2 * BLOCK + 4 }; /* bytes of a widened block, for each row or lane */

/* The bytes of a block, [8 quads][n][4], as 16-bit integers: those at even places, [8 quads][n][2], and those at odd places; then n times
 * -(sum of products of neighbours), in 32 bits. Up to 28 bytes after them may be overwritten. */
ALWAYS_INLINE void widen_block(const char *quads, int64_t n, char *to) {
    for (int64_t i = 0; i < BLOCK * n; i += 32) {
        const __m256i both = _mm256_loadu_si256((const __m256i *)(quads + i));
        _mm256_storeu_si256((__m256i *)(to + i), _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8));
        _mm256_storeu_si256((__m256i *)(to + BLOCK * n + i), _mm256_srai_epi16(both, 8));
    }
    for (int64_t i = 0; i < n; i += 8) {
        __m256i sum = _mm256_setzero_si256();
        for (int64_t quad = 0; quad < 8; quad++) {
            const char *even = to + 4 * (quad * n + i), *odd = even + BLOCK * n;
            sum = _mm256_sub_epi32(
                sum, _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)even), _mm256_loadu_si256((const __m256i *)odd)));
        }
        _mm256_storeu_si256((__m256i *)(to + 2 * BLOCK * n + 4 * i), sum);
    }
}

/* The dot products of R of the rows with a block's lanes. */
ALWAYS_INLINE void dots_widened(const char *w, const char *x, int64_t height, const int R, v16 *dots) {
    const words of_lanes = words_load(w + 2 * BLOCK * LANES);
    words sum[TILE_WIDE_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) sum[r] = words_add(of_lanes, words_spread(load_int(x + 2 * BLOCK * height + 4 * r)));
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; quad++, w += 4 * LANES, x += 4 * height) {
        words even = words_load(w), odd = words_load(w + BLOCK * LANES);
        WORDS_IN_ORDER(even); /* in registers, not read once for each row */
        WORDS_IN_ORDER(odd);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const words x_even = words_spread(load_int(x + 4 * r)), x_odd = words_spread(load_int(x + BLOCK * height + 4 * r));
            sum[r] = words_add(sum[r], shorts_multiply(shorts_add(x_even, odd), shorts_add(x_odd, even)));
            WORDS_IN_ORDER(sum[r]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) dots[r] = v16_of_words(sum[r]);
}

/* Adds to the totals of R rows and a panel. x points at the first row's place in its group's records, `wide` at its place among the
 * group's widened rows. */
ALWAYS_INLINE void tile_widened(const char *x, const char *wide, int64_t height, const char *w, const float *scales,
                                int64_t n_blocks, float *totals, const int R) {
    for (int64_t b = 0; b < n_blocks; b++, x += RECORD * height, wide += WIDE * height, w += WIDE * LANES) {
        v16 dots[TILE_WIDE_ROWS];
        dots_widened(w, wide, height, R, dots);
        const v16 of_block = v16_load(scales + b * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const v16 scale = v16_mul(of_block, v16_set1(load_float(x + BLOCK * height + 4 * r)));
            v16_store(totals + r * LANES, v16_fma(dots[r], scale, v16_load(totals + r * LANES)));
        }
    }
}

/* The same for all rows of a group, in tiles of nearly equal height. */
ALWAYS_INLINE void group_widened(const char *x, const char *wide, int64_t height, const char *w, const float *scales,
                                 int64_t n_blocks, float *totals) {
    for (int64_t r = 0, n; r < height; r += n) {
        n = even_part(height - r, TILE_WIDE_ROWS);
#define TILE(rows) tile_widened(x + 4 * r, wide + 4 * r, height, w, scales, n_blocks, totals + r * LANES, rows)
        WITH_HEIGHT(n, TILE_WIDE_ROWS, TILE)
#undef TILE
    }
}

/* Some blocks of a panel, and their scales as floats. What lies `next` bytes further is prefetched. */
ALWAYS_INLINE void widen_weights(const uint8_t *w, int64_t n_blocks, int64_t next, char *to, float *scales) {
    for (int64_t b = 0; b < n_blocks; b++, w += block_bytes(Q8)) {
        for (int64_t i = 0; i < block_bytes(Q8); i += 64) __builtin_prefetch(w + next + i, 0, 2);
        widen_block((const char *)w, LANES, to + b * WIDE * LANES);
        v16_store(scales + b * LANES, v16_load_f16((const uint16_t *)(w + BLOCK * LANES)));
    }
}

/* y for up to four groups of rows and PIECE_PANELS panels: some blocks of all of them, then the next. */
static void multiply_widened(const refgpt_linear_quantised_args *a, int64_t first_row, int64_t begin, int64_t end) {
    const int64_t n_blocks = (a->n_in + BLOCK - 1) / BLOCK, panel = n_blocks * block_bytes(Q8);
    const int64_t n_rows = smaller(ROWS_AT_ONCE, a->n_rows - first_row), n_panels = end - begin;
    __attribute__((aligned(64))) float totals[PIECE_PANELS * ROWS_AT_ONCE * LANES], scales[PIECE_BLOCKS * LANES];
    __attribute__((aligned(64))) char wide[PIECE_BLOCKS * ROWS_AT_ONCE * WIDE + 32], weights[PIECE_BLOCKS * LANES * WIDE + 32];
    for (int64_t p = 0; p < n_panels; p++) {
        const v16 bias = a->bias ? load_row(a->bias, (begin + p) * LANES, a->n_out, 0.0f) : v16_set1(0.0f);
        for (int64_t r = 0; r < n_rows; r++) v16_store(totals + (p * ROWS_AT_ONCE + r) * LANES, bias);
    }
    for (int64_t b = 0, depth; b < n_blocks; b += depth) {
        depth = smaller(PIECE_BLOCKS, n_blocks - b);
        for (int64_t p = 0; p < n_panels; p++) {
            const int64_t next = p + 1 < n_panels ? panel : depth * block_bytes(Q8) - p * panel;
            widen_weights((const uint8_t *)a->w + (begin + p) * panel + b * block_bytes(Q8), depth, next, weights, scales);
            for (int64_t r = 0; r < n_rows; r += GROUP) {
                const int64_t height = smaller(GROUP, n_rows - r);
                const char *x = a->x + ((first_row + r) * n_blocks + b * height) * RECORD;
                char *of_group = wide + r * PIECE_BLOCKS * WIDE;
                for (int64_t i = 0; i < depth && p == 0; i++)
                    widen_block(x + i * RECORD * height, height, of_group + i * WIDE * height);
                group_widened(x, of_group, height, weights, scales, depth, totals + (p * ROWS_AT_ONCE + r) * LANES);
            }
        }
    }
    for (int64_t p = 0; p < n_panels; p++)
        for (int64_t r = 0; r < n_rows; r++)
            store_row(a->y + (first_row + r) * a->n_out, (begin + p) * LANES, a->n_out,
                      v16_load(totals + (p * ROWS_AT_ONCE + r) * LANES));
}

ALWAYS_INLINE void linear_widened(const refgpt_linear_quantised_args *a, int64_t begin, int64_t end) {
    for (int64_t r = 0; r < a->n_rows; r += ROWS_AT_ONCE)
        for (int64_t p = begin; p < end; p += PIECE_PANELS) multiply_widened(a, r, p, smaller(p + PIECE_PANELS, end));
}
