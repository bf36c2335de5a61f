/* Rotary embedding that pairs the two halves of the rotated dimensions. Bound by the cache: two multiplications an
 * element. */

KERNEL(rotary_halves) {
    const refgpt_rotary_args *a = args;
    const int64_t half = a->d_rotary / 2;
    for (int64_t r = begin; r < end; r++) {
        const float *cos = a->cos + a->positions[r] * a->d_rotary, *sin = a->sin + a->positions[r] * a->d_rotary;
        for (int64_t h = 0; h < a->n_head; h++) {
            const int64_t at = (r * a->n_head + h) * a->d_head;
            for (int64_t i = 0; i < half; i += LANES) { /* both are read before either is written: y may be x */
                const v16 x1 = load_row(a->x + at, i, half, 0.0f), x2 = load_row(a->x + at + half, i, half, 0.0f);
                const v16 turned1 = v16_mul(x2, load_row(sin, i, half, 0.0f));
                const v16 turned2 = v16_mul(x1, load_row(sin + half, i, half, 0.0f));
                store_row(a->y + at, i, half, v16_fma(x1, load_row(cos, i, half, 0.0f), turned1));
                store_row(a->y + at + half, i, half, v16_fma(x2, load_row(cos + half, i, half, 0.0f), turned2));
            }
            const int64_t n_rest = a->d_head - a->d_rotary;
            if (a->x != a->y && n_rest)
                memcpy(a->y + at + a->d_rotary, a->x + at + a->d_rotary, (size_t)n_rest * sizeof *a->y);
        }
    }
}
