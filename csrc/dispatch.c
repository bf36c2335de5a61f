/* The table of kernels as data. kernels.def is read twice: once to declare every function, once to list it. */
#include "refgpt_kernels.h"
#include <stddef.h>

#if defined(__x86_64__)
#define ROW_scalar(f) f
#define ROW_avx2(f) f
#define ROW_avx512(f) f
#define ROW_avx512vnni(f) f
#define ROW_neon(f) NULL
#define ROW_neondot(f) NULL
#elif defined(__aarch64__)
#define ROW_scalar(f) f
#define ROW_avx2(f) NULL
#define ROW_avx512(f) NULL
#define ROW_avx512vnni(f) NULL
#define ROW_neon(f) f
#define ROW_neondot(f) f
#else
#define ROW_scalar(f) f
#define ROW_avx2(f) NULL
#define ROW_avx512(f) NULL
#define ROW_avx512vnni(f) NULL
#define ROW_neon(f) NULL
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
