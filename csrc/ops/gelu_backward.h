/* The backward of GELU. With e = exp(-2u) and s = 1 / (1 + e), GELU is x s, and its slope s + x s (1 - s) (2u)'. 1 - s
 * is computed as e s, without cancellation. Beyond 16 the slope is 0 or 1, and x^3 could overflow: u is computed for x
 * clamped to -16 .. 16. Bound by exp. */

KERNEL(gelu_backward) {
    const refgpt_gelu_backward_args *a = args;
    const v16 one = v16_set1(1.0f), far = v16_set1(16.0f), minus_far = v16_set1(-16.0f);
    const v16 cubic = v16_set1(0.044715f), three_cubic = v16_set1(0.134145f);
    const v16 two_root = v16_set1(0x1.988454p+0f), minus_two_root = v16_set1(-0x1.988454p+0f); /* 2 sqrt(2 / pi) */
    for (int64_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->n, *dy = a->dy + r * a->n;
        float *dx = a->dx + r * a->n;
        for (int64_t i = 0; i < a->n; i += LANES) {
            const v16 xi = v16_min(far, v16_max(minus_far, load_row(x, i, a->n, 0.0f)));
            const v16 square = v16_mul(xi, xi);
            const v16 u = v16_mul(xi, v16_fma(square, cubic, one));
            const v16 e = v16_exp(v16_mul(minus_two_root, u));
            const v16 s = v16_div(one, v16_add(one, e));
            const v16 rise = v16_mul(two_root, v16_fma(square, three_cubic, one));
            const v16 bend = v16_mul(v16_mul(v16_mul(xi, s), v16_mul(e, s)), rise);
            store_row(dx, i, a->n, v16_mul(load_row(dy, i, a->n, 0.0f), v16_add(s, bend)));
        }
    }
}
