/* Which instruction sets run here. A CPU may have registers that the operating system does not save, so both are asked. */
#include "refgpt_kernels.h"
#include <stddef.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>

enum { YMM_STATE = 0x6, ZMM_STATE = 0xe6 }; /* bits of XCR0: SSE and AVX; also opmask and both halves of ZMM */

/* The registers that the operating system saves, or 0 where it does not say. */
static unsigned saved_state(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static int has_avx2(void) {
    unsigned a, b, c1, b7, c, d;
    if (!__get_cpuid(1, &a, &b, &c1, &d) || !__get_cpuid_count(7, 0, &a, &b7, &c, &d)) return 0;
    return (b7 & bit_AVX2) && (c1 & bit_FMA) && (c1 & bit_F16C);
}

static int has_avx512(void) {
    unsigned a, b, c, d;
    const unsigned wanted = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
    return has_avx2() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & wanted) == wanted;
}

const char *refgpt_isa_obstacle(const char *isa) {
    if (!strcmp(isa, "scalar")) return NULL;
    if (!strcmp(isa, "avx2")) {
        if (!has_avx2()) return "this CPU lacks AVX2, FMA or F16C";
        return (saved_state() & YMM_STATE) == YMM_STATE ? NULL : "the operating system does not save the AVX registers";
    }
    if (!strcmp(isa, "avx512")) {
        if (!has_avx512()) return "this CPU lacks AVX-512 F, BW, DQ or VL";
        return (saved_state() & ZMM_STATE) == ZMM_STATE ? NULL : "the operating system does not save the AVX-512 registers";
    }
    if (!strcmp(isa, "neon")) return "not compiled for x86-64";
    return "unknown instruction set";
}
#else
const char *refgpt_isa_obstacle(const char *isa) {
    if (!strcmp(isa, "scalar")) return NULL;
    if (!strcmp(isa, "avx2") || !strcmp(isa, "avx512")) return "compiled for x86-64 only";
#if defined(__aarch64__)
    if (!strcmp(isa, "neon")) return NULL; /* part of every aarch64 */
#else
    if (!strcmp(isa, "neon")) return "compiled for aarch64 only";
#endif
    return "unknown instruction set";
}
#endif
