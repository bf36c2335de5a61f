/* Attention of query tiles over the cache: scores, softmax, weighted values. The cache is stored as panels, so both products
 * are the tile of the linear layers: keys are its outputs first, then dimensions. One query is bound by reading the cache;
 * a tile of queries shares that reading. */

ALWAYS_INLINE void attention(const refgpt_attention_args *a, int64_t begin, int64_t end, int64_t worker, enum dtype dtype) {
    const int64_t width = a->n_head * a->d_head, n_panels = (a->d_head + LANES - 1) / LANES;
    const panels k = stream_of(a->k, a->d_head * LANES, dtype), v = stream_of(a->v, a->capacity * LANES, dtype);
    float *scores = a->scratch + worker * FEW_ROWS * a->capacity;
    const v16 root = v16_set1(sqrtf((float)a->d_head));
    for (int64_t item = begin; item < end; item++) {
        const refgpt_query_tile t = a->tiles[item / a->n_head];
        const int64_t h = item % a->n_head, head = t.slot * a->n_head + h;
        const int64_t *n_visible = a->n_visible + t.first_row;
        int64_t n_keys = 0, n_shared = a->capacity; /* keys that any row of the tile sees; that every row sees */
        for (int64_t r = 0; r < t.n_rows; r++) {
            n_keys = n_keys > n_visible[r] ? n_keys : n_visible[r];
            n_shared = smaller(n_shared, n_visible[r]);
        }
        n_shared = n_shared / CHUNK * CHUNK;
        const int64_t n_key_panels = (n_keys + LANES - 1) / LANES;

        for (int64_t r = 0; r < t.n_rows; r++)
            memset(scores + r * a->capacity, 0, (size_t)(n_key_panels * LANES) * sizeof *scores);
        const rows q = rows_as_they_are(a->q + t.first_row * width + h * a->d_head, width);
        multiply_stored(t.n_rows, q, n_key_panels, panels_from(k, head * a->capacity * a->d_head), scores, a->capacity,
                        a->d_head);
        for (int64_t r = 0; r < t.n_rows; r++) {
            float *row = scores + r * a->capacity;
            for (int64_t s = 0; s < n_visible[r]; s += LANES) v16_store(row + s, v16_div(v16_load(row + s), root));
            softmax_row(row, row, n_visible[r]);
            if (a->pattern) {
                float *seen = a->pattern + (h * a->n_rows + t.first_row + r) * a->n_keys;
                memset(seen, 0, (size_t)a->n_keys * sizeof *seen);
                memcpy(seen, row, (size_t)n_visible[r] * sizeof *seen);
            }
        }
        /* A head's dimensions may end inside a panel, so z is gathered in a buffer, a panel at a time. Past the chunks of keys
         * that all rows see, each row goes its own way: 0 times an infinite value that it does not see would be NaN. */
        const rows pattern = rows_as_they_are(scores, a->capacity);
        for (int64_t p = 0; p < n_panels; p++) {
            float z[FEW_ROWS * LANES] = {0};
            const panels values = panels_from(v, (head * n_panels + p) * v.panel), own = panels_from(values, n_shared * LANES);
            multiply_stored(t.n_rows, pattern, 1, values, z, LANES, n_shared);
            for (int64_t r = 0; r < t.n_rows; r++) {
                const rows rest = rows_as_they_are(scores + r * a->capacity + n_shared, a->capacity);
                multiply_stored(1, rest, 1, own, z + r * LANES, LANES, n_visible[r] - n_shared);
                float *to = a->z + (t.first_row + r) * width + h * a->d_head + p * LANES;
                memcpy(to, z + r * LANES, (size_t)smaller(LANES, a->d_head - p * LANES) * sizeof *to);
            }
        }
    }
}

KERNEL(attention_f32) { attention(args, begin, end, worker, F32); }
KERNEL(attention_f16) { attention(args, begin, end, worker, F16); }
