/* 16 lanes in one ZMM register. AVX-512 F, BW, DQ, VL. The dot products of bytes differ: see avx512.h and
 * avx512vnni.h. */
#include <immintrin.h>
#include "base.h"

enum { TILE_ROWS = 8, TILE_PANELS = 3, GEMV_PANELS = 4 }; /* 24 accumulators of 32 registers */

typedef __m512 v16;

static inline v16 v16_set1(float x) { return _mm512_set1_ps(x); }
static inline v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v16_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
static inline v16 v16_load_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
static inline v16 v16_of_bytes(const int8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
/* Integers of few bits in 16 words: `flip` is applied to a word, which is shifted up and, with its sign, down. */
static inline v16 v16_of_fields(const char *words, uint32_t flip, int up, int down) {
    const __m512i flipped = _mm512_xor_epi32(_mm512_loadu_si512(words), _mm512_set1_epi32((int32_t)flip));
    return _mm512_cvtepi32_ps(
        _mm512_srav_epi32(_mm512_sllv_epi32(flipped, _mm512_set1_epi32(up)), _mm512_set1_epi32(down)));
}
/* 16 times 16 lanes: lane j of number i and lane i of number j change places. */
static inline void v16_turn(v16 *square) {
    v16 pairs[16], fours[16];
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_ps(square[i], square[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_ps(square[i], square[i + 1]);
    }
#define WORDS(half, a, b) _mm512_castpd_ps(_mm512_unpack##half##_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
    for (int i = 0; i < 16; i += 4) { /* number 4 i + j: four rows of column j of each quarter */
        fours[i] = WORDS(lo, pairs[i], pairs[i + 2]), fours[i + 1] = WORDS(hi, pairs[i], pairs[i + 2]);
        fours[i + 2] = WORDS(lo, pairs[i + 1], pairs[i + 3]), fours[i + 3] = WORDS(hi, pairs[i + 1], pairs[i + 3]);
    }
#undef WORDS
    for (int j = 0; j < 4; j++) {
        const v16 a = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0x44),
                  b = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0xee);
        const v16 c = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0x44),
                  d = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0xee);
        square[j] = _mm512_shuffle_f32x4(a, c, 0x88), square[4 + j] = _mm512_shuffle_f32x4(a, c, 0xdd);
        square[8 + j] = _mm512_shuffle_f32x4(b, d, 0x88), square[12 + j] = _mm512_shuffle_f32x4(b, d, 0xdd);
    }
}
static inline v16 v16_load_bf16(const uint16_t *p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
static inline void v16_store_f16(uint16_t *p, v16 a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
static inline v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
static inline v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
static inline v16 v16_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
static inline v16 v16_sqrt(v16 a) { return _mm512_sqrt_ps(a); }
static inline v16 v16_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
static inline v16 v16_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
static inline v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
static inline v16 v16_swap_pairs(v16 a) { return _mm512_permute_ps(a, 0xb1); }
static inline v16 v16_zero_below(v16 a, v16 x, v16 limit) {
    return _mm512_mask_mov_ps(a, _mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), _mm512_setzero_ps());
}
static inline v16 v16_add_exponent(v16 a, v16 n) {
    return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_slli_epi32(_mm512_castps_si512(n), 23)));
}
static inline void v16_store_low_bytes(int8_t *p, v16 a) {
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(_mm512_castps_si512(a)));
}
