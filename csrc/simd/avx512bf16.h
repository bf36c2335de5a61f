/* The 16 lanes of AVX-512 with its dot products of bytes and of bfloat16. AVX-512 F, BW, DQ, VL, VNNI, BF16. */
#include "avx512vnni.h"
#undef ISA
#define ISA avx512bf16

/* A lane holds two bfloat16, the even input's in its lower half; see common.h. */
#define PAIR_STEP 2

/* sum + w x of both inputs: a fused multiply-add of the odd ones, then of the even ones, if no number is subnormal. */
static inline v16 v16_add_pairs(v16 sum, v16 w, v16 x) {
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_castps_si512(w), (__m512bh)_mm512_castps_si512(x));
}

/* Pairs from [2][16] bfloat16. */
static inline __m512i interleave(__m512i rows) {
    const __m512i upper = _mm512_slli_epi32(_mm512_set1_epi32(16), 16);
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i from = _mm512_or_si512(_mm512_or_si512(lane, _mm512_slli_epi32(lane, 16)), upper);
    return _mm512_permutexvar_epi16(from, rows);
}

static inline v16 v16_load_pairs(const uint16_t *rows) { return _mm512_castsi512_ps(interleave(_mm512_loadu_si512(rows))); }
static inline v16 v16_zero_small_pairs(v16 w) {
    const __m512i pairs = _mm512_castps_si512(w);
    const __mmask32 kept = _mm512_cmpge_epu16_mask(_mm512_add_epi16(pairs, pairs), _mm512_set1_epi16(2 * 0x2380));
    return _mm512_castsi512_ps(_mm512_maskz_mov_epi16(kept, pairs));
}

static inline v16 zero_if_small(v16 x) {
    const __m512i size = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
    return _mm512_maskz_mov_ps(_mm512_cmpge_epu32_mask(size, _mm512_set1_epi32(0x23800000)), x);
}

/* Pairs of neighbours in 32 numbers, each rounded to bfloat16, or 0 below 2^-56. */
static inline v16 v16_pair_neighbours(v16 first, v16 second) {
    return _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(zero_if_small(second), zero_if_small(first)));
}

/* The same for the numbers in each lane. */
static inline v16 v16_pair_lanes(v16 even, v16 odd) {
    return _mm512_castsi512_ps(interleave(_mm512_castps_si512(v16_pair_neighbours(even, odd))));
}
