/* Code shared by all instruction sets, written over 16 lanes. */
#include "../refgpt_kernels.h"

#define PASTE3_(a, b, c) a##b##_##c
#define PASTE3(a, b, c) PASTE3_(a, b, c)
/* The name and signature of a kernel: KERNEL(softmax) is refgpt_softmax_avx2(args, begin, end, worker) in the AVX2
 * build. */
#define KERNEL(op) \
    void PASTE3(refgpt_, op, ISA)(const void *args, int64_t begin, int64_t end, __attribute__((unused)) int64_t worker)

enum { LANES = REFGPT_LANES, CHUNK = REFGPT_CHUNK, FEW_ROWS = REFGPT_FEW_ROWS };
enum { BLOCK = REFGPT_BLOCK, RECORD = BLOCK + 8 }; /* bytes of a record, a row */
/* BF16_PAIRS: see linear_bf16_dots.h; READY_PAIRS: see pairs.h; KEYS_Q8: a record of the attention cache. */
enum dtype { F32, F16, BF16, BF16_PAIRS, READY_PAIRS, Q8, Q4, Q3, KEYS_Q8 };

ALWAYS_INLINE int64_t size_of(enum dtype dtype) {
    return dtype == F32 || dtype == READY_PAIRS ? 4 : dtype == KEYS_Q8 ? 1 : 2;
}

ALWAYS_INLINE int weight_bits(enum dtype dtype) {
    return dtype == Q8 ? 8 : dtype == Q4 ? 4 : dtype == Q3 ? 3 : 0;
} /* of blocks */
ALWAYS_INLINE int64_t block_bytes(enum dtype dtype) { return BLOCK * weight_bits(dtype) / 8 * LANES + 2 * LANES; }

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* The bits of a float32, rounded to a bfloat16 in their upper half: to nearest, ties to even; NaN stays NaN. */
ALWAYS_INLINE uint32_t nearest_bfloat(uint32_t bits) {
    const uint32_t is_nan = (bits & 0x7fffffff) > 0x7f800000;
    return (is_nan ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
}

/* How many of n_left > 0 come next, so that parts of at most `most` are as even as can be. */
static inline int64_t even_part(int64_t n_left, int64_t most) {
    const int64_t n_parts = (n_left + most - 1) / most;
    return (n_left + n_parts - 1) / n_parts;
}

/* The first n < 16 lanes from memory, the others `rest`. */
static inline v16 v16_load_n(const float *p, int64_t n, float rest) {
    float lanes[LANES];
    v16_store(lanes, v16_set1(rest));
    memcpy(lanes, p, (size_t)n * sizeof *p);
    return v16_load(lanes);
}
static inline void v16_store_n(float *p, v16 a, int64_t n) {
    float lanes[LANES];
    v16_store(lanes, a);
    memcpy(p, lanes, (size_t)n * sizeof *p);
}

/* A row's element i..i+15, or its tail. */
static inline v16 load_row(const float *row, int64_t i, int64_t n, float rest) {
    return n - i >= LANES ? v16_load(row + i) : v16_load_n(row + i, n - i, rest);
}
static inline void store_row(float *row, int64_t i, int64_t n, v16 a) {
    if (n - i >= LANES) v16_store(row + i, a);
    else v16_store_n(row + i, a, n - i);
}

/* Inputs i .. i + 15 of up to 16 rows, with rows as lanes; zeros past the last row and the last input. */
static inline void load_turned(const float *x, int64_t n_rows, int64_t i, int64_t n_in, v16 *turned) {
    for (int64_t r = 0; r < LANES; r++) turned[r] = r < n_rows ? load_row(x + r * n_in, i, n_in, 0.0f) : v16_set1(0.0f);
    v16_turn(turned);
}

/* The number of inputs in a lane for linear_bf16_dots: one, in float32, if no instruction multiplies pairs of
 * bfloat16. */
#ifndef PAIR_STEP
#define PAIR_STEP 1
static inline v16 v16_load_pairs(const uint16_t *p) { return v16_load_bf16(p); }
static inline v16 v16_zero_small_pairs(v16 w) { /* numbers below 2^-56 become 0 */
    return v16_zero_below(w, v16_max(w, v16_sub(v16_set1(0.0f), w)), v16_set1(0x1p-56f));
}
static inline v16 v16_add_pairs(v16 sum, v16 w, v16 x) { return v16_fma(w, x, sum); }
#endif
ALWAYS_INLINE int pairs(enum dtype dtype) { return dtype == BF16_PAIRS || dtype == READY_PAIRS; }

static inline v16 load_stored(const void *p, int64_t i, enum dtype dtype) {
    if (dtype == F32 || dtype == READY_PAIRS) return v16_load((const float *)p + i);
    if (dtype == F16) return v16_load_f16((const uint16_t *)p + i);
    if (dtype == KEYS_Q8) return v16_of_bytes((const int8_t *)p + i);
    if (dtype == BF16_PAIRS) return v16_zero_small_pairs(v16_load_pairs((const uint16_t *)p + i));
    return v16_load_bf16((const uint16_t *)p + i);
}

/* Sum of the lanes as a tree: l and l + 8, l + 4, l + 2, l + 1. */
static inline float v16_sum(v16 a) {
    float lanes[LANES];
    v16_store(lanes, a);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) lanes[l] += lanes[l + half];
    return lanes[0];
}

