/* 16 lanes in portable C: what the other instruction sets must equal, lane for lane. */
#include "base.h"

#define ISA scalar
enum { TILE_ROWS = 2, TILE_PANELS = 1, GEMV_PANELS = 1 };

typedef struct {
    float lane[16];
} v16;

#define EACH_LANE for (int l = 0; l < 16; l++)

static inline uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* float16 to float32, exact: subnormals are scaled by a multiplication, infinities and NaN keep their payload. */
static inline float widen_half(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | (rest & 0x3ff) << 13 | (rest > 0x7c00 ? 0x400000 : 0));
    if (rest < 0x400) return float_of(sign | bits_of((float)rest * 0x1p-24f));
    return float_of(sign | ((rest << 13) + 0x38000000));
}

/* float32 to float16, to nearest, ties to even. */
static inline uint16_t narrow_to_half(float x) {
    const uint32_t bits = bits_of(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return (uint16_t)(sign | 0x7e00 | (rest >> 13 & 0x3ff)); /* NaN */
    if (rest >= 0x477ff000) return (uint16_t)(sign | 0x7c00);                       /* rounds to infinity */
    if (rest < 0x38800000) { /* subnormal: adding 0.5 leaves the rounded multiple of 2^-24 in the low bits */
        return (uint16_t)(sign | (bits_of(float_of(rest) + 0.5f) - 0x3f000000));
    }
    return (uint16_t)(sign | ((rest - 0x38000000 + 0xfff + (rest >> 13 & 1)) >> 13));
}

static inline v16 v16_set1(float x) {
    v16 r;
    EACH_LANE r.lane[l] = x;
    return r;
}
static inline v16 v16_load(const float *p) {
    v16 r;
    memcpy(&r, p, sizeof r);
    return r;
}
static inline void v16_store(float *p, v16 a) { memcpy(p, &a, sizeof a); }
static inline v16 v16_load_f16(const uint16_t *p) {
    v16 r;
    EACH_LANE r.lane[l] = widen_half(p[l]);
    return r;
}
static inline v16 v16_load_bf16(const uint16_t *p) {
    v16 r;
    EACH_LANE r.lane[l] = float_of((uint32_t)p[l] << 16);
    return r;
}
static inline void v16_store_f16(uint16_t *p, v16 a) { EACH_LANE p[l] = narrow_to_half(a.lane[l]); }

#define LANEWISE(name, expression)         \
    static inline v16 name(v16 a, v16 b) { \
        v16 r;                             \
        EACH_LANE {                        \
            const float x = a.lane[l];     \
            const float y = b.lane[l];     \
            r.lane[l] = (expression);      \
        }                                  \
        return r;                          \
    }
LANEWISE(v16_add, x + y)
LANEWISE(v16_sub, x - y)
LANEWISE(v16_mul, x *y)
LANEWISE(v16_div, x / y)
LANEWISE(v16_max, x > y ? x : y) /* y if either is NaN */
LANEWISE(v16_min, x < y ? x : y) /* y if either is NaN */
#undef LANEWISE

static inline v16 v16_sqrt(v16 a) {
    v16 r;
    EACH_LANE r.lane[l] = sqrtf(a.lane[l]);
    return r;
}
static inline v16 v16_of_bytes(const int8_t *p) {
    v16 r;
    EACH_LANE r.lane[l] = (float)p[l];
    return r;
}
/* Integers of few bits in 16 words: `flip` is applied to a word, which is shifted up and, with its sign, down. */
static inline v16 v16_of_fields(const char *words, uint32_t flip, int up, int down) {
    v16 r;
    EACH_LANE r.lane[l] = (float)((int32_t)(((uint32_t)load_int(words + 4 * l) ^ flip) << up) >> down);
    return r;
}
/* 16 times 16 lanes: lane j of number i and lane i of number j change places. */
static inline void v16_turn(v16 *square) {
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < i; j++) {
            const float x = square[i].lane[j];
            square[i].lane[j] = square[j].lane[i], square[j].lane[i] = x;
        }
}
static inline v16 v16_fma(v16 a, v16 b, v16 c) { /* a b + c, rounded once */
    v16 r;
    EACH_LANE r.lane[l] = fmaf(a.lane[l], b.lane[l], c.lane[l]);
    return r;
}
static inline v16 v16_swap_pairs(v16 a) {
    v16 r;
    EACH_LANE r.lane[l] = a.lane[l ^ 1];
    return r;
}
static inline v16 v16_zero_below(v16 a, v16 x, v16 limit) { /* 0 where x < limit, else a */
    v16 r;
    EACH_LANE r.lane[l] = x.lane[l] < limit.lane[l] ? 0.0f : a.lane[l];
    return r;
}
static inline v16 v16_add_exponent(v16 a, v16 n) { /* adds the low bits of n's pattern to a's exponent */
    v16 r;
    EACH_LANE r.lane[l] = float_of(bits_of(a.lane[l]) + (bits_of(n.lane[l]) << 23));
    return r;
}
static inline void v16_store_low_bytes(int8_t *p, v16 a) { EACH_LANE p[l] = (int8_t)(bits_of(a.lane[l]) & 0xff); }

enum { TILE_QUANTISED_ROWS = 2 };

/* Adds the products of a quad of every lane. */
static inline void add_quad(int32_t *sum, const int8_t *w, const char *x) {
    int8_t four[4];
    memcpy(four, x, 4);
    EACH_LANE for (int i = 0; i < 4; i++) sum[l] += w[4 * l + i] * four[i];
}

static inline void dots_fields(const uint8_t *w, const char *x, int64_t height, const int bits, const int R,
                               v16 *dots) {
    for (int r = 0; r < R; r++) {
        int32_t sum[16] = {0};
        for (int quad = 0; quad < 8; quad++) {
            int8_t fields[64];
            for (int i = 0; i < 64; i++) {
                const int both = bits == 3 && quad >= 6 ? last_step(w + i) : w[quad / 2 * 64 + i];
                fields[i] = (int8_t)((both >> (quad % 2 * bits) & ((1 << bits) - 1)) - (1 << bits) / 2);
            }
            add_quad(sum, fields, x + 4 * (quad * height + r));
        }
        EACH_LANE dots[r].lane[l] = (float)sum[l];
    }
}

static inline void dots_q8(const uint8_t *w, const char *x, int64_t height, const int R, v16 *dots) {
    for (int r = 0; r < R; r++) {
        int32_t sum[16] = {0};
        for (int quad = 0; quad < 8; quad++) add_quad(sum, (const int8_t *)w + 64 * quad, x + 4 * (quad * height + r));
        EACH_LANE dots[r].lane[l] = (float)sum[l];
    }
}
