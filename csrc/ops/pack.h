/* Copies rows, as checkpoints store them, to panels. Bound by memory. Rows are often a power of two apart, so that 16
 * of them compete for the same lines of the cache: each line is read once, into a square that is then transposed. Whole
 * squares of floats are transposed in registers. */

ALWAYS_INLINE void pack(const refgpt_pack_args *a, int64_t begin, int64_t end, const int64_t size) {
    for (int64_t p = begin; p < end; p++) {
        const int64_t n_lanes = smaller(LANES, a->n_out - p * LANES);
        const char *from = (const char *)a->w + p * LANES * a->n_in * size;
        char *to = (char *)a->panels + p * LANES * a->n_in * size;
        char square[LANES * LANES * sizeof(uint32_t)] = {0};
        for (int64_t i = 0; i < a->n_in; i += LANES) {
            const int64_t n_inner = smaller(LANES, a->n_in - i);
            if (size == sizeof(float) && n_lanes == LANES && n_inner == LANES) {
                v16 turned[LANES];
                for (int64_t l = 0; l < LANES; l++)
                    turned[l] = v16_load((const float *)(from + (l * a->n_in + i) * size));
                v16_turn(turned);
                for (int64_t j = 0; j < LANES; j++) v16_store((float *)to + (i + j) * LANES, turned[j]);
                continue;
            }
            for (int64_t l = 0; l < n_lanes; l++)
                memcpy(square + l * LANES * size, from + (l * a->n_in + i) * size, (size_t)(n_inner * size));
            for (int64_t j = 0; j < n_inner; j++)
                for (int64_t l = 0; l < LANES; l++)
                    memcpy(to + ((i + j) * LANES + l) * size, square + (l * LANES + j) * size, (size_t)size);
        }
    }
}

KERNEL(pack_b2) { pack(args, begin, end, 2); }
KERNEL(pack_b4) { pack(args, begin, end, 4); }
