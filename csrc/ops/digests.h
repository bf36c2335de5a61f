/* Digests of pieces of a file. Bound by memory: 64 chains are independent of one another, and so fill the vectors of any
 * instruction set. The compiler splits the vectors of 16 words, an extension of GCC and Clang, into registers. */

typedef uint32_t digest_words __attribute__((vector_size(64)));

enum { DIGEST_LANES = 64, DIGEST_VECTORS = DIGEST_LANES / 16 };

static inline void digest_step(digest_words *state, const void *words) {
    for (int v = 0; v < DIGEST_VECTORS; v++) {
        digest_words w;
        memcpy(&w, (const char *)words + v * (int64_t)sizeof w, sizeof w);
        state[v] = ((state[v] << 15 | state[v] >> 17) ^ w) * UINT32_C(0x01000193);
    }
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
    }
}
