/* The factors of the gradients' products in bfloat16. Both are rounded into buffers, as words that a step of a sum takes as they are: a
 * pair of numbers in each lane, or on instruction sets without pairs two words in float32, the odd number's first.
 *
 * As in linear_bf16_dots.h, sums of products must not become subnormal, so that small numbers count as 0. Gradients can be far smaller
 * than weights and activations, so that their limits differ: what is rounded to a smaller number than 2^-80 counts as 0 among the
 * gradients, 2^-32 among the others. All others are multiples of 2^-87 and 2^-39, and products of 2^-126. */

MULTIPLY_BESIDE(multiply_ready_beside, READY_PAIRS)

enum { SMALLEST_GRADIENT = 0x1780, SMALLEST_FACTOR = 0x2f80 }; /* 2^-80 and 2^-32 in bfloat16 */

#if PAIR_STEP == 1
/* To nearest, ties to even; NaN stays NaN. */
ALWAYS_INLINE v16 round_above(v16 x, const uint32_t least) {
    uint32_t words[LANES];
    memcpy(words, &x, sizeof words);
    for (int l = 0; l < LANES; l++) {
        const uint32_t word = words[l], is_nan = (word & 0x7fffffff) > 0x7f800000;
        const uint32_t rounded = (is_nan ? word | 0x400000 : word + 0x7fff + (word >> 16 & 1)) & 0xffff0000;
        words[l] = (rounded & 0x7fffffff) < least << 16 ? 0 : rounded;
    }
    memcpy(&x, words, sizeof words);
    return x;
}
ALWAYS_INLINE void put_pairs(float *to, v16 even, v16 odd, const uint32_t least) {
    v16_store(to, round_above(odd, least));
    v16_store(to + LANES, round_above(even, least));
}
#else
ALWAYS_INLINE void put_pairs(float *to, v16 even, v16 odd, const uint32_t least) {
    v16_store(to, v16_round_pairs(even, odd, least));
}
#endif

/* Up to 16 columns of some rows, `stride` apart, in pairs of rows: [words][16], zeros past the last column. The last pair may lack the odd
 * row, which is then 0. */
ALWAYS_INLINE void pair_rows(const float *x, int64_t stride, int64_t n_rows, int64_t n_columns, const uint32_t least, float *to) {
    for (int64_t r = 0; r < n_rows; r += 2) {
        const v16 even = load_row(x + r * stride, 0, n_columns, 0.0f);
        const v16 odd = r + 1 < n_rows ? load_row(x + (r + 1) * stride, 0, n_columns, 0.0f) : v16_set1(0.0f);
        put_pairs(to + r / PAIR_STEP * LANES, even, odd, least);
    }
}
