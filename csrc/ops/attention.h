/* Attention of query tiles over the cache: scores, softmax, weighted values. The cache is stored as panels, so both
 * products use the tile of the linear layers: its outputs are keys in the first product, dimensions in the second. One
 * query is bound by reading the cache; a tile of queries shares that reading. */

static inline int64_t whole_chunks(int64_t n) { return (n + CHUNK - 1) / CHUNK * CHUNK; }

/* The keys that the rows of a tile see: row r sees [first[r], stop[r]), and all rows see the whole chunks [shared,
 * n_shared). */
typedef struct {
    const float *pattern; /* [n_rows][stride] */
    int64_t stride, n_rows;
    const int64_t *first, *stop;
    int64_t shared, n_shared;
} tile_view;

/* Where the keys of a sequence lie: its keys [b * block, (b + 1) * block) in block table[b] of the cache. A head has
 * its share of each block, `step` elements (or bytes, of records) from its share of the next block of the cache. */
typedef struct {
    const int64_t *table;
    int64_t n_blocks, block, step;
} places;

/* The distance from a head's share of the first block of the cache to its share of block b of the sequence; and from
 * there to its share of block b + 1, which is read next, or `otherwise` after the last block. */
static inline int64_t place_of(places s, int64_t b) { return s.table[b] * s.step; }
static inline int64_t next_after(places s, int64_t b, int64_t otherwise) {
    return b + 1 < s.n_blocks ? place_of(s, b + 1) - place_of(s, b) : otherwise;
}

/* A head's values in a cache of floats; `first` are its panels in the first block of the cache. */
typedef struct {
    panels first;
    int64_t n_panels;
    places at;
} values_floats;

enum { SLAB = 16 }; /* panels whose z stay in the L1 cache */

/* Adds the values of keys [from, to) to rows of z, in chunks that are counted from index 0; the first may be
 * incomplete. A block is read from end to end. */
static void mix(int64_t n_rows, const float *pattern, int64_t stride, values_floats values, float *z, int64_t from,
                int64_t to) {
    while (from < to) {
        const int64_t b = from / values.at.block, inner = from - b * values.at.block;
        const int64_t stop = smaller(from % CHUNK ? whole_chunks(from) : from - inner + values.at.block, to);
        const rows shares = rows_as_they_are(pattern + from, stride);
        panels some = panels_from(values.first, place_of(values.at, b) + inner * LANES);
        some.ahead = next_after(values.at, b, some.ahead);
        multiply_stored(n_rows, shares, values.n_panels, some, z, SLAB * LANES, stop - from);
        from = stop;
    }
}

/* A head's values in 8 bits. `first` and `scales` are where the integers and the scales of its panels begin, in the
 * first record of the first block of the cache. */
typedef struct {
    const char *first, *scales;
    int64_t record, n_panels;
    places at;
} values_q8;

/* Size in bytes of a record whose integers take n times 16 bytes. */
static inline int64_t record_of(int64_t n, int64_t d_head) { return (n + (d_head + BLOCK - 1) / BLOCK * 2) * LANES; }

/* z of R rows and P panels, for keys [from, stop) of a chunk: sums live in registers, and records are read from end to
 * end. */
ALWAYS_INLINE void mix_some_q8(const float *pattern, int64_t stride, const char *at, int64_t record, int64_t ahead,
                               const float *scales, int64_t from, int64_t stop, float *z, const int R, const int P) {
    v16 sum[MOST_ROWS][MOST_PANELS];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) sum[r][p] = v16_set1(0.0f);
    for (int64_t s = from; s < stop;) {
        const char *key = at + s / LANES * record + s % LANES * LANES;
        for (const int64_t end = smaller(stop, s / LANES * LANES + LANES); s < end; s++, key += LANES) {
            v16 value[MOST_PANELS];
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
                __builtin_prefetch(key + p * LANES * LANES + ahead, 0, 2);
                const v16 scale = v16_set1(scales[p / 2 * CHUNK + s]);
                value[p] = v16_mul(v16_of_bytes((const int8_t *)key + p * LANES * LANES), scale);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const v16 share = v16_set1(pattern[r * stride + s]);
#pragma GCC unroll 4
                for (int p = 0; p < P; p++) sum[r][p] = v16_fma(value[p], share, sum[r][p]);
            }
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int p = 0; p < P; p++) {
            float *total = z + (r * SLAB + p) * LANES;
            v16_store(total, v16_add(v16_load(total), sum[r][p]));
        }
}

/* The same for any number of rows, in tiles of nearly equal height. */
ALWAYS_INLINE void mix_rows_q8(int64_t n_rows, const float *pattern, int64_t stride, const char *at, int64_t record,
                               int64_t ahead, const float *scales, int64_t from, int64_t stop, float *z, const int P) {
    for (int64_t r = 0, n; r < n_rows; r += n, pattern += n * stride, z += n * SLAB * LANES) {
        n = even_part(n_rows - r, TILE_ROWS);
#define MIX(height) mix_some_q8(pattern, stride, at, record, ahead, scales, from, stop, z, height, P)
        WITH_HEIGHT(n, TILE_ROWS, MIX)
#undef MIX
    }
}

