/* Rounds activations to 8 bits for the linear layers with 8-, 4- and 3-bit weights; 32 numbers of a row share a scale.
 * Bound by the cache: a few operations for each number. */

KERNEL(quantise_rows) {
    const refgpt_quantise_rows_args *a = args;
    const int64_t n_blocks = (a->n_in + BLOCK - 1) / BLOCK;
    const v16 zero = v16_set1(0.0f), most = v16_set1(127.0f), least = v16_set1(-127.0f), magic = v16_set1(0x1.8p23f);
    for (int64_t item = begin; item < end; item++) {
        const int64_t first = item / n_blocks * REFGPT_ROW_GROUP, b = item % n_blocks;
        const int64_t height = smaller(REFGPT_ROW_GROUP, a->n_rows - first);
        char *record = a->y + (first * n_blocks + b * height) * RECORD;
        for (int64_t r = 0; r < height; r++) {
            const float *x = a->x + (first + r) * a->n_in;
            v16 half[2], largest = zero, strange = zero; /* strange: 0, or NaN if a number is NaN or infinite */
            for (int h = 0; h < 2; h++) {
                const int64_t i = b * BLOCK + h * LANES;
                half[h] = i < a->n_in ? load_row(x, i, a->n_in, 0.0f) : zero;
                largest = v16_max(largest, v16_max(half[h], v16_sub(zero, half[h])));
                strange = v16_fma(half[h], zero, strange);
            }
            const float reach = v16_largest(largest);
            const int usable = reach >= 0x1p-100f;
            const v16 steps = v16_set1(usable ? 127.0f / reach : 0.0f);
            int8_t integers[BLOCK];
            v16 sum = zero;
            for (int h = 0; h < 2; h++) {
                const v16 shifted = v16_add(v16_max(v16_min(v16_mul(half[h], steps), most), least), magic);
                v16_store_low_bytes(integers + h * LANES, shifted);
                sum = v16_add(sum, v16_sub(shifted, magic));
            }
            const float scale = (usable ? reach / 127.0f : 0.0f) + v16_sum(strange);
            const int32_t offset = -8 * (int32_t)v16_sum(sum);
            for (int quad = 0; quad < BLOCK / 4; quad++)
                memcpy(record + (quad * height + r) * 4, integers + 4 * quad, 4);
            memcpy(record + BLOCK * height + 4 * r, &scale, 4);
            memcpy(record + (BLOCK + 4) * height + 4 * r, &offset, 4);
        }
    }
}
