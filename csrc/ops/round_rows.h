/* Rounds rows for linear_bf16_dots: pairs of neighbouring inputs, 16 rows side by side. Numbers that count as 0 there
 * become 0. Bound by memory. */

#if PAIR_STEP == 1
ALWAYS_INLINE void put_pairs_of_rows(uint32_t *to, v16 even, v16 odd) {
    uint32_t lower[LANES], upper[LANES];
    even = round_above(even, SMALLEST_INPUT), odd = round_above(odd, SMALLEST_INPUT);
    memcpy(lower, &even, sizeof lower), memcpy(upper, &odd, sizeof upper);
    for (int l = 0; l < LANES; l++) to[l] = lower[l] >> 16 | upper[l];
}
#else
ALWAYS_INLINE void put_pairs_of_rows(uint32_t *to, v16 even, v16 odd) {
    v16_store((float *)to, v16_round_pairs(even, odd, SMALLEST_INPUT));
}
#endif

KERNEL(round_rows) {
    const refgpt_round_rows_args *a = args;
    const int64_t n_pairs = (a->n_in + 1) / 2;
    for (int64_t p = begin; p < end; p++) {
        const int64_t n_lanes = smaller(LANES, a->n_rows - p * LANES);
        const float *from = a->x + p * LANES * a->n_in;
        uint32_t *to = a->y + p * LANES * n_pairs;
        for (int64_t i = 0; i < a->n_in; i += LANES) {
            v16 turned[LANES];
            for (int64_t l = 0; l < LANES; l++)
                turned[l] = l < n_lanes ? load_row(from + l * a->n_in, i, a->n_in, 0.0f) : v16_set1(0.0f);
            v16_turn(turned);
            for (int64_t j = 0; j < smaller(LANES, a->n_in - i); j += 2)
                put_pairs_of_rows(to + (i + j) / 2 * LANES, turned[j], turned[j + 1]);
        }
    }
}
