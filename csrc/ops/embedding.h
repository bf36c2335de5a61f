/* Embedding lookup: copies rows of the table, widened to float32. Bound by memory, one row for each token. */

ALWAYS_INLINE void embedding(const refgpt_embedding_args *a, int64_t begin, int64_t end, enum dtype dtype) {
    const int64_t size = size_of(dtype);
    for (int64_t r = begin; r < end; r++) {
        const char *row = (const char *)a->table + a->ids[r] * a->n * size;
        float *y = a->y + r * a->n;
        const int64_t n_whole = a->n / LANES * LANES, n_left = a->n - n_whole;
        for (int64_t i = 0; i < n_whole; i += LANES) v16_store(y + i, load_stored(row, i, dtype));
        if (n_left) {
            float stored[LANES] = {0}; /* the tail in its own dtype */
            memcpy(stored, row + n_whole * size, (size_t)(n_left * size));
            v16_store_n(y + n_whole, load_stored(stored, 0, dtype), n_left);
        }
    }
}

KERNEL(embedding_f32) { embedding(args, begin, end, F32); }
KERNEL(embedding_f16) { embedding(args, begin, end, F16); }
KERNEL(embedding_bf16) { embedding(args, begin, end, BF16); }

/* One lane of a panel: four bytes in 64, and its scale. */
KERNEL(embedding_q8) {
    const refgpt_embedding_args *a = args;
    const int64_t n_blocks = (a->n + BLOCK - 1) / BLOCK;
    for (int64_t r = begin; r < end; r++) {
        const int64_t lane = a->ids[r] % LANES;
        const char *block = (const char *)a->table + a->ids[r] / LANES * n_blocks * block_bytes(Q8);
        for (int64_t b = 0; b < n_blocks; b++, block += block_bytes(Q8)) {
            float scales[LANES], row[BLOCK];
            v16_store(scales, v16_load_f16((const uint16_t *)(block + BLOCK * LANES)));
            for (int64_t i = 0; i < BLOCK; i++)
                row[i] = scales[lane] * (float)(int8_t)block[(i / 4 * LANES + lane) * 4 + i % 4];
            memcpy(a->y + r * a->n + b * BLOCK, row, (size_t)smaller(BLOCK, a->n - b * BLOCK) * sizeof *row);
        }
    }
}
