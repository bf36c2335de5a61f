/* The 16 lanes of AVX2, with an instruction for dot products of bytes. AVX2, FMA, F16C, AVX-VNNI. */
#include "avx2_lanes.h"
#include "ymm_steps.h"

#define ISA avxvnni
enum { TILE_QUANTISED_ROWS = 6 }; /* 12 accumulators of 16 registers */

/* Four products of an unsigned and a signed byte a lane, added up in 32 bits. Compiled without AVX-VNNI, for tests on
 * processors that only have AVX-512 VNNI, this is the same instruction in AVX-512's encoding. */
static inline __m256i dot(__m256i sum, __m256i w, __m256i x) {
#ifdef __AVXVNNI__
    return _mm256_dpbusd_avx_epi32(sum, w, x);
#else
    return _mm256_dpbusd_epi32(sum, w, x);
#endif
}

/* Sums of R rows, which start at a multiple of the records' sums: what it takes to make the weights unsigned is taken
 * off again. */
typedef struct {
    __m256i lo, hi;
} words;
static inline void start_dots(const char *x, int64_t height, const int bits, const int R, words *sum) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        const int32_t sums = load_int(x + 36 * height + 4 * r);
        sum[r].lo = sum[r].hi = _mm256_set1_epi32(bits == 8 ? sums * 16 : sums >> (4 - bits));
    }
}
static inline void add_dots(__m256i lo, __m256i hi, const char *x, const int R, words *sum) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        const __m256i four = _mm256_set1_epi32(load_int(x + 4 * r));
        sum[r].lo = dot(sum[r].lo, lo, four), sum[r].hi = dot(sum[r].hi, hi, four);
    }
}
static inline void end_dots(const words *sum, const int R, v16 *dots) {
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) dots[r] = v16_of(_mm256_cvtepi32_ps(sum[r].lo), _mm256_cvtepi32_ps(sum[r].hi));
}
ALWAYS_INLINE void dots_fields(const uint8_t *w, const char *x, int64_t height, const int bits, const int R,
                               v16 *dots) {
    const __m256i field = _mm256_set1_epi8((char)((1 << bits) - 1));
    words sum[TILE_QUANTISED_ROWS];
    start_dots(x, height, bits, R, sum);
#pragma GCC unroll 4
    for (int step = 0; step < 4; step++) {
        const __m256i lo = load_step(w, step, bits), hi = load_step(w + 32, step, bits);
        const char *at = x + 8 * step * height;
        add_dots(_mm256_and_si256(lo, field), _mm256_and_si256(hi, field), at, R, sum);
        add_dots(_mm256_and_si256(_mm256_srli_epi16(lo, bits), field),
                 _mm256_and_si256(_mm256_srli_epi16(hi, bits), field), at + 4 * height, R, sum);
    }
    end_dots(sum, R, dots);
}

static inline void dots_q8(const uint8_t *w, const char *x, int64_t height, const int R, v16 *dots) {
    const __m256i sign = _mm256_set1_epi8((char)0x80); /* adds 128 to a signed byte */
    words sum[TILE_QUANTISED_ROWS];
    start_dots(x, height, 8, R, sum);
#pragma GCC unroll 8
    for (int quad = 0; quad < 8; quad++)
        add_dots(_mm256_xor_si256(load_quads(w + 64 * quad), sign),
                 _mm256_xor_si256(load_quads(w + 64 * quad + 32), sign), x + 4 * quad * height, R, sum);
    end_dots(sum, R, dots);
}