static void mix_q8(int64_t n_rows, const float *pattern, int64_t stride, values_q8 values, float *z, int64_t from,
                   int64_t to) {
    const int64_t record = values.record;
    while (from < to) {
        const int64_t chunk = from / CHUNK * CHUNK, first = from - chunk, stop = smaller(CHUNK, to - chunk);
        const int64_t b = chunk / values.at.block, ahead = next_after(values.at, b, 4 * record);
        const int64_t place = place_of(values.at, b) + (chunk - b * values.at.block) / LANES * record;
        const char *at = values.first + place, *f16 = values.scales + place;
        for (int64_t p = 0; p < values.n_panels; p += MOST_PANELS) {
            const int64_t n = smaller(MOST_PANELS, values.n_panels - p);
            const char *some = at + p * LANES * LANES;
            float scales[MOST_PANELS / 2 * CHUNK];
            for (int64_t pair = 0; 2 * pair < n; pair++)
                for (int64_t s = first / LANES * LANES; s < stop; s += LANES) {
                    const char *of_keys = f16 + s / LANES * record + (p / 2 + pair) * LANES * 2;
                    v16_store(scales + pair * CHUNK + s, v16_load_f16((const uint16_t *)of_keys));
                }
            if (n_rows == 1 && n == MOST_PANELS)
                mix_some_q8(pattern + chunk, stride, some, record, ahead, scales, first, stop, z + p * LANES, 1,
                            MOST_PANELS);
            else
                for (int64_t i = 0; i < n; i += 2) {
                    const char *pair = some + i * LANES * LANES;
                    const float *of_pair = scales + i / 2 * CHUNK;
                    float *to_z = z + (p + i) * LANES;
                    if (i + 1 < n && TILE_PANELS > 1)
                        mix_rows_q8(n_rows, pattern + chunk, stride, pair, record, ahead, of_pair, first, stop, to_z,
                                    2);
                    else
                        for (int64_t one = 0; one < smaller(2, n - i); one++)
                            mix_rows_q8(n_rows, pattern + chunk, stride, pair + one * LANES * LANES, record, ahead,
                                        of_pair, first, stop, to_z + one * LANES, 1);
                }
        }
        from = chunk + stop;
    }
}

/* z of a tile's rows. Before and after the chunks of keys that all rows see, each row is computed by itself, without
 * the keys that it does not see: 0 times an infinite value would be NaN. */
#define MIX_TILE(name, kind, one)                                                                        \
    static void name(tile_view t, kind values, float *z) {                                               \
        if (t.shared < t.n_shared) {                                                                     \
            for (int64_t r = 0; r < t.n_rows; r++)                                                       \
                one(1, t.pattern + r * t.stride, 0, values, z + r * SLAB * LANES, t.first[r], t.shared); \
            one(t.n_rows, t.pattern, t.stride, values, z, t.shared, t.n_shared);                         \
        }                                                                                                \
        for (int64_t r = 0; r < t.n_rows; r++) {                                                         \
            const int64_t from = t.shared < t.n_shared ? t.n_shared : t.first[r];                        \
            one(1, t.pattern + r * t.stride, 0, values, z + r * SLAB * LANES, from, t.stop[r]);          \
        }                                                                                                \
    }
MIX_TILE(mix_tile, values_floats, mix)
MIX_TILE(mix_tile_q8, values_q8, mix_q8)
#undef MIX_TILE

/* Neighbouring tiles [from, to) of one sequence. Their items are ordered by head and then by tile, so that a head's
 * keys and values stay in the cache from tile to tile. */
typedef struct {
    int64_t from, to;
} tile_range;

/* All tiles around this one that are of its sequence. */
static tile_range same_sequence(const refgpt_attention_args *a, int64_t tile) {
    tile_range t = {tile, tile + 1};
    while (t.from > 0 && a->tiles[t.from - 1].slot == a->tiles[tile].slot) t.from--;
    while (t.to < a->n_tiles && a->tiles[t.to].slot == a->tiles[tile].slot) t.to++;
    return t;
}

