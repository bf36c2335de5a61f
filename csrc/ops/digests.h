/* Digests of pieces of a file, and whether the floats in them are finite. Bound by memory: 64 chains are independent of
 * one another, and so fill the vectors of any instruction set. The compiler splits the vectors of 16 words, an
 * extension of GCC and Clang, into registers. */

typedef uint32_t digest_words __attribute__((vector_size(64)));

enum { DIGEST_LANES = 64, DIGEST_VECTORS = DIGEST_LANES / 16 };

static inline void digest_step(digest_words *state, const void *words) {
    for (int v = 0; v < DIGEST_VECTORS; v++) {
        digest_words w;
        memcpy(&w, (const char *)words + v * (int64_t)sizeof w, sizeof w);
        state[v] = ((state[v] << 15 | state[v] >> 17) ^ w) * UINT32_C(0x01000193);
    }
}

/* Whether one of n floats has all bits of the exponent: only then adding its lowest bit carries into the sign. */
static inline int have_exponent(const char *floats, int64_t n, int64_t float_bytes, uint32_t exponent) {
    const uint32_t lowest = exponent & -exponent;
    uint32_t sums = 0;
    uint16_t half_sums = 0;
    if (float_bytes == 4)
        for (int64_t i = 0; i < n; i++) {
            uint32_t bits;
            memcpy(&bits, floats + 4 * i, sizeof bits);
            sums |= (bits & exponent) + lowest;
        }
    else
        for (int64_t i = 0; i < n; i++) {
            uint16_t bits;
            memcpy(&bits, floats + 2 * i, sizeof bits);
            half_sums |= (uint16_t)((bits & (uint16_t)exponent) + (uint16_t)lowest);
        }
    return ((sums | half_sums) & (exponent + lowest)) != 0;
}

typedef uint16_t digest_scales __attribute__((vector_size(2 * LANES))); /* of a block of few bits */

/* The same of whole groups of scales. */
static inline int scales_have_exponent(const char *scales, int64_t n_groups, int64_t group_bytes, uint16_t exponent) {
    const uint16_t lowest = exponent & -exponent, sign = (uint16_t)(exponent + lowest);
    digest_scales sums = {0};
    for (int64_t g = 0; g < n_groups; g++) {
        digest_scales bits;
        memcpy(&bits, scales + g * group_bytes, sizeof bits);
        sums |= (bits & exponent) + lowest;
    }
    uint16_t all = 0;
    for (int l = 0; l < LANES; l++) all |= sums[l];
    return (all & sign) != 0;
}

/* Whether the floats that begin in bytes begin .. end - 1 are finite. */
static inline int floats_are_finite(const refgpt_digests_args *a, int64_t begin, int64_t end) {
    const char *bytes = (const char *)a->words;
    const int64_t n_bytes = a->n_floats * a->float_bytes, step = a->group_bytes;
    int64_t g = begin > a->first_byte ? (begin - a->first_byte) / step : 0;
    int found = 0;
    while (g < a->n_groups && a->first_byte + g * step < end) {
        const int64_t start = a->first_byte + g * step;
        if (start >= begin && n_bytes == sizeof(digest_scales) && a->float_bytes == 2 && start + n_bytes <= end) {
            const int64_t n_whole = smaller((end - n_bytes - start) / step + 1, a->n_groups - g);
            found |= scales_have_exponent(bytes + start, n_whole, step, (uint16_t)a->exponent);
            g += n_whole;
            continue;
        }
        const int64_t from = start < begin ? begin : start, n = (smaller(start + n_bytes, end) - from) / a->float_bytes;
        /* A piece without numbers ends before them. */
        if (n > 0) found |= have_exponent(bytes + from, n, a->float_bytes, (uint32_t)a->exponent);
        g++;
    }
    return !found;
}

KERNEL(digests) {
    const refgpt_digests_args *a = args;
    for (int64_t p = begin; p < end; p++) {
        const uint32_t *words = a->words + p * a->piece_words;
        const int64_t n = smaller(a->piece_words, a->n_words - p * a->piece_words), n_left = n % DIGEST_LANES;
        digest_words state[DIGEST_VECTORS] = {0};
        for (int64_t i = 0; i < n - n_left; i += DIGEST_LANES) digest_step(state, words + i);
        if (n_left) {
            uint32_t tail[DIGEST_LANES] = {0};
            memcpy(tail, words + n - n_left, (size_t)n_left * sizeof *tail);
            digest_step(state, tail);
        }
        uint32_t lanes[DIGEST_LANES];
        memcpy(lanes, state, sizeof lanes);
        uint64_t digest = (uint64_t)n;
        for (int l = 0; l < DIGEST_LANES; l++) digest = (digest ^ lanes[l]) * UINT64_C(0x100000001b3);
        a->digests[p] = digest;
        if (a->finite) {
            const int64_t first = 4 * p * a->piece_words;
            a->finite[p] = (uint8_t)floats_are_finite(a, first, first + 4 * n);
        }
    }
}
