/* The backward of exact GELU: its slope is the normal distribution's share below x, plus x times its density. With t =
 * |x| the share is 1 - Q(t), or Q(t) if x is negative: |[x >= 0] - Q(t)|. The density uses the exp(-t^2 / 2) that Q
 * computes. Bound by exp and a division. */

KERNEL(gelu_erf_backward) {
    const refgpt_gelu_backward_args *a = args;
    const v16 zero = v16_set1(0.0f), one = v16_set1(1.0f), far = v16_set1(14.0f), density = v16_set1(0x1.988454p-2f);
    for (int64_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->n, *dy = a->dy + r * a->n;
        float *dx = a->dx + r * a->n;
        for (int64_t i = 0; i < a->n; i += LANES) {
            const v16 xi = v16_min(far, v16_max(v16_sub(zero, far), load_row(x, i, a->n, 0.0f))); /* lets NaN through */
            const gelu_tail tail = gelu_tail_of(v16_max(v16_sub(zero, xi), xi));
            const v16 side = v16_sub(v16_zero_below(one, xi, zero), tail.q), share = v16_max(side, v16_sub(zero, side));
            const v16 slope = v16_fma(v16_mul(xi, density), tail.power, share);
            store_row(dx, i, a->n, v16_mul(load_row(dy, i, a->n, 0.0f), slope));
        }
    }
}
