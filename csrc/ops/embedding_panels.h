/* Embedding lookup in a table that is also the output head, and so is stored in panels: a row is one lane of a panel.
 * Its numbers are 16 apart, so that each costs a cache line; but only one row is read for each token. */

ALWAYS_INLINE void embedding_panels(const refgpt_embedding_args *a, int64_t begin, int64_t end, enum dtype dtype) {
    const int64_t size = size_of(dtype);
    for (int64_t r = begin; r < end; r++) {
        const char *lane = (const char *)a->table + (a->ids[r] / LANES * a->n * LANES + a->ids[r] % LANES) * size;
        float *y = a->y + r * a->n;
        for (int64_t i = 0; i < a->n; i += LANES) {
            float stored[LANES] = {0}; /* room for any dtype */
            for (int64_t l = 0; l < smaller(LANES, a->n - i); l++)
                memcpy((char *)stored + l * size, lane + (i + l) * LANES * size, (size_t)size);
            store_row(y, i, a->n, load_stored(stored, 0, dtype));
        }
    }
}

KERNEL(embedding_panels_f32) { embedding_panels(args, begin, end, F32); }
KERNEL(embedding_panels_f16) { embedding_panels(args, begin, end, F16); }
KERNEL(embedding_panels_bf16) { embedding_panels(args, begin, end, BF16); }
