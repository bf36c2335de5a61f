/* Rounds rows for linear_bf16_dots: pairs of neighbouring inputs, 16 rows side by side. Numbers that count as 0 there
 * become 0. Bound by memory. */

KERNEL(round_rows) {
    const refgpt_round_rows_args *a = args;
    const int64_t n_pairs = (a->n_in + 1) / 2;
    for (int64_t p = begin; p < end; p++) {
        const float *from = a->x + p * LANES * a->n_in;
        uint32_t *to = a->y + p * LANES * n_pairs;
        for (int64_t i = 0; i < a->n_in; i += LANES) {
            v16 turned[LANES];
            load_turned(from, a->n_rows - p * LANES, i, a->n_in, turned);
            for (int64_t j = 0; j < smaller(LANES, a->n_in - i); j += 2)
                v16_store((float *)to + (i + j) / 2 * LANES, v16_round_pairs(turned[j], turned[j + 1], SMALLEST_INPUT));
        }
    }
}
