/* The 16 lanes of AVX-512, for processors whose dot products of bytes are still those of AVX2. AVX-512 F, BW, DQ,
 * VL. */
#include "avx512_lanes.h"

#define ISA avx512
static inline v16 v16_of_integers(__m256i lo, __m256i hi) {
    return _mm512_cvtepi32_ps(_mm512_inserti64x4(_mm512_castsi256_si512(lo), hi, 1));
}

#define TILE_WIDE_ROWS 12 /* in q8_pieces.h */
/* 16 lanes of integers. */
typedef __m512i words;
/* The compiler neither reorders additions nor reads a number again instead of keeping it. */
#define WORDS_IN_ORDER(sum) __asm__("" : "+v"(sum))

static inline words words_load(const char *p) { return _mm512_loadu_si512(p); }
static inline words words_spread(int32_t word) { return _mm512_set1_epi32(word); }
static inline words words_add(words a, words b) { return _mm512_add_epi32(a, b); }
static inline words shorts_add(words a, words b) { return _mm512_add_epi16(a, b); }
static inline words shorts_multiply(words a, words b) { return _mm512_madd_epi16(a, b); }
static inline v16 v16_of_bits(words a) { return _mm512_castsi512_ps(a); }

#include "avx2_dots.h"
