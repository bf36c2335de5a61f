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

static inline v16 v16_load_pairs(const uint16_t *rows) {
    return _mm512_castsi512_ps(interleave(_mm512_loadu_si512(rows)));
}

/* Pairs of numbers, those smaller than a bfloat16 given by its bits as 0. */
static inline v16 v16_zero_pairs_below(v16 pairs, const uint32_t least) {
    const __m512i numbers = _mm512_castps_si512(pairs);
    const __m512i twice = _mm512_add_epi16(numbers, numbers); /* without the sign */
    const __mmask32 kept = _mm512_cmpge_epu16_mask(twice, _mm512_set1_epi16((short)(2 * least)));
    return _mm512_castsi512_ps(_mm512_maskz_mov_epi16(kept, numbers));
}

static inline v16 v16_zero_small_pairs(v16 w) { return v16_zero_pairs_below(w, 0x2380); }

/* Pairs of neighbours in 32 numbers, rounded to bfloat16; those then smaller than `least` become 0. */
static inline v16 v16_round_neighbours(v16 first, v16 second, const uint32_t least) {
    return v16_zero_pairs_below(_mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(second, first)), least);
}

/* The same for pairs of the numbers in each lane. */
static inline v16 v16_round_pairs(v16 even, v16 odd, const uint32_t least) {
    return v16_zero_pairs_below(_mm512_castsi512_ps(interleave((__m512i)_mm512_cvtne2ps_pbh(odd, even))), least);
}

/* 16 bfloat16 from each of two places, one after the other. */
static inline v16 v16_join_bfloats(const uint16_t *first, const uint16_t *second) {
    const __m512i one = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)first));
    return _mm512_castsi512_ps(_mm512_inserti64x4(one, _mm256_loadu_si256((const __m256i *)second), 1));
}
