/* Exact GELU: x times the normal distribution's share below x, which is 1 - Q(x), or Q(-x) if x is negative. With t =
 * |x| it is max(x, 0) - t Q(t) in both cases. Q(t) = exp(-t^2 / 2) R(t) has no cancellation: R falls slowly from 1/2,
 * and (1 + t) R(t) is a polynomial in (t - 3.5) / (t + 3.5) to 1.3e-8 (fitted over 0 .. 13.3). From 14 on Q is 0 here.
 * Bound by exp and two divisions. */

typedef struct {
    v16 power, q; /* exp(-t^2 / 2) and Q(t) */
} gelu_tail;

/* For t from 0 to 14. */
static inline gelu_tail gelu_tail_of(v16 t) {
    static const float coefficients[] = {0x1.2d67eap-13f, 0x1.6c89aep-14f, -0x1.6cbf8ep-10f, 0x1.38b9b0p-12f,
                                         0x1.53f28ap-7f,  -0x1.efd6b4p-6f, 0x1.37b07cp-5f,   0x1.9cd046p-11f,
                                         -0x1.903b10p-4f, 0x1.ea09d8p-2f};
    enum { N_COEFFICIENTS = sizeof coefficients / sizeof *coefficients };
    const v16 zero = v16_set1(0.0f), one = v16_set1(1.0f), minus_half = v16_set1(-0.5f), centre = v16_set1(3.5f);
    const v16 q = v16_div(v16_sub(t, centre), v16_add(t, centre));
    v16 p = v16_set1(coefficients[0]);
    for (int k = 1; k < N_COEFFICIENTS; k++) p = v16_fma(p, q, v16_set1(coefficients[k]));
    const v16 square = v16_mul(t, t), rest = v16_fma(t, t, v16_sub(zero, square)); /* t^2 is exactly their sum */
    gelu_tail tail;
    tail.power = v16_exp(v16_mul(square, minus_half));
    tail.power = v16_fma(v16_mul(tail.power, minus_half), rest, tail.power);
    tail.q = v16_mul(tail.power, v16_div(p, v16_add(one, t)));
    return tail;
}

KERNEL(gelu_erf) {
    const refgpt_gelu_args *a = args;
    const v16 zero = v16_set1(0.0f);
    for (int64_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->n;
        float *y = a->y + r * a->n;
        for (int64_t i = 0; i < a->n; i += LANES) {
            const v16 xi = load_row(x, i, a->n, 0.0f);
            const v16 t = v16_min(v16_set1(14.0f), v16_max(xi, v16_sub(zero, xi))); /* lets NaN through */
            store_row(y, i, a->n, v16_sub(v16_max(zero, xi), v16_mul(t, gelu_tail_of(t).q)));
        }
    }
}
