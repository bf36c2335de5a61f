/* The second half of a step of the Newton-Schulz iteration for Muon, y = a x + (b g + c g g^T) x with g = x x^T: gram.h
 * computes g and the polynomial s = b g + c g g^T, this kernel a x + s x. The result is stored twice: as the panels of
 * its columns, to be multiplied next, and as those of its rows, for the next g. Bound by arithmetic. */

KERNEL(newton_schulz) {
    const refgpt_newton_schulz_args *a = args;
    const int64_t m = a->n_rows;
    float totals[SIDE_ROWS * SIDE_WIDTH] __attribute__((aligned(64)));
    v16 square[LANES];
    for (int64_t p = begin, n; p < end; p += n) {
        n = even_part(end - p, SIDE_PANELS);
        for (int64_t first = 0; first < m; first += SIDE_ROWS) {
            const int64_t n_rows = smaller(SIDE_ROWS, m - first);
            side_products(a->s + first * m, n_rows, a->x + p * LANES * m, n, m, totals);
            for (int64_t r = first; r < first + n_rows; r += LANES)
                for (int64_t q = p; q < p + n; q++) {
                    const int64_t at = (q * m + r) * LANES, n_here = smaller(LANES, m - r);
                    side_square(a->x + at, a->of_x, totals + (r - first) * SIDE_WIDTH + (q - p) * LANES, 1.0f, n_here,
                                square);
                    for (int64_t l = 0; l < n_here; l++) v16_store(a->y + at + l * LANES, square[l]);
                    v16_turn(square);
                    for (int64_t l = 0; l < smaller(LANES, a->n - q * LANES); l++)
                        v16_store(a->rows + r * a->n + (q * LANES + l) * LANES, square[l]);
                }
        }
    }
}
