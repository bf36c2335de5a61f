/* Copies rows of float32 to panels of bfloat16: pack.h, with rounding. Bound by memory. */

ALWAYS_INLINE void store_bfloats(uint16_t *to, v16 x) {
    uint32_t words[LANES];
    memcpy(words, &x, sizeof words);
    for (int l = 0; l < LANES; l++) to[l] = (uint16_t)(nearest_bfloat(words[l]) >> 16);
}

KERNEL(pack_rounded) {
    const refgpt_pack_args *a = args;
    for (int64_t p = begin; p < end; p++) {
        const float *from = (const float *)a->w + p * LANES * a->n_in;
        uint16_t *to = (uint16_t *)a->panels + p * LANES * a->n_in;
        for (int64_t i = 0; i < a->n_in; i += LANES) {
            v16 turned[LANES];
            load_turned(from, a->n_out - p * LANES, i, a->n_in, turned);
            for (int64_t j = 0; j < smaller(LANES, a->n_in - i); j++) store_bfloats(to + (i + j) * LANES, turned[j]);
        }
    }
}
