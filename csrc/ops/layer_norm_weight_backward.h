/* The backward of LayerNorm's weight and bias: sums of columns, striped over rows. Bound by the cache. */

KERNEL(layer_norm_weight_backward) {
    const refgpt_layer_norm_weight_backward_args *a = args;
    for (int64_t p = begin; p < end; p++) {
        v16 dw[LANES], db[LANES];
        start_stripes(dw);
        start_stripes(db);
        for (int64_t r = 0; r < a->n_rows; r++) {
            const v16 x = load_row(a->x + r * a->n, p * LANES, a->n, 0.0f),
                      dy = load_row(a->dy + r * a->n, p * LANES, a->n, 0.0f);
            const v16 normed = v16_div(v16_sub(x, v16_set1(a->moments[2 * r])), v16_set1(a->moments[2 * r + 1]));
            dw[r % LANES] = v16_add(dw[r % LANES], v16_mul(dy, normed));
            db[r % LANES] = v16_add(db[r % LANES], dy);
        }
        add_stripes(dw, a->dw, p * LANES, a->n);
        add_stripes(db, a->db, p * LANES, a->n);
    }
}
