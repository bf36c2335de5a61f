/* The 16 lanes of AVX-512, for processors whose dot products of bytes are still those of AVX2. AVX-512 F, BW, DQ, VL. */
#include "avx512_lanes.h"

#define ISA avx512
static inline v16 v16_of_integers(__m256i lo, __m256i hi) {
    return _mm512_cvtepi32_ps(_mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1));
}
#include "avx2_dots.h"
