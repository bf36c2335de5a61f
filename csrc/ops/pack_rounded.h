/* Copies rows of float32 to panels of bfloat16: pack.h, with rounding. Bound by memory. */

ALWAYS_INLINE void store_bfloats(uint16_t *to, v16 x) {
    uint32_t words[LANES];
    memcpy(words, &x, sizeof words);
    for (int l = 0; l < LANES; l++) to[l] = (uint16_t)(nearest_bfloat(words[l]) >> 16);
}

KERNEL(pack_rounded) {
    const refgpt_pack_args *a = args;
    for (int64_t p = begin; p < end; p++) {
        const int64_t n_lanes = smaller(LANES, a->n_out - p * LANES);
        const float *from = (const float *)a->w + p * LANES * a->n_in;
        uint16_t *to = (uint16_t *)a->panels + p * LANES * a->n_in;
        for (int64_t i = 0; i < a->n_in; i += LANES) {
            v16 turned[LANES];
            for (int64_t l = 0; l < LANES; l++)
                turned[l] = l < n_lanes ? load_row(from + l * a->n_in, i, a->n_in, 0.0f) : v16_set1(0.0f);
            v16_turn(turned);
            for (int64_t j = 0; j < smaller(LANES, a->n_in - i); j++) store_bfloats(to + (i + j) * LANES, turned[j]);
        }
    }
}
