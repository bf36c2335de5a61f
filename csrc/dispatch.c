/* The table of kernels as data. kernels.def is read twice: once to declare every function, once to list it.
 * An instruction set of another architecture, or left out by build.py (REFGPT_WITHOUT_...), has rows without a
 * function. */
#include "refgpt_kernels.h"
#include <stddef.h>

#define ROW_scalar(f) f

#if defined(__x86_64__) && !defined(REFGPT_WITHOUT_avx2)
#define ROW_avx2(f) f
#else
#define ROW_avx2(f) NULL
#endif

#if defined(__x86_64__) && !defined(REFGPT_WITHOUT_avxvnni)
#define ROW_avxvnni(f) f
#else
#define ROW_avxvnni(f) NULL
#endif

#if defined(__x86_64__) && !defined(REFGPT_WITHOUT_avx512)
#define ROW_avx512(f) f
#else
#define ROW_avx512(f) NULL
#endif

#if defined(__x86_64__) && !defined(REFGPT_WITHOUT_avx512vnni)
#define ROW_avx512vnni(f) f
#else
#define ROW_avx512vnni(f) NULL
#endif

#if defined(__x86_64__) && !defined(REFGPT_WITHOUT_avx512bf16)
#define ROW_avx512bf16(f) f
#else
#define ROW_avx512bf16(f) NULL
#endif

#if defined(__aarch64__) && !defined(REFGPT_WITHOUT_neon)
#define ROW_neon(f) f
#else
#define ROW_neon(f) NULL
#endif

#if defined(__aarch64__) && !defined(REFGPT_WITHOUT_neondot)
#define ROW_neondot(f) f
#else
#define ROW_neondot(f) NULL
#endif

#define KERNEL(op, isa) void refgpt_##op##_##isa(const void *args, int64_t begin, int64_t end, int64_t worker);
#include "kernels.def"
#undef KERNEL

static const refgpt_row table[] = {
#define KERNEL(op, isa) {#op, #isa, ROW_##isa(refgpt_##op##_##isa)},
#include "kernels.def"
#undef KERNEL
    {NULL, NULL, NULL},
};

const refgpt_row *refgpt_table(void) { return table; }
