/* Rotary embedding of interleaved pairs. Bound by the cache: two multiplications an element. */

KERNEL(rotary) {
    const refgpt_rotary_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *cos = a->cos + a->positions[r] * a->d_rotary, *sin = a->sin + a->positions[r] * a->d_rotary;
        for (int64_t h = 0; h < a->n_head; h++) {
            const int64_t at = (r * a->n_head + h) * a->d_head;
            for (int64_t i = 0; i < a->d_rotary; i += LANES) {
                const v16 x = load_row(a->x + at, i, a->d_rotary, 0.0f);
                const v16 turned = v16_mul(v16_swap_pairs(x), load_row(sin, i, a->d_rotary, 0.0f));
                store_row(a->y + at, i, a->d_rotary, v16_fma(x, load_row(cos, i, a->d_rotary, 0.0f), turned));
            }
            const int64_t n_rest = a->d_head - a->d_rotary;
            if (a->x != a->y && n_rest)
                memcpy(a->y + at + a->d_rotary, a->x + at + a->d_rotary, (size_t)n_rest * sizeof *a->y);
        }
    }
}
