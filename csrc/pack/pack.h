/* From rows as checkpoints store them to panels. Bound by memory; lines of 16 rows are read side by side. */

#define PACK(element)                                                                                    \
    const refgpt_pack_args *a = args;                                                                    \
    (void)worker;                                                                                        \
    for (int64_t p = begin; p < end; p++) {                                                              \
        const int64_t n_lanes = smaller(LANES, a->n_out - p * LANES);                                    \
        const element *from = (const element *)a->w + p * LANES * a->n_in;                               \
        element *to = (element *)a->panels + p * LANES * a->n_in;                                        \
        for (int64_t i = 0; i < a->n_in; i++) {                                                          \
            for (int64_t l = 0; l < n_lanes; l++) to[i * LANES + l] = from[l * a->n_in + i];             \
            for (int64_t l = n_lanes; l < LANES; l++) to[i * LANES + l] = 0;                             \
        }                                                                                                \
    }

KERNEL(pack_b2) { PACK(uint16_t) }
KERNEL(pack_b4) { PACK(uint32_t) }
#undef PACK
