/* The 16 lanes of AVX-512 with its dot products of bytes. AVX-512 F, BW, DQ, VL, VNNI. */
#include "avx512_lanes.h"

#define ISA avx512vnni
enum { TILE_QUANTISED_ROWS = 16 };

/* Four products of an unsigned and a signed byte a lane, added up in 32 bits. Weights are made unsigned by an offset,
 * which the records' sums take off again before the first product. */
static inline __m512i dot(__m512i sum, __m512i w, const char *x) {
    return _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(load_int(x)));
}

/* A step: two weights in each byte, the second `bits` bits above the first. What lies above them is anything. */
static inline __m512i load_step(const uint8_t *w, int step, const int bits) {
    if (bits == 4 || step < 3) return _mm512_loadu_si512(w + 64 * step);
    const __m512i first = _mm512_srli_epi16(_mm512_loadu_si512(w), 6),
                  second = _mm512_srli_epi16(_mm512_loadu_si512(w + 64), 4);
    const __m512i third = _mm512_srli_epi16(_mm512_loadu_si512(w + 128), 2);
    enum { CHOOSE = 0xca }; /* the second where the first has ones, the third elsewhere */
    const __m512i later = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x0c), second, third, CHOOSE);
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x03), first, later, CHOOSE);
}

ALWAYS_INLINE void dots_fields(const uint8_t *w, const char *x, int64_t height, const int bits, const int R,
                               v16 *dots) {
    const __m512i field = _mm512_set1_epi8((char)((1 << bits) - 1));
    __m512i sum[TILE_QUANTISED_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) sum[r] = _mm512_set1_epi32(load_int(x + 36 * height + 4 * r) >> (4 - bits));
#pragma GCC unroll 4
    for (int step = 0; step < 4; step++) {
        const __m512i both = load_step(w, step, bits);
        const __m512i low = _mm512_and_si512(both, field),
                      high =
                          _mm512_and_si512(bits == 4 ? _mm512_srli_epi16(both, 4) : _mm512_srli_epi16(both, 3), field);
        const char *at = x + 8 * step * height;
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) sum[r] = dot(sum[r], low, at + 4 * r);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) sum[r] = dot(sum[r], high, at + 4 * (height + r));
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) dots[r] = _mm512_cvtepi32_ps(sum[r]);
}

static inline void dots_q8(const uint8_t *w, const char *x, int64_t height, const int R, v16 *dots) {
    const __m512i sign = _mm512_set1_epi8((char)0x80); /* adds 128 to a signed byte */
    __m512i sum[TILE_QUANTISED_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) sum[r] = _mm512_slli_epi32(_mm512_set1_epi32(load_int(x + 36 * height + 4 * r)), 4);
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; quad++) {
        const __m512i weights = _mm512_xor_si512(_mm512_loadu_si512(w + 64 * quad), sign);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) sum[r] = dot(sum[r], weights, x + 4 * (quad * height + r));
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) dots[r] = _mm512_cvtepi32_ps(sum[r]);
}
