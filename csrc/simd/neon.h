/* NEON as every aarch64 has it: products of bytes are widened to 16 bits and added up in pairs. */
#include "neon_lanes.h"

#define ISA neon

typedef int32x4x2_t quad_sums; /* of four lanes: two halves of each lane's quad side by side */

ALWAYS_INLINE quad_sums no_sums(void) { return (quad_sums){{vdupq_n_s32(0), vdupq_n_s32(0)}}; }
ALWAYS_INLINE quad_sums add_quad(quad_sums sum, int8x16_t w, int8x16_t x) {
    sum.val[0] = vpadalq_s16(sum.val[0], vmull_s8(vget_low_s8(w), vget_low_s8(x)));
    sum.val[1] = vpadalq_s16(sum.val[1], vmull_high_s8(w, x));
    return sum;
}
ALWAYS_INLINE int32x4_t lane_sums(quad_sums sum) { return vpaddq_s32(sum.val[0], sum.val[1]); }

#include "neon_dots.h"
