/* Keys and values into the cache. Both are stored as panels, keys with keys as lanes (scores are sums over d_head), values
 * with dimensions as lanes (z is a sum over keys), so that attention is two linear layers. Bound by scattered stores. */

ALWAYS_INLINE void store_stored(void *p, int64_t i, v16 a, int64_t n, enum dtype dtype) {
    if (dtype == F32) {
        v16_store_n((float *)p + i, a, n);
    } else {
        uint16_t lanes[LANES];
        v16_store_f16(lanes, a);
        memcpy((uint16_t *)p + i, lanes, (size_t)n * sizeof *lanes);
    }
}

ALWAYS_INLINE void kv_append(const refgpt_kv_append_args *a, int64_t begin, int64_t end, enum dtype dtype) {
    const int64_t n_panels = (a->d_head + LANES - 1) / LANES;
    for (int64_t r = begin; r < end; r++)
        for (int64_t h = 0; h < a->n_head; h++) {
            const int64_t s = a->positions[r], head = a->slots[r] * a->n_head + h;
            const float *k = a->k + (r * a->n_head + h) * a->d_head, *v = a->v + (r * a->n_head + h) * a->d_head;
            const int64_t k_panel = (head * (a->capacity / LANES) + s / LANES) * a->d_head * LANES;
            for (int64_t d = 0; d < a->d_head; d++)
                store_stored(a->k_cache, k_panel + d * LANES + s % LANES, v16_set1(k[d]), 1, dtype);
            for (int64_t p = 0; p < n_panels; p++) {
                const int64_t v_row = ((head * n_panels + p) * a->capacity + s) * LANES;
                store_stored(a->v_cache, v_row, load_row(v, p * LANES, a->d_head, 0.0f), LANES, dtype);
            }
        }
}

KERNEL(kv_append_f32) { kv_append(args, begin, end, F32); }
KERNEL(kv_append_f16) { kv_append(args, begin, end, F16); }
