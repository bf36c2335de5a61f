/* Dot products of bytes in 256-bit registers: AVX2 multiplies an unsigned byte with a signed one and adds pairs in 16
 * bits. */
#include "ymm_steps.h"

enum { TILE_QUANTISED_ROWS = 5 };

/* Sums as they are written: a compiler that reorders integer additions needs more registers than there are. */
#define IN_ORDER(sum) __asm__("" : "+v"(sum))

/* Fields are 0 .. 15 at most, so that the eight products of a lane's half block stay below 8 * 2 * 15 * 127 < 2^15 and
 * are widened once. */
ALWAYS_INLINE void dots_fields(const uint8_t *w, const char *x, int64_t height, const int bits, const int R,
                               v16 *dots) {
    const __m256i field = _mm256_set1_epi8((char)((1 << bits) - 1)), ones = _mm256_set1_epi16(1);
    __m256i lo[TILE_QUANTISED_ROWS], hi[TILE_QUANTISED_ROWS];
#pragma GCC unroll 5
    for (int r = 0; r < R; r++) lo[r] = hi[r] = _mm256_setzero_si256();
#pragma GCC unroll 4
    for (int step = 0; step < 4; step++) {
        const __m256i both[2] = {load_step(w, step, bits), load_step(w + 32, step, bits)};
#pragma GCC unroll 2
        for (int half = 0; half < 2; half++) {
            const __m256i w_lo = _mm256_and_si256(half ? _mm256_srli_epi16(both[0], bits) : both[0], field);
            const __m256i w_hi = _mm256_and_si256(half ? _mm256_srli_epi16(both[1], bits) : both[1], field);
#pragma GCC unroll 5
            for (int r = 0; r < R; r++) {
                const __m256i xr = _mm256_set1_epi32(load_int(x + 4 * ((2 * step + half) * height + r)));
                lo[r] = _mm256_add_epi16(lo[r], _mm256_maddubs_epi16(w_lo, xr));
                IN_ORDER(lo[r]);
                hi[r] = _mm256_add_epi16(hi[r], _mm256_maddubs_epi16(w_hi, xr));
                IN_ORDER(hi[r]);
            }
        }
    }
#pragma GCC unroll 5
    for (int r = 0; r < R; r++) {
        const __m256i offset = _mm256_set1_epi32(load_int(x + 36 * height + 4 * r) >> (4 - bits));
        dots[r] = v16_of_integers(_mm256_add_epi32(_mm256_madd_epi16(lo[r], ones), offset),
                                  _mm256_add_epi32(_mm256_madd_epi16(hi[r], ones), offset));
    }
}

/* Bytes of either sign: the weight's sign moves to the activation, which leaves 2 * 128 * 127 < 2^15 in 16 bits. */
static inline __m256i dot_signed(__m256i sum, __m256i w, __m256i size, __m256i x, __m256i ones) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_sign_epi8(x, w)), ones));
}

static inline void dots_q8(const uint8_t *w, const char *x, int64_t height, const int R, v16 *dots) {
    const __m256i ones = _mm256_set1_epi16(1);
    __m256i lo[TILE_QUANTISED_ROWS], hi[TILE_QUANTISED_ROWS];
#pragma GCC unroll 5
    for (int r = 0; r < R; r++) lo[r] = hi[r] = _mm256_setzero_si256();
#pragma GCC unroll 2
    for (int quad = 0; quad < 8; quad++) {
        const __m256i w_lo = _mm256_loadu_si256((const __m256i *)(w + 64 * quad)), size_lo = _mm256_abs_epi8(w_lo);
        const __m256i w_hi = _mm256_loadu_si256((const __m256i *)(w + 64 * quad + 32)), size_hi = _mm256_abs_epi8(w_hi);
#pragma GCC unroll 5
        for (int r = 0; r < R; r++) {
            const __m256i xr = _mm256_set1_epi32(load_int(x + 4 * (quad * height + r)));
            lo[r] = dot_signed(lo[r], w_lo, size_lo, xr, ones);
            hi[r] = dot_signed(hi[r], w_hi, size_hi, xr, ones);
        }
    }
#pragma GCC unroll 5
    for (int r = 0; r < R; r++) dots[r] = v16_of_integers(lo[r], hi[r]);
}
