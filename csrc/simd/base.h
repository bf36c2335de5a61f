/* Helpers for the files of the instruction sets. */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* The bits are a promise that such a compiler would break. */
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__) || \
    defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || defined(__NO_SIGNED_ZEROS__)
#error "refgpt cannot be compiled with -ffast-math, -Ofast or a part of them: look in CFLAGS, CPPFLAGS and CC"
#endif
#if FLT_EVAL_METHOD != 0
#error "refgpt's kernels need float arithmetic in float: on 32-bit x86 compile with -msse2 -mfpmath=sse"
#endif

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Words of a record of quantised rows, which lie at any multiple of four. */
ALWAYS_INLINE int32_t load_int(const char *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}
/* The last step's byte of a block of 3 bits, which lies in the two upper bits of the same byte of the other steps. */
ALWAYS_INLINE uint8_t last_step(const uint8_t *w) { return (uint8_t)(w[0] >> 6 | w[64] >> 6 << 2 | w[128] >> 6 << 4); }
ALWAYS_INLINE float load_float(const char *p) {
    float word;
    memcpy(&word, p, sizeof word);
    return word;
}
