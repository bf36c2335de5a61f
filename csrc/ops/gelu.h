/* GELU in its tanh form. 0.5 (1 + tanh u) equals 1 / (1 + exp(-2u)), which has no cancellation near 0. Bound by exp. */

KERNEL(gelu) {
    const refgpt_gelu_args *a = args;
    const v16 one = v16_set1(1.0f), cubic = v16_set1(0.044715f);
    const v16 minus_two_root = v16_set1(-0x1.988454p+0f); /* -2 sqrt(2 / pi) */
    for (int64_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->n;
        float *y = a->y + r * a->n;
        for (int64_t i = 0; i < a->n; i += LANES) {
            const v16 xi = load_row(x, i, a->n, 0.0f);
            const v16 u = v16_mul(xi, v16_fma(v16_mul(xi, xi), cubic, one));
            store_row(y, i, a->n, v16_div(xi, v16_add(one, v16_exp(v16_mul(minus_two_root, u)))));
        }
    }
}
