/* The 16 lanes of AVX2, whose dot products of bytes take several instructions: see avx2_dots.h. AVX2, FMA, F16C. */
#include "avx2_lanes.h"

#define ISA avx2
static inline v16 v16_of_integers(__m256i lo, __m256i hi) {
    return v16_of(_mm256_cvtepi32_ps(lo), _mm256_cvtepi32_ps(hi));
}

/* Rows of a tile in q8_pieces.h: 8 accumulators and as many factors in 16 registers. */
#define TILE_WIDE_ROWS 4
/* 16 lanes of integers. */
typedef struct {
    __m256i lo, hi;
} words;
/* The compiler neither reorders additions nor reads a number again instead of keeping it. */
#define WORDS_IN_ORDER(sum) __asm__("" : "+v"(sum.lo), "+v"(sum.hi))

static inline words words_from(__m256i lo, __m256i hi) {
    words r = {lo, hi};
    return r;
}
static inline words words_load(const char *p) {
    return words_from(_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 32)));
}
static inline words words_spread(int32_t word) { return words_from(_mm256_set1_epi32(word), _mm256_set1_epi32(word)); }
static inline words words_add(words a, words b) {
    return words_from(_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi));
}
static inline words shorts_add(words a, words b) {
    return words_from(_mm256_add_epi16(a.lo, b.lo), _mm256_add_epi16(a.hi, b.hi));
}
static inline words shorts_multiply(words a, words b) {
    return words_from(_mm256_madd_epi16(a.lo, b.lo), _mm256_madd_epi16(a.hi, b.hi));
}
static inline v16 v16_of_bits(words a) { return v16_of(_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)); }

#include "avx2_dots.h"
