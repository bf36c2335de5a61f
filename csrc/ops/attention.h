/* Attention of query tiles over the cache: scores, softmax, weighted values. The cache is stored as panels, so both products
 * are the tile of the linear layers: keys are its outputs first, then dimensions. One query is bound by reading the cache;
 * a tile of queries shares that reading. */

static inline int64_t whole_chunks(int64_t n) { return (n + CHUNK - 1) / CHUNK * CHUNK; }

/* Adds the values of keys [from, to), one row's, to its z: in chunks from index 0 on, of which the first may be the end of one. */
static void mix(const float *pattern, panels values, float *z, int64_t from, int64_t to) {
    while (from < to) {
        const int64_t stop = from % CHUNK ? smaller(whole_chunks(from), to) : to;
        multiply_stored(1, rows_as_they_are(pattern + from, 0), 1, panels_from(values, from * LANES), z, LANES, stop - from);
        from = stop;
    }
}

ALWAYS_INLINE void attention(const refgpt_attention_args *a, int64_t begin, int64_t end, int64_t worker, enum dtype dtype) {
    const int64_t width = a->n_head * a->d_head, n_panels = (a->d_head + LANES - 1) / LANES;
    const panels k = stream_of(a->k, a->d_head * LANES, dtype), v = stream_of(a->v, a->capacity * LANES, dtype);
    float *scores = a->scratch + worker * FEW_ROWS * a->capacity;
    const v16 divisor = v16_set1(a->divisor);
    for (int64_t item = begin; item < end; item++) {
        const refgpt_query_tile t = a->tiles[item / a->n_head];
        const int64_t h = item % a->n_head, head = t.slot * a->n_head + h;
        const int64_t *n_visible = a->n_visible + t.first_row;
        int64_t first_visible[FEW_ROWS] = {0};
        if (a->first_visible) memcpy(first_visible, a->first_visible + t.first_row, (size_t)t.n_rows * sizeof *first_visible);
        /* Keys [first, n_keys) are seen by any row of the tile, and whole chunks of keys [shared, n_shared) by every row. */
        int64_t first = a->capacity, n_keys = 0, shared = 0, n_shared = a->capacity;
        for (int64_t r = 0; r < t.n_rows; r++) {
            first = smaller(first, first_visible[r]);
            n_keys = n_keys > n_visible[r] ? n_keys : n_visible[r];
            shared = shared > first_visible[r] ? shared : first_visible[r];
            n_shared = smaller(n_shared, n_visible[r]);
        }
        shared = whole_chunks(shared), n_shared = n_shared / CHUNK * CHUNK;
        const int64_t first_panel = first / LANES, start = first_panel * LANES;
        const int64_t n_key_panels = (n_keys + LANES - 1) / LANES - first_panel;

        for (int64_t r = 0; r < t.n_rows; r++)
            memset(scores + r * a->capacity + start, 0, (size_t)(n_key_panels * LANES) * sizeof *scores);
        const rows q = rows_as_they_are(a->q + t.first_row * width + h * a->d_head, width);
        const panels keys = panels_from(k, (head * a->capacity + start) * a->d_head);
        multiply_stored(t.n_rows, q, n_key_panels, keys, scores + start, a->capacity, a->d_head);
        for (int64_t r = 0; r < t.n_rows; r++) {
            float *row = scores + r * a->capacity, *seen = row + first_visible[r];
            const int64_t n_seen = n_visible[r] - first_visible[r];
            for (int64_t s = start; s < n_visible[r]; s += LANES) v16_store(row + s, v16_div(v16_load(row + s), divisor));
            softmax_row(seen, seen, n_seen);
            if (a->pattern) {
                float *shown = a->pattern + (h * a->n_rows + t.first_row + r) * a->n_keys;
                memset(shown, 0, (size_t)a->n_keys * sizeof *shown);
                memcpy(shown + first_visible[r], seen, (size_t)n_seen * sizeof *shown);
            }
        }
        /* A head's dimensions may end inside a panel, so z is gathered in a buffer, a panel at a time. Before and past the chunks of
         * keys that all rows see, each row goes its own way: 0 times an infinite value that it does not see would be NaN. */
        for (int64_t p = 0; p < n_panels; p++) {
            float z[FEW_ROWS * LANES] = {0};
            const panels values = panels_from(v, (head * n_panels + p) * v.panel);
            if (shared < n_shared) {
                for (int64_t r = 0; r < t.n_rows; r++)
                    mix(scores + r * a->capacity, values, z + r * LANES, first_visible[r], shared);
                const rows pattern = rows_as_they_are(scores + shared, a->capacity);
                multiply_stored(t.n_rows, pattern, 1, panels_from(values, shared * LANES), z, LANES, n_shared - shared);
            }
            for (int64_t r = 0; r < t.n_rows; r++) {
                const int64_t from = shared < n_shared ? n_shared : first_visible[r];
                mix(scores + r * a->capacity, values, z + r * LANES, from, n_visible[r]);
                float *to = a->z + (t.first_row + r) * width + h * a->d_head + p * LANES;
                memcpy(to, z + r * LANES, (size_t)smaller(LANES, a->d_head - p * LANES) * sizeof *to);
            }
        }
    }
}

KERNEL(attention_f32) { attention(args, begin, end, worker, F32); }
KERNEL(attention_f16) { attention(args, begin, end, worker, F16); }
