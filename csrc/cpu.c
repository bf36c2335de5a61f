/* Detects the instruction sets that can run. A CPU may have registers that the operating system does not save, so both
 * are checked. */
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

static int has_avx512vnni(void) {
    unsigned a, b, c, d;
    return has_avx512() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c & bit_AVX512VNNI);
}

static int has_avx512bf16(void) {
    unsigned a, b, c, d;
    return has_avx512vnni() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bit_AVX512BF16);
}

static int has_avxvnni(void) {
#ifdef REFGPT_EVEX_AVXVNNI /* this build has the instructions in the encoding of AVX-512 */
    return has_avx512vnni() && (saved_state() & ZMM_STATE) == ZMM_STATE;
#else
    unsigned a, b, c, d;
    return has_avx2() && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
#endif
}

static const char *registers_obstacle(unsigned wanted, const char *otherwise) {
    return (saved_state() & wanted) == wanted ? NULL : otherwise;
}

const char *refgpt_isa_obstacle(const char *isa) {
    if (!strcmp(isa, "scalar")) return NULL;
    if (!strcmp(isa, "avx2") || !strcmp(isa, "avxvnni")) {
        if (!has_avx2()) return "this CPU lacks AVX2, FMA or F16C";
        if (!strcmp(isa, "avxvnni") && !has_avxvnni()) return "this CPU lacks AVX-VNNI";
        return registers_obstacle(YMM_STATE, "the operating system does not save the AVX registers");
    }
    if (!strcmp(isa, "avx512") || !strcmp(isa, "avx512vnni") || !strcmp(isa, "avx512bf16")) {
        if (!has_avx512()) return "this CPU lacks AVX-512 F, BW, DQ or VL";
        if (strcmp(isa, "avx512") && !has_avx512vnni()) return "this CPU lacks AVX-512 VNNI";
        if (!strcmp(isa, "avx512bf16") && !has_avx512bf16()) return "this CPU lacks AVX-512 BF16";
        return registers_obstacle(ZMM_STATE, "the operating system does not save the AVX-512 registers");
    }
    if (!strcmp(isa, "neon") || !strcmp(isa, "neondot")) return "not compiled for x86-64";
    return "unknown instruction set";
}
#else
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

static int has_dot_products(void) { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; } /* HWCAP_ASIMDDP */
#else
static int has_dot_products(void) { return 1; } /* every 64-bit ARM Macintosh */
#endif

const char *refgpt_isa_obstacle(const char *isa) {
    if (!strcmp(isa, "scalar")) return NULL;
    if (!strncmp(isa, "avx", 3)) return "compiled for x86-64 only";
#if defined(__aarch64__)
    if (!strcmp(isa, "neon")) return NULL; /* part of every aarch64 */
    if (!strcmp(isa, "neondot")) return has_dot_products() ? NULL : "this CPU lacks the dot products of ARMv8.2";
#else
    (void)has_dot_products;
    if (!strncmp(isa, "neon", 4)) return "compiled for aarch64 only";
#endif
    return "unknown instruction set";
}
#endif
