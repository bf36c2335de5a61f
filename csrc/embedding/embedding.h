/* Embedding lookup: rows of the table, widened. Bound by memory, one row a token. */

ALWAYS_INLINE void embedding(const refgpt_embedding_args *a, int64_t begin, int64_t end, enum dtype dtype) {
    const int64_t size = size_of(dtype);
    for (int64_t r = begin; r < end; r++) {
        const char *row = (const char *)a->table + a->ids[r] * a->n * size;
        float *y = a->y + r * a->n;
        const int64_t n_whole = a->n / LANES * LANES, n_left = a->n - n_whole;
        for (int64_t i = 0; i < n_whole; i += LANES) v16_store(y + i, load_stored(row, i, dtype));
        if (n_left) {
            float stored[LANES] = {0}; /* room for the tail in its own dtype */
            memcpy(stored, row + n_whole * size, (size_t)(n_left * size));
            v16_store_n(y + n_whole, load_stored(stored, 0, dtype), n_left);
        }
    }
}

KERNEL(embedding_f32) { embedding(args, begin, end, F32); }
KERNEL(embedding_f16) { embedding(args, begin, end, F16); }
KERNEL(embedding_bf16) { embedding(args, begin, end, BF16); }
