/* The backward of linear layers: the gradient of their weights, a sum over rows. Both factors are cut into pieces that lie as panels do,
 * lanes side by side, which takes a copy of whole cache lines; the totals of some outputs stay in the L2 cache until all rows have
 * passed. Bound by arithmetic. */

enum { GRAD_PANELS = 12, GRAD_OUTPUTS = 8, GRAD_DEPTH = 128, GRAD_WIDTH = GRAD_PANELS * LANES };

/* Columns of some rows, 16 by 16, as panels [n_panels][GRAD_DEPTH][16]; columns past the last are zero. */
static void gather_columns(const float *x, int64_t stride, int64_t n_rows, int64_t n_columns, float *columns) {
    for (int64_t r = 0; r < n_rows; r++)
        for (int64_t i = 0; i < n_columns; i += LANES)
            v16_store(columns + i * GRAD_DEPTH + r * LANES, load_row(x + r * stride, i, n_columns, 0.0f));
}

/* dw of up to GRAD_OUTPUTS panels of outputs and GRAD_PANELS of inputs. */
static void linear_weight_backward_block(const refgpt_linear_weight_backward_args *a, int64_t first_out, int64_t n_outputs,
                                         int64_t first_in, int64_t n_inputs) {
    float totals[GRAD_OUTPUTS * LANES * GRAD_WIDTH] __attribute__((aligned(64)));
    float x[GRAD_DEPTH * GRAD_WIDTH] __attribute__((aligned(64))), dy[GRAD_DEPTH * LANES] __attribute__((aligned(64)));
    const int64_t n_panels = (n_inputs + LANES - 1) / LANES;
    memset(totals, 0, (size_t)(n_outputs * GRAD_WIDTH) * sizeof *totals);
    for (int64_t r = 0; r < a->n_rows; r += GRAD_DEPTH) {
        const int64_t depth = smaller(GRAD_DEPTH, a->n_rows - r);
        gather_columns(a->x + r * a->n_in + first_in, a->n_in, depth, n_inputs, x);
        for (int64_t o = 0; o < n_outputs; o += LANES) {
            const int64_t n_beside = smaller(LANES, n_outputs - o);
            gather_columns(a->dy + r * a->n_out + first_out + o, a->n_out, depth, n_beside, dy);
            const rows beside = {dy, 1, LANES, 0, 0};
            const panels w = {x, GRAD_DEPTH * LANES, 0, F32};
            multiply_beside(n_beside, beside, n_panels, w, totals + o * GRAD_WIDTH, GRAD_WIDTH, depth);
        }
    }
    for (int64_t o = 0; o < n_outputs; o++) {
        float *dw = a->dw + (first_out + o) * a->n_in + first_in;
        for (int64_t i = 0; i < n_inputs; i += LANES)
            store_row(dw, i, n_inputs, v16_add(load_row(dw, i, n_inputs, 0.0f), v16_load(totals + o * GRAD_WIDTH + i)));
    }
}

KERNEL(linear_weight_backward) {
    const refgpt_linear_weight_backward_args *a = args;
    for (int64_t i = 0; i < a->n_in; i += GRAD_WIDTH)
        for (int64_t p = begin; p < end; p += GRAD_OUTPUTS) {
            const int64_t n_outputs = smaller(smaller(p + GRAD_OUTPUTS, end) * LANES, a->n_out) - p * LANES;
            linear_weight_backward_block(a, p * LANES, n_outputs, i, smaller(GRAD_WIDTH, a->n_in - i));
        }
}
