/* 16 lanes in two YMM registers. AVX2, FMA, F16C. avx2.h and avxvnni.h add dot products of bytes. */
#include <immintrin.h>
#include "base.h"

enum { TILE_ROWS = 6, TILE_PANELS = 1, GEMV_PANELS = 2 }; /* 12 accumulators of 16 registers */

typedef struct {
    __m256 lo, hi;
} v16;

static inline v16 v16_of(__m256 lo, __m256 hi) {
    v16 r = {lo, hi};
    return r;
}
static inline v16 v16_set1(float x) { return v16_of(_mm256_set1_ps(x), _mm256_set1_ps(x)); }
static inline v16 v16_load(const float *p) { return v16_of(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)); }
static inline void v16_store(float *p, v16 a) { _mm256_storeu_ps(p, a.lo), _mm256_storeu_ps(p + 8, a.hi); }
static inline v16 v16_load_f16(const uint16_t *p) {
    return v16_of(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                  _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))));
}
static inline __m256 widen_bf16(const uint16_t *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
static inline v16 v16_load_bf16(const uint16_t *p) { return v16_of(widen_bf16(p), widen_bf16(p + 8)); }
static inline void v16_store_f16(uint16_t *p, v16 a) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
static inline __m256 widen_bytes(const int8_t *p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
static inline v16 v16_of_bytes(const int8_t *p) { return v16_of(widen_bytes(p), widen_bytes(p + 8)); }
static inline __m256 fields(const char *words, uint32_t flip, int up, int down) {
    const __m256i flipped =
        _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)words), _mm256_set1_epi32((int32_t)flip));
    return _mm256_cvtepi32_ps(
        _mm256_srav_epi32(_mm256_sllv_epi32(flipped, _mm256_set1_epi32(up)), _mm256_set1_epi32(down)));
}
/* See avx512_lanes.h. */
static inline v16 v16_of_fields(const char *words, uint32_t flip, int up, int down) {
    return v16_of(fields(words, flip, up, down), fields(words + 32, flip, up, down));
}
static inline void turn_eight(__m256 *square) {
    __m256 pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_ps(square[i], square[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(square[i], square[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = 0; j < 2; j++) {
            fours[i + 2 * j] = _mm256_shuffle_ps(pairs[i + j], pairs[i + 2 + j], 0x44);
            fours[i + 2 * j + 1] = _mm256_shuffle_ps(pairs[i + j], pairs[i + 2 + j], 0xee);
        }
    for (int j = 0; j < 4; j++) {
        square[j] = _mm256_permute2f128_ps(fours[j], fours[4 + j], 0x20);
        square[4 + j] = _mm256_permute2f128_ps(fours[j], fours[4 + j], 0x31);
    }
}
static inline void v16_turn(v16 *square) {
    for (int i = 0; i < 16; i += 8)
        for (int j = 0; j <= i; j += 8) {
            __m256 a[8], b[8];
            for (int k = 0; k < 8; k++)
                a[k] = j ? square[i + k].hi : square[i + k].lo, b[k] = i ? square[j + k].hi : square[j + k].lo;
            turn_eight(a), turn_eight(b);
            for (int k = 0; k < 8; k++) {
                if (i) square[j + k].hi = a[k];
                else square[j + k].lo = a[k];
                if (j) square[i + k].hi = b[k];
                else square[i + k].lo = b[k];
            }
        }
}
static inline v16 v16_add(v16 a, v16 b) { return v16_of(_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)); }
static inline v16 v16_sub(v16 a, v16 b) { return v16_of(_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)); }
static inline v16 v16_mul(v16 a, v16 b) { return v16_of(_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)); }
static inline v16 v16_div(v16 a, v16 b) { return v16_of(_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)); }
static inline v16 v16_sqrt(v16 a) { return v16_of(_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)); }
static inline v16 v16_max(v16 a, v16 b) { return v16_of(_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)); }
static inline v16 v16_min(v16 a, v16 b) { return v16_of(_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)); }
static inline v16 v16_fma(v16 a, v16 b, v16 c) {
    return v16_of(_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi));
}
static inline v16 v16_swap_pairs(v16 a) { return v16_of(_mm256_permute_ps(a.lo, 0xb1), _mm256_permute_ps(a.hi, 0xb1)); }
static inline v16 v16_zero_below(v16 a, v16 x, v16 limit) {
    return v16_of(_mm256_andnot_ps(_mm256_cmp_ps(x.lo, limit.lo, _CMP_LT_OQ), a.lo),
                  _mm256_andnot_ps(_mm256_cmp_ps(x.hi, limit.hi, _CMP_LT_OQ), a.hi));
}
static inline __m256 add_exponent(__m256 a, __m256 n) {
    return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_slli_epi32(_mm256_castps_si256(n), 23)));
}
static inline v16 v16_add_exponent(v16 a, v16 n) { return v16_of(add_exponent(a.lo, n.lo), add_exponent(a.hi, n.hi)); }
static inline __m128i low_bytes(__m256 a) { /* in the low eight bytes */
    const __m256i picked = _mm256_shuffle_epi8(_mm256_castps_si256(a), _mm256_set1_epi32(0x0c080400));
    return _mm_unpacklo_epi32(_mm256_castsi256_si128(picked), _mm256_extracti128_si256(picked, 1));
}
static inline void v16_store_low_bytes(int8_t *p, v16 a) {
    _mm_storeu_si128((__m128i *)p, _mm_unpacklo_epi64(low_bytes(a.lo), low_bytes(a.hi)));
}
