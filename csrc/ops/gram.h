/* The products of rows with each other: a symmetric matrix, as both halves hold the same sums. One half is computed,
 * and the other is transposed from it. All matrices are panels, so that the steps of newton_schulz.h pack none again.
 * Totals of a few panels and up to 256 rows are kept in a buffer, and a piece of these panels stays in L1 until it is
 * multiplied with all these rows. Bound by arithmetic. */

enum { SIDE_PANELS = 3, SIDE_ROWS = 256, SIDE_DEPTH = 128, SIDE_WIDTH = SIDE_PANELS * LANES };

/* Products of rows with up to SIDE_PANELS panels, all of n inputs, as totals [n_rows][SIDE_WIDTH]. */
static void side_products(const float *x, int64_t n_rows, const float *w, int64_t n_panels, int64_t n, float *totals) {
    memset(totals, 0, (size_t)(n_rows * SIDE_WIDTH) * sizeof *totals);
    for (int64_t i = 0; i < n; i += SIDE_DEPTH)
        for (int64_t r = 0; r < n_rows; r += LANES) {
            const int64_t next = r + LANES < n_rows ? LANES * n : -r * n;
            const rows beside = {x + r * n + i * LANES, 1, LANES, next, SIDE_DEPTH * LANES};
            multiply_beside(smaller(LANES, n_rows - r), beside, n_panels, (panels){w + i * LANES, n * LANES, 0, F32},
                            totals + r * SIDE_WIDTH, SIDE_WIDTH, smaller(SIDE_DEPTH, n - i));
        }
}

/* 16 lanes of up to 16 rows: totals or, with x, of_x * x + of_totals * totals. Zeros past the last row. */
ALWAYS_INLINE void side_square(const float *x, float of_x, const float *totals, float of_totals, int64_t n_rows,
                               v16 *square) {
    for (int64_t l = 0; l < LANES; l++) {
        square[l] = l < n_rows ? v16_load(totals + l * SIDE_WIDTH) : v16_set1(0.0f);
        if (x && l < n_rows)
            square[l] =
                v16_add(v16_mul(v16_set1(of_x), v16_load(x + l * LANES)), v16_mul(v16_set1(of_totals), square[l]));
    }
}

KERNEL(gram) {
    const refgpt_gram_args *a = args;
    const int64_t m = a->n_rows;
    float totals[SIDE_ROWS * SIDE_WIDTH] __attribute__((aligned(64)));
    v16 square[LANES];
    for (int64_t p = begin, n; p < end; p += n) {
        n = even_part(end - p, SIDE_PANELS);
        for (int64_t first = p * LANES; first < m; first += SIDE_ROWS) {
            const int64_t n_rows = smaller(SIDE_ROWS, m - first);
            side_products(a->x + first * a->n, n_rows, a->x + p * LANES * a->n, n, a->n, totals);
            for (int64_t r = first; r < first + n_rows; r += LANES)
                for (int64_t q = p; q < p + n && q * LANES <= r; q++) { /* this half, and from it the other one */
                    const int64_t at = (q * m + r) * LANES, n_here = smaller(LANES, m - r);
                    side_square(a->base ? a->base + at : NULL, a->of_base,
                                totals + (r - first) * SIDE_WIDTH + (q - p) * LANES, a->of_sum, n_here, square);
                    for (int64_t l = 0; l < n_here; l++) v16_store(a->y + at + l * LANES, square[l]);
                    if (r == q * LANES) continue;
                    v16_turn(square);
                    for (int64_t l = 0; l < LANES; l++) v16_store(a->y + r * m + (q * LANES + l) * LANES, square[l]);
                }
        }
    }
}
