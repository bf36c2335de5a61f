/* The floating-point state of the calling thread: rounding mode, flushing of subnormals, exception traps. Another
 * library may have changed it, and new threads inherit it. The kernels promise their bits for the default state. */
#include "refgpt_kernels.h"

#if defined(__SSE__)
#include <xmmintrin.h>

enum { DEFAULT = 0x1f80 }; /* MXCSR: to nearest, nothing flushed, every exception masked */

static uint64_t get(void) { return _mm_getcsr(); }
void refgpt_set_float_state(uint64_t state) { _mm_setcsr((unsigned)state); }
#elif defined(__aarch64__)
enum { DEFAULT = 0 }; /* FPCR: the same */

static uint64_t get(void) {
    uint64_t state;
    __asm__ volatile("mrs %0, fpcr" : "=r"(state));
    return state;
}
void refgpt_set_float_state(uint64_t state) { __asm__ volatile("msr fpcr, %0" : : "r"(state)); }
#else
#include <fenv.h>

enum { DEFAULT = FE_TONEAREST }; /* C knows of the rounding only */

static uint64_t get(void) { return (uint64_t)fegetround(); }
void refgpt_set_float_state(uint64_t state) { fesetround((int)state); }
#endif

uint64_t refgpt_default_float_state(void) {
    const uint64_t before = get();
    refgpt_set_float_state(DEFAULT);
    return before;
}
