/* The backward of linear layers: the gradient of their weights, a sum over rows. Pieces of both factors are copied to
 * the layout of panels, lanes side by side, a whole cache line at a time. The totals of some outputs stay in the L2
 * cache until all rows of a text have been added, and the sums over texts until all texts have. In bfloat16, the copies
 * are rounded and hold pairs of rows. Bound by arithmetic. */

/* Processors with dot products of bfloat16 have an L2 cache of 1 MiB or more. */
enum { GRAD_PANELS = PAIR_STEP == 2 ? 16 : 12, GRAD_OUTPUTS = PAIR_STEP == 2 ? 16 : 8, GRAD_DEPTH = 128 };
enum { GRAD_WIDTH = GRAD_PANELS * LANES };
/* Of a panel, so that the panels of a row do not fight for the same lines of the cache. */
enum { GRAD_ROOM = GRAD_DEPTH + 1 };

/* Columns of some rows, 16 by 16, as panels [n_panels][GRAD_ROOM][16]; columns past the last are zero. */
static void gather_columns(const float *x, int64_t stride, int64_t n_rows, int64_t n_columns, float *columns) {
    for (int64_t r = 0; r < n_rows; r++)
        for (int64_t i = 0; i < n_columns; i += LANES)
            v16_store(columns + i * GRAD_ROOM + r * LANES, load_row(x + r * stride, i, n_columns, 0.0f));
}

/* The same in pairs of rows. */
ALWAYS_INLINE void gather_pairs(const float *x, int64_t stride, int64_t n_rows, int64_t n_columns, const uint32_t least,
                                float *columns) {
    for (int64_t r = 0; r < n_rows; r += 2)
        for (int64_t i = 0; i < n_columns; i += LANES)
            pair_rows(x + r * stride + i, stride, smaller(2, n_rows - r), n_columns - i, least,
                      columns + i * GRAD_ROOM + r / PAIR_STEP * LANES);
}

/* A text's dw of up to GRAD_OUTPUTS panels of outputs and GRAD_PANELS of inputs. */
ALWAYS_INLINE void linear_weight_backward_block(const refgpt_linear_weight_backward_args *a, int64_t first_row,
                                                int64_t stop_row, int64_t first_out, int64_t n_outputs,
                                                int64_t first_in, int64_t n_inputs, const int dots) {
    float totals[GRAD_OUTPUTS * LANES * GRAD_WIDTH] __attribute__((aligned(64)));
    float x[GRAD_ROOM * GRAD_WIDTH] __attribute__((aligned(64)));
    float dy[GRAD_ROOM * GRAD_OUTPUTS * LANES] __attribute__((aligned(64)));
    const int64_t n_panels = (n_inputs + LANES - 1) / LANES;
    if (!dots || first_row == stop_row) start_totals(totals, GRAD_WIDTH, n_outputs, n_panels * LANES, NULL);
    for (int64_t r = first_row; r < stop_row; r += GRAD_DEPTH) {
        const int64_t depth = smaller(GRAD_DEPTH, stop_row - r);
        const float *from_x = a->x + r * a->n_in + first_in, *from_dy = a->dy + r * a->n_out + first_out;
        if (dots) {
            gather_pairs(from_x, a->n_in, depth, n_inputs, SMALLEST_FACTOR, x);
            gather_pairs(from_dy, a->n_out, depth, n_outputs, SMALLEST_GRADIENT, dy);
        } else {
            gather_columns(from_x, a->n_in, depth, n_inputs, x);
            gather_columns(from_dy, a->n_out, depth, n_outputs, dy);
        }
        for (int64_t o = 0; o < n_outputs; o += LANES) {
            const rows beside = {dy + o * GRAD_ROOM, 1, LANES, 0, 0};
            const panels w = {x, GRAD_ROOM * LANES, 0, F32};
            const int64_t n_lanes = smaller(LANES, n_outputs - o);
            if (dots)
                multiply_words(n_lanes, beside.at, n_panels, x, GRAD_ROOM * LANES, totals + o * GRAD_WIDTH, GRAD_WIDTH,
                               words_of(depth), r == first_row);
            else multiply_beside(n_lanes, beside, n_panels, w, totals + o * GRAD_WIDTH, GRAD_WIDTH, depth);
        }
    }
    for (int64_t o = 0; o < n_outputs; o++) {
        float *dw = a->dw + (first_out + o) * a->n_in + first_in;
        for (int64_t i = 0; i < n_inputs; i += LANES)
            store_row(dw, i, n_inputs, v16_add(load_row(dw, i, n_inputs, 0.0f), v16_load(totals + o * GRAD_WIDTH + i)));
    }
}

ALWAYS_INLINE void linear_weight_backward(const refgpt_linear_weight_backward_args *a, int64_t begin, int64_t end,
                                          const int dots) {
    const int64_t n_panels = (a->n_in + LANES - 1) / LANES;
    for (int64_t i = 0, n_beside; i < n_panels; i += n_beside) {
        n_beside = smaller(GRAD_PANELS, n_panels - i);
        for (int64_t p = begin, n; p < end; p += n) {
            n = even_part(end - p, GRAD_OUTPUTS);
            const int64_t n_outputs = smaller((p + n) * LANES, a->n_out) - p * LANES;
            const int64_t n_inputs = smaller((i + n_beside) * LANES, a->n_in) - i * LANES;
            for (int64_t s = 0; s < a->n_texts; s++)
                linear_weight_backward_block(a, a->starts[s], a->starts[s + 1], p * LANES, n_outputs, i * LANES,
                                             n_inputs, dots);
        }
    }
}

KERNEL(linear_weight_backward) { linear_weight_backward(args, begin, end, 0); }
