/* The backward of LayerNorm's weight: sums of columns, striped over rows. Bound by the cache and by divisions. */

KERNEL(layer_norm_weight_backward) {
    const refgpt_layer_norm_weight_backward_args *a = args;
    for (int64_t p = begin; p < end; p++) {
        for (int64_t s = 0; s < a->n_texts; s++) {
            v16 sums[LANES];
            start_stripes(sums);
            for (int64_t r = a->starts[s]; r < a->starts[s + 1]; r++) {
                const int64_t stripe = (r - a->starts[s]) % LANES;
                const v16 x = load_row(a->x + r * a->n, p * LANES, a->n, 0.0f),
                          dy = load_row(a->dy + r * a->n, p * LANES, a->n, 0.0f);
                const v16 normed = v16_div(v16_sub(x, v16_set1(a->moments[2 * r])), v16_set1(a->moments[2 * r + 1]));
                sums[stripe] = v16_add(sums[stripe], v16_mul(dy, normed));
            }
            add_stripes(sums, a->dw, p * LANES, a->n);
        }
    }
}
