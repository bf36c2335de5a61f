/* 16 lanes in four Q registers. The dot products of bytes differ: see neon.h and neondot.h. */
#include <arm_neon.h>
#include "base.h"

enum { TILE_ROWS = 4, TILE_PANELS = 1, GEMV_PANELS = 2 }; /* 16 accumulators of 32 registers */

typedef float32x4x4_t v16;

#define EACH_QUARTER for (int i = 0; i < 4; i++)

static inline v16 v16_set1(float x) {
    v16 r;
    EACH_QUARTER r.val[i] = vdupq_n_f32(x);
    return r;
}
static inline v16 v16_load(const float *p) {
    v16 r;
    EACH_QUARTER r.val[i] = vld1q_f32(p + 4 * i);
    return r;
}
static inline void v16_store(float *p, v16 a) { EACH_QUARTER vst1q_f32(p + 4 * i, a.val[i]); }
static inline v16 v16_load_f16(const uint16_t *p) {
    v16 r;
    EACH_QUARTER r.val[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
    return r;
}
static inline v16 v16_load_bf16(const uint16_t *p) {
    v16 r;
    EACH_QUARTER r.val[i] = vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16));
    return r;
}
static inline void v16_store_f16(uint16_t *p, v16 a) {
    EACH_QUARTER vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.val[i])));
}

#define LANEWISE(name, expression)          \
    static inline v16 name(v16 a, v16 b) {  \
        v16 r;                              \
        EACH_QUARTER {                      \
            const float32x4_t x = a.val[i]; \
            const float32x4_t y = b.val[i]; \
            r.val[i] = (expression);        \
        }                                   \
        return r;                           \
    }
LANEWISE(v16_add, vaddq_f32(x, y))
LANEWISE(v16_sub, vsubq_f32(x, y))
LANEWISE(v16_mul, vmulq_f32(x, y))
LANEWISE(v16_div, vdivq_f32(x, y))
LANEWISE(v16_max, vbslq_f32(vcgtq_f32(x, y), x, y)) /* y if either is NaN, unlike vmaxq */
LANEWISE(v16_min, vbslq_f32(vcltq_f32(x, y), x, y))
#undef LANEWISE

static inline v16 v16_sqrt(v16 a) {
    v16 r;
    EACH_QUARTER r.val[i] = vsqrtq_f32(a.val[i]);
    return r;
}
static inline v16 v16_of_bytes(const int8_t *p) {
    const int8x16_t bytes = vld1q_s8(p);
    const int16x8_t lo = vmovl_s8(vget_low_s8(bytes)), hi = vmovl_high_s8(bytes);
    v16 r;
    r.val[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(lo))), r.val[1] = vcvtq_f32_s32(vmovl_high_s16(lo));
    r.val[2] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(hi))), r.val[3] = vcvtq_f32_s32(vmovl_high_s16(hi));
    return r;
}
/* Integers of few bits in 16 words: `flip` is applied to a word, which is shifted up and, with its sign, down. */
static inline v16 v16_of_fields(const char *words, uint32_t flip, int up, int down) {
    v16 r;
    EACH_QUARTER {
        const uint32x4_t flipped =
            veorq_u32(vreinterpretq_u32_u8(vld1q_u8((const uint8_t *)words + 16 * i)), vdupq_n_u32(flip));
        const int32x4_t shifted = vreinterpretq_s32_u32(vshlq_u32(flipped, vdupq_n_s32(up)));
        r.val[i] = vcvtq_f32_s32(vshlq_s32(shifted, vdupq_n_s32(-down)));
    }
    return r;
}
static inline void turn_four(float32x4_t *four) {
    const float64x2_t a = vreinterpretq_f64_f32(vtrn1q_f32(four[0], four[1])),
                      b = vreinterpretq_f64_f32(vtrn2q_f32(four[0], four[1])),
                      c = vreinterpretq_f64_f32(vtrn1q_f32(four[2], four[3])),
                      d = vreinterpretq_f64_f32(vtrn2q_f32(four[2], four[3]));
    four[0] = vreinterpretq_f32_f64(vtrn1q_f64(a, c)), four[1] = vreinterpretq_f32_f64(vtrn1q_f64(b, d));
    four[2] = vreinterpretq_f32_f64(vtrn2q_f64(a, c)), four[3] = vreinterpretq_f32_f64(vtrn2q_f64(b, d));
}
/* 16 times 16 lanes: lane j of number i and lane i of number j change places. */
static inline void v16_turn(v16 *square) {
    for (int i = 0; i < 4; i++)
        for (int j = 0; j <= i; j++) {
            float32x4_t a[4], b[4];
            for (int k = 0; k < 4; k++) a[k] = square[4 * i + k].val[j], b[k] = square[4 * j + k].val[i];
            turn_four(a), turn_four(b);
            for (int k = 0; k < 4; k++) square[4 * j + k].val[i] = a[k], square[4 * i + k].val[j] = b[k];
        }
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    v16 r;
    EACH_QUARTER r.val[i] = vfmaq_f32(c.val[i], a.val[i], b.val[i]);
    return r;
}
static inline v16 v16_swap_pairs(v16 a) {
    v16 r;
    EACH_QUARTER r.val[i] = vrev64q_f32(a.val[i]);
    return r;
}
static inline v16 v16_zero_below(v16 a, v16 x, v16 limit) {
    v16 r;
    EACH_QUARTER r.val[i] = vbslq_f32(vcltq_f32(x.val[i], limit.val[i]), vdupq_n_f32(0.0f), a.val[i]);
    return r;
}
static inline v16 v16_add_exponent(v16 a, v16 n) {
    v16 r;
    EACH_QUARTER {
        const uint32x4_t shifted = vshlq_n_u32(vreinterpretq_u32_f32(n.val[i]), 23);
        r.val[i] = vreinterpretq_f32_u32(vaddq_u32(vreinterpretq_u32_f32(a.val[i]), shifted));
    }
    return r;
}
static inline void v16_store_low_bytes(int8_t *p, v16 a) {
    const uint16x8_t lo = vuzp1q_u16(vreinterpretq_u16_f32(a.val[0]), vreinterpretq_u16_f32(a.val[1]));
    const uint16x8_t hi = vuzp1q_u16(vreinterpretq_u16_f32(a.val[2]), vreinterpretq_u16_f32(a.val[3]));
    vst1q_s8(p, vuzp1q_s8(vreinterpretq_s8_u16(lo), vreinterpretq_s8_u16(hi)));
}

/* A row's quad, for four lanes at once. */
ALWAYS_INLINE int8x16_t spread(const char *x) { return vreinterpretq_s8_s32(vdupq_n_s32(load_int(x))); }
