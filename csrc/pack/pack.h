/* From rows as checkpoints store them to panels. Bound by memory. Rows are often a power of two apart, so that 16 of them
 * fight for the same lines of the cache: each line is read once, into a square that is turned there. */

#define PACK(element)                                                                                                  \
    const refgpt_pack_args *a = args;                                                                                  \
    (void)worker;                                                                                                      \
    for (int64_t p = begin; p < end; p++) {                                                                            \
        const int64_t n_lanes = smaller(LANES, a->n_out - p * LANES);                                                  \
        const element *from = (const element *)a->w + p * LANES * a->n_in;                                             \
        element *to = (element *)a->panels + p * LANES * a->n_in;                                                      \
        element square[LANES][LANES] = {{0}};                                                                          \
        for (int64_t i = 0; i < a->n_in; i += LANES) {                                                                 \
            const int64_t n_inner = smaller(LANES, a->n_in - i);                                                       \
            for (int64_t l = 0; l < n_lanes; l++) memcpy(square[l], from + l * a->n_in + i, (size_t)n_inner * sizeof *from); \
            for (int64_t j = 0; j < n_inner; j++)                                                                      \
                for (int64_t l = 0; l < LANES; l++) to[(i + j) * LANES + l] = square[l][j];                            \
        }                                                                                                              \
    }

KERNEL(pack_b2) { PACK(uint16_t) }
KERNEL(pack_b4) { PACK(uint32_t) }
#undef PACK
