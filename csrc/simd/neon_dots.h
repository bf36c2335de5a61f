/* Dot products of bytes in 128-bit registers, over `add_quad` of the instruction set: four lanes' quads at a time. */

enum { TILE_QUANTISED_ROWS = 4 };

/* A quarter of a step: two weights in each byte, the second `bits` bits above the first. What lies above them is
 * anything. */
ALWAYS_INLINE uint8x16_t load_step(const uint8_t *w, int step, const int bits) {
    if (bits == 4 || step < 3) return vld1q_u8(w + 64 * step);
    const uint8x16_t first = vshrq_n_u8(vld1q_u8(w), 6), second = vshrq_n_u8(vld1q_u8(w + 64), 6);
    return vsliq_n_u8(first, vsliq_n_u8(second, vshrq_n_u8(vld1q_u8(w + 128), 6), 2), 2);
}
/* Weights of either sign, in bits 0 .. bits - 1. */
ALWAYS_INLINE int8x16_t field_of(uint8x16_t fields, const int bits) {
    const uint8x16_t field = vandq_u8(fields, vdupq_n_u8((uint8_t)((1 << bits) - 1)));
    return vsubq_s8(vreinterpretq_s8_u8(field), vdupq_n_s8((int8_t)((1 << bits) / 2)));
}

ALWAYS_INLINE void dots_fields(const uint8_t *w, const char *x, int64_t height, const int bits, const int R,
                               v16 *dots) {
    quad_sums sum[TILE_QUANTISED_ROWS][4];
    for (int r = 0; r < R; r++) EACH_QUARTER sum[r][i] = no_sums();
    for (int step = 0; step < 4; step++) EACH_QUARTER {
            const uint8x16_t both = load_step(w + 16 * i, step, bits);
            const int8x16_t low = field_of(both, bits);
            const int8x16_t high = field_of(bits == 4 ? vshrq_n_u8(both, 4) : vshrq_n_u8(both, 3), bits);
            for (int r = 0; r < R; r++) {
                sum[r][i] = add_quad(sum[r][i], low, spread(x + 4 * (2 * step * height + r)));
                sum[r][i] = add_quad(sum[r][i], high, spread(x + 4 * ((2 * step + 1) * height + r)));
            }
        }
    for (int r = 0; r < R; r++) EACH_QUARTER dots[r].val[i] = vcvtq_f32_s32(lane_sums(sum[r][i]));
}

ALWAYS_INLINE void dots_q8(const uint8_t *w, const char *x, int64_t height, const int R, v16 *dots) {
    quad_sums sum[TILE_QUANTISED_ROWS][4];
    for (int r = 0; r < R; r++) EACH_QUARTER sum[r][i] = no_sums();
    for (int quad = 0; quad < 8; quad++) EACH_QUARTER {
            const int8x16_t weights = vld1q_s8((const int8_t *)w + 64 * quad + 16 * i);
            for (int r = 0; r < R; r++) sum[r][i] = add_quad(sum[r][i], weights, spread(x + 4 * (quad * height + r)));
        }
    for (int r = 0; r < R; r++) EACH_QUARTER dots[r].val[i] = vcvtq_f32_s32(lane_sums(sum[r][i]));
}