ALWAYS_INLINE void attention(const refgpt_attention_args *a, int64_t begin, int64_t end, int64_t worker,
                             enum dtype dtype) {
    const int64_t width = a->n_head * a->d_head, n_panels = (a->d_head + LANES - 1) / LANES,
                  key_panels = a->block / LANES;
    const int64_t k_record = record_of(a->d_head, a->d_head), v_record = record_of(n_panels * LANES, a->d_head);
    panels k = stream_of(a->k, dtype == KEYS_Q8 ? k_record : a->d_head * LANES, dtype);
    if (dtype == KEYS_Q8) k.ahead = MOST_PANELS * k_record; /* the panels beside it are read with it */
    const panels v = stream_of(a->v, a->block * LANES, dtype);
    const int64_t v_share = dtype == KEYS_Q8 ? key_panels * v_record : n_panels * v.panel; /* of a head in a block */
    float *scores = a->scratch + worker * FEW_ROWS * a->capacity;
    const v16 divisor = v16_set1(a->divisor);
    tile_range range = {0, 0};
    for (int64_t item = begin; item < end; item++) {
        if (item >= range.to * a->n_head) range = same_sequence(a, item / a->n_head);
        const int64_t n_tiles = range.to - range.from, nth = item - range.from * a->n_head;
        const refgpt_query_tile t = a->tiles[range.from + nth % n_tiles];
        const int64_t h = nth / n_tiles;
        const int64_t *n_visible = a->n_visible + t.first_row;
        int64_t first_visible[FEW_ROWS] = {0};
        if (a->first_visible)
            memcpy(first_visible, a->first_visible + t.first_row, (size_t)t.n_rows * sizeof *first_visible);
        /* At least one row of the tile sees keys [first, n_keys), and every row sees the whole chunks [shared,
         * n_shared). */
        int64_t first = a->capacity, n_keys = 0, shared = 0, n_shared = a->capacity;
        for (int64_t r = 0; r < t.n_rows; r++) {
            first = smaller(first, first_visible[r]);
            n_keys = n_keys > n_visible[r] ? n_keys : n_visible[r];
            shared = shared > first_visible[r] ? shared : first_visible[r];
            n_shared = smaller(n_shared, n_visible[r]);
        }
        shared = whole_chunks(shared), n_shared = n_shared / CHUNK * CHUNK;
        const int64_t start = first / LANES * LANES, end_of_keys = (n_keys + LANES - 1) / LANES * LANES;
        const int64_t *table = a->tables ? a->tables + t.slot * (a->capacity / a->block) : &t.slot;
        const int64_t n_blocks = (n_keys + a->block - 1) / a->block;

        for (int64_t r = 0; r < t.n_rows; r++)
            memset(scores + r * a->capacity + start, 0, (size_t)(end_of_keys - start) * sizeof *scores);
        const rows q = rows_as_they_are(a->q + t.first_row * width + h * a->d_head, width);
        const places keys_at = {table, n_blocks, a->block, a->n_head * key_panels * k.panel};
        for (int64_t s = start, stop; s < end_of_keys; s = stop) {
            const int64_t b = s / a->block, inner = s - b * a->block;
            stop = smaller(s - inner + a->block, end_of_keys);
            panels keys = panels_from(k, place_of(keys_at, b) + (h * key_panels + inner / LANES) * k.panel);
            keys.ahead = next_after(keys_at, b, k.ahead);
            multiply_stored(t.n_rows, q, (stop - s) / LANES, keys, scores + s, a->capacity, a->d_head);
        }
        for (int64_t r = 0; r < t.n_rows; r++) {
            float *row = scores + r * a->capacity, *seen = row + first_visible[r];
            const int64_t n_seen = n_visible[r] - first_visible[r];
            for (int64_t s = start; s < n_visible[r]; s += LANES)
                v16_store(row + s, v16_div(v16_load(row + s), divisor));
            softmax_row(seen, seen, n_seen);
            if (a->pattern) {
                float *shown = a->pattern + (h * a->n_rows + t.first_row + r) * a->n_keys;
                memset(shown, 0, (size_t)a->n_keys * sizeof *shown);
                memcpy(shown + first_visible[r], seen, (size_t)n_seen * sizeof *shown);
            }
        }
        /* A head's dimensions may end inside a panel, so z is gathered in a buffer, some panels at a time. */
        const tile_view view = {scores, a->capacity, t.n_rows, first_visible, n_visible, shared, n_shared};
        const places values_at = {table, n_blocks, a->block, a->n_head * v_share};
        float z[FEW_ROWS * SLAB * LANES];
        for (int64_t p = 0; p < n_panels; p += SLAB) {
            const int64_t d = p * LANES, n_some = smaller(SLAB, n_panels - p);
            memset(z, 0, (size_t)(t.n_rows * SLAB * LANES) * sizeof *z);
            if (dtype == KEYS_Q8) {
                const char *at = (const char *)a->v + h * v_share;
                const char *scales = at + (n_panels * LANES + p) * LANES; /* two panels share 16 scales of 2 bytes */
                mix_tile_q8(view, (values_q8){at + p * LANES * LANES, scales, v_record, n_some, values_at}, z);
            } else mix_tile(view, (values_floats){panels_from(v, h * v_share + p * v.panel), n_some, values_at}, z);
            for (int64_t r = 0; r < t.n_rows; r++)
                memcpy(a->z + (t.first_row + r) * width + h * a->d_head + d, z + r * SLAB * LANES,
                       (size_t)smaller(SLAB * LANES, a->d_head - d) * sizeof *z);
        }
    }
}

KERNEL(attention_f32) { attention(args, begin, end, worker, F32); }
KERNEL(attention_f16) { attention(args, begin, end, worker, F16); }
KERNEL(attention_q8) { attention(args, begin, end, worker, KEYS_Q8); }
