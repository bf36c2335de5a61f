/* Dot products of bytes in 128-bit registers, over `add_quad` of the instruction set: four lanes' quads at a time. */

enum { TILE_QUANTISED_ROWS = 4 };

ALWAYS_INLINE void dots_q4(const uint8_t *w, const char *x, int64_t height, const int R, v16 *dots) {
    quad_sums sum[TILE_QUANTISED_ROWS][4];
    for (int r = 0; r < R; r++) EACH_QUARTER sum[r][i] = no_sums();
    for (int step = 0; step < 4; step++) EACH_QUARTER {
            const uint8x16_t both = vld1q_u8(w + 64 * step + 16 * i);
            const int8x16_t low = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(both, vdupq_n_u8(15))), vdupq_n_s8(8));
            const int8x16_t high = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(both, 4)), vdupq_n_s8(8));
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
