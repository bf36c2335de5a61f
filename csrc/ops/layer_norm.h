/* LayerNorm of a row in three passes over it: mean, variance, result. Bound by the cache. */

KERNEL(layer_norm) {
    const refgpt_layer_norm_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->n;
        float *y = a->y + r * a->n;
        v16 sum = v16_set1(0.0f);
        for (int64_t i = 0; i < a->n; i += LANES) sum = v16_add(sum, load_row(x, i, a->n, 0.0f));
        const float mean = v16_sum(sum) / (float)a->n;
        const v16 means = v16_set1(mean);
        v16 squares = v16_set1(0.0f);
        for (int64_t i = 0; i < a->n; i += LANES) {
            const v16 off = v16_sub(load_row(x, i, a->n, mean), means);
            squares = v16_fma(off, off, squares);
        }
        const float variance = v16_sum(squares) / (float)a->n;
        /* 0, or NaN if the squares overflowed: 1 / infinity would make the row 0. */
        const float strange = variance * 0.0f;
        const v16 scale = v16_set1(1.0f / sqrtf(variance + a->eps) + strange);
        for (int64_t i = 0; i < a->n; i += LANES) {
            const v16 normal = v16_mul(v16_sub(load_row(x, i, a->n, mean), means), scale);
            store_row(y, i, a->n, v16_fma(normal, load_row(a->w, i, a->n, 0.0f), load_row(a->b, i, a->n, 0.0f)));
        }
    }
}