/* Sums of columns, striped over rows: 16 partial sums, added as v16_sum adds lanes, then added to what y holds. */
static inline void start_stripes(v16 *sums) {
    for (int l = 0; l < LANES; l++) sums[l] = v16_set1(0.0f);
}
static inline void add_stripes(v16 *sums, float *y, int64_t i, int64_t n) {
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int l = 0; l < half; l++) sums[l] = v16_add(sums[l], sums[l + half]);
    store_row(y, i, n, v16_add(load_row(y, i, n, 0.0f), sums[0]));
}

static inline float v16_largest(v16 a) {
    float lanes[LANES];
    v16_store(lanes, a);
    float most = lanes[0];
    for (int l = 1; l < LANES; l++) most = most > lanes[l] ? most : lanes[l];
    return most;
}

/* e^x to about an ulp; 0 below -87, where e^x leaves float32's normal numbers; at most e^88.
 * x = n ln 2 + r with |r| <= ln 2 / 2; e^r from a polynomial of degree 6 whose error is 0.05 ulp (fitted over that
 * range); n is read off the low bits of x / ln 2 + 1.5 * 2^23. The clamps let NaN through. */
static inline v16 v16_exp(v16 x) {
    const v16 low = v16_set1(-87.0f), magic = v16_set1(0x1.8p23f), one = v16_set1(1.0f);
    const v16 within = v16_min(v16_set1(88.0f), v16_max(low, x));
    const v16 shifted = v16_fma(within, v16_set1(0x1.715476p+0f), magic);
    const v16 n = v16_sub(shifted, magic);
    v16 r = v16_fma(n, v16_set1(-0x1.62e4p-1f), within); /* the upper bits of ln 2: n times them is exact */
    r = v16_fma(n, v16_set1(-0x1.7f7d1cp-20f), r);       /* the rest of ln 2 */
    v16 p = v16_set1(0x1.6a2434p-10f);
    p = v16_fma(p, r, v16_set1(0x1.1239e2p-7f));
    p = v16_fma(p, r, v16_set1(0x1.5558f2p-5f));
    p = v16_fma(p, r, v16_set1(0x1.555492p-3f));
    p = v16_fma(p, r, v16_set1(0x1.fffffcp-2f));
    p = v16_fma(p, r, one);
    p = v16_fma(p, r, one);
    return v16_zero_below(v16_add_exponent(p, shifted), x, low);
}
