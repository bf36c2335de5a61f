/* The backward of LayerNorm in a row: its statistics are computed again, then the two sums that are the gradients
 * through mean and variance. Bound by the cache and by divisions. */

KERNEL(layer_norm_backward) {
    const refgpt_layer_norm_backward_args *a = args;
    const float n = (float)a->n;
    for (int64_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->n, *dy = a->dy + r * a->n;
        float *dx = a->dx + r * a->n;
        v16 sum = v16_set1(0.0f);
        for (int64_t i = 0; i < a->n; i += LANES) sum = v16_add(sum, load_row(x, i, a->n, 0.0f));
        const float mean = v16_sum(sum) / n;
        const v16 means = v16_set1(mean);
        v16 squares = v16_set1(0.0f);
        for (int64_t i = 0; i < a->n; i += LANES) {
            const v16 off = v16_sub(load_row(x, i, a->n, mean), means);
            squares = v16_add(squares, v16_mul(off, off));
        }
        const float root = sqrtf(v16_sum(squares) / n + a->eps);
        const v16 scale = v16_set1(root);
        v16 along_ones = v16_set1(0.0f), along_normed = v16_set1(0.0f);
        for (int64_t i = 0; i < a->n; i += LANES) {
            const v16 normed = v16_div(v16_sub(load_row(x, i, a->n, mean), means), scale);
            const v16 dnormed = v16_mul(load_row(dy, i, a->n, 0.0f), load_row(a->w, i, a->n, 0.0f));
            along_ones = v16_add(along_ones, dnormed);
            along_normed = v16_add(along_normed, v16_mul(dnormed, normed));
        }
        const v16 ones = v16_set1(v16_sum(along_ones) / n), slope = v16_set1(v16_sum(along_normed) / n);
        for (int64_t i = 0; i < a->n; i += LANES) {
            const v16 normed = v16_div(v16_sub(load_row(x, i, a->n, mean), means), scale);
            const v16 dnormed = v16_mul(load_row(dy, i, a->n, 0.0f), load_row(a->w, i, a->n, 0.0f));
            store_row(dx, i, a->n, v16_div(v16_sub(v16_sub(dnormed, ones), v16_mul(normed, slope)), scale));
        }
        a->moments[2 * r] = mean, a->moments[2 * r + 1] = root;
    }
}
