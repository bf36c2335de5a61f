/* Keys and values into the cache. Both are stored as panels, keys with keys as lanes (scores are sums over d_head), values
 * with dimensions as lanes (z is a sum over keys), so that attention is two linear layers. Bound by the keys' scattered stores. */

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
            const int64_t s = a->positions[r], head = a->slots[r] * a->n_head + h;
            const float *k = a->k + (r * a->n_head + h) * a->d_head, *v = a->v + (r * a->n_head + h) * a->d_head;
            const int64_t k_panel = (head * (a->capacity / LANES) + s / LANES) * a->d_head * LANES;
            char *k_lane = (char *)a->k_cache + (k_panel + s % LANES) * size;
            for (int64_t d = 0; d < a->d_head; d += LANES) {
                float stored[LANES]; /* large enough for both dtypes */
                store_stored(stored, load_row(k, d, a->d_head, 0.0f), dtype);
                for (int64_t l = 0; l < smaller(LANES, a->d_head - d); l++)
                    memcpy(k_lane + (d + l) * LANES * size, (const char *)stored + l * size, (size_t)size);
            }
            for (int64_t p = 0; p < n_panels; p++) {
                const int64_t v_row = ((head * n_panels + p) * a->capacity + s) * LANES;
                store_stored((char *)a->v_cache + v_row * size, load_row(v, p * LANES, a->d_head, 0.0f), dtype);
            }
        }
}

KERNEL(kv_append_f32) { kv_append(args, begin, end, F32); }
KERNEL(kv_append_f16) { kv_append(args, begin, end, F16); }
