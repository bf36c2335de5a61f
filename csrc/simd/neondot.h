/* NEON with dot products of bytes, one instruction a quad (ARMv8.2 DotProd). */
#include "neon_lanes.h"

#define ISA neondot

typedef int32x4_t quad_sums; /* of four lanes */

ALWAYS_INLINE quad_sums no_sums(void) { return vdupq_n_s32(0); }
ALWAYS_INLINE quad_sums add_quad(quad_sums sum, int8x16_t w, int8x16_t x) { return vdotq_s32(sum, w, x); }
ALWAYS_INLINE int32x4_t lane_sums(quad_sums sum) { return sum; }

#include "neon_dots.h"
