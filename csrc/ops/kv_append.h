/* Writes keys and values to the cache. Both are stored as panels, keys with keys as lanes (scores are sums over
 * d_head), values with dimensions as lanes (z is a sum over keys), so that attention is two linear layers. Bound by the
 * keys' scattered stores. */

/* Numbers too large for float16 become NaN: an infinite key could get the score -infinity and be ignored silently. */
ALWAYS_INLINE void store_stored(void *p, v16 a, enum dtype dtype) {
    if (dtype == F32) v16_store(p, a);
    else {
        uint16_t halves[LANES];
        v16_store_f16(halves, a);
        const v16 strange = v16_mul(v16_load_f16(halves), v16_set1(0.0f)); /* a zero of a's sign, or NaN */
        v16_store_f16(p, v16_add(a, strange));
    }
}

ALWAYS_INLINE void kv_append(const refgpt_kv_append_args *a, int64_t begin, int64_t end, enum dtype dtype) {
    const int64_t n_panels = (a->d_head + LANES - 1) / LANES, size = size_of(dtype);
    for (int64_t r = begin; r < end; r++)
        for (int64_t h = 0; h < a->n_head; h++) {
            const int64_t s = a->positions[r], head = a->blocks[r] * a->n_head + h;
            const float *k = a->k + (r * a->n_head + h) * a->d_head, *v = a->v + (r * a->n_head + h) * a->d_head;
            const int64_t k_panel = (head * (a->block / LANES) + s / LANES) * a->d_head * LANES;
            char *k_lane = (char *)a->k_cache + (k_panel + s % LANES) * size;
            for (int64_t d = 0; d < a->d_head; d += LANES) {
                float stored[LANES]; /* large enough for both dtypes */
                store_stored(stored, load_row(k, d, a->d_head, 0.0f), dtype);
                for (int64_t l = 0; l < smaller(LANES, a->d_head - d); l++)
                    memcpy(k_lane + (d + l) * LANES * size, (const char *)stored + l * size, (size_t)size);
            }
            for (int64_t p = 0; p < n_panels; p++) {
                const int64_t v_row = ((head * n_panels + p) * a->block + s) * LANES;
                store_stored((char *)a->v_cache + v_row * size, load_row(v, p * LANES, a->d_head, 0.0f), dtype);
            }
        }
}

/* Rounds 32 neighbours (zeros past the end) to integers of 8 bits; returns the bits of their float16 scale. */
static uint16_t quantise_neighbours(const float *x, int64_t n, int8_t *integers) {
    const v16 zero = v16_set1(0.0f), most = v16_set1(127.0f), least = v16_set1(-127.0f), magic = v16_set1(0x1.8p23f);
    v16 half[2], largest = zero, strange = zero; /* strange: 0, or NaN if a number is NaN or infinite */
    for (int h = 0; h < 2; h++) {
        half[h] = h * LANES < n ? load_row(x, h * LANES, n, 0.0f) : zero;
        largest = v16_max(largest, v16_max(half[h], v16_sub(zero, half[h])));
        strange = v16_fma(half[h], zero, strange);
    }
    uint16_t halves[LANES];
    float scales[LANES];
    v16_store_f16(halves, v16_set1(v16_largest(largest) / 127.0f + v16_sum(strange)));
    v16_store(scales, v16_load_f16(halves));
    const int usable = scales[0] > 0.0f && scales[0] <= 65504.0f, zeros = scales[0] == 0.0f;
    const v16 steps = v16_set1(usable ? 1.0f / scales[0] : 0.0f);
    for (int h = 0; h < 2; h++)
        v16_store_low_bytes(integers + h * LANES,
                            v16_add(v16_max(v16_min(v16_mul(half[h], steps), most), least), magic));
    return usable || zeros ? halves[0] : 0x7e00; /* NaN */
}

KERNEL(kv_append_q8) {
    const refgpt_kv_append_args *a = args;
    const int64_t n_panels = (a->d_head + LANES - 1) / LANES, n_integers = n_panels * LANES;
    const int64_t k_record = record_of(a->d_head, a->d_head), v_record = record_of(n_integers, a->d_head);
    for (int64_t r = begin; r < end; r++)
        for (int64_t h = 0; h < a->n_head; h++) {
            const int64_t s = a->positions[r], head = a->blocks[r] * a->n_head + h;
            const float *k = a->k + (r * a->n_head + h) * a->d_head, *v = a->v + (r * a->n_head + h) * a->d_head;
            const int64_t record = head * (a->block / LANES) + s / LANES, lane = s % LANES;
            char *k_at = (char *)a->k_cache + record * k_record, *v_at = (char *)a->v_cache + record * v_record;
            for (int64_t d = 0; d < a->d_head; d += BLOCK) {
                int8_t integers[BLOCK];
                uint16_t scale = quantise_neighbours(k + d, smaller(BLOCK, a->d_head - d), integers);
                for (int64_t i = 0; i < smaller(BLOCK, a->d_head - d); i++) k_at[(d + i) * LANES + lane] = integers[i];
                memcpy(k_at + (a->d_head + d / LANES) * LANES + 2 * lane, &scale, sizeof scale);
                scale = quantise_neighbours(v + d, smaller(BLOCK, a->d_head - d), integers);
                for (int64_t p = d / LANES; p < smaller(d / LANES + 2, n_panels); p++)
                    memcpy(v_at + (p * LANES + lane) * LANES, integers + p % 2 * LANES, LANES);
                memcpy(v_at + (n_integers + d / LANES) * LANES + 2 * lane, &scale, sizeof scale);
            }
        }
}

KERNEL(kv_append_f32) { kv_append(args, begin, end, F32); }
KERNEL(kv_append_f16) { kv_append(args, begin, end, F16); }
