/* Steps of 4- and 3-bit weights in 256-bit registers, eight lanes at a time. */

static inline __m256i load_quads(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

/* Two weights in each byte, the second `bits` bits above the first. What lies above them is anything. */
static inline __m256i load_step(const uint8_t *w, int step, const int bits) {
    if (bits == 4 || step < 3) return load_quads(w + 64 * step);
    const __m256i first = _mm256_and_si256(_mm256_srli_epi16(load_quads(w), 6), _mm256_set1_epi8(0x03));
    const __m256i second = _mm256_and_si256(_mm256_srli_epi16(load_quads(w + 64), 4), _mm256_set1_epi8(0x0c));
    const __m256i third = _mm256_and_si256(_mm256_srli_epi16(load_quads(w + 128), 2), _mm256_set1_epi8(0x30));
    return _mm256_or_si256(_mm256_or_si256(first, second), third);
}
