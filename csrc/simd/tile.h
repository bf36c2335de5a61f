/* The one inner loop of linear and attention: a few rows of x against a few panels of weights, chunked sums (see the
 * header). */

/* Calls CALL(n) with a constant for n, which is 1 .. most; `most` is a constant, 16 at most. */
#define HEIGHT(height, most, CALL)          \
    case height:                            \
        if (height <= (most)) CALL(height); \
        break;
#define WITH_HEIGHT(n, most, CALL) \
    switch (n) {                   \
        HEIGHT(1, most, CALL)      \
        HEIGHT(2, most, CALL)      \
        HEIGHT(3, most, CALL)      \
        HEIGHT(4, most, CALL)      \
        HEIGHT(5, most, CALL)      \
        HEIGHT(6, most, CALL)      \
        HEIGHT(7, most, CALL)      \
        HEIGHT(8, most, CALL)      \
        HEIGHT(9, most, CALL)      \
        HEIGHT(10, most, CALL)     \
        HEIGHT(11, most, CALL)     \
        HEIGHT(12, most, CALL)     \
        HEIGHT(13, most, CALL)     \
        HEIGHT(14, most, CALL)     \
        HEIGHT(15, most, CALL)     \
        HEIGHT(16, most, CALL)     \
    }

/* x[r, i] for the rows of one tile. Rows as they are have {n_in, 1}; rows packed into panels of 16 have {1, 16}, and
 * what lies `next` elements further is wanted as soon as these are done with, what lies `later` elements further after
 * that. */
typedef struct {
    const float *at;
    int64_t row, inner, next, later;
} rows;

ALWAYS_INLINE rows rows_as_they_are(const float *at, int64_t row) {
    const rows x = {at, row, 1, 0, 0};
    return x;
}

enum { AHEAD = 4096 }; /* bytes between reading and prefetching a stream */

/* Weights w[p, i, lane], p panels from one another by `panel` elements. What lies `ahead` elements further is
 * prefetched. */
typedef struct {
    const void *at;
    int64_t panel, ahead;
    enum dtype dtype;
} panels;

/* Panels as those want them who read each from its first element to its last. */
ALWAYS_INLINE panels stream_of(const void *at, int64_t panel, enum dtype dtype) {
    const panels w = {at, panel, AHEAD / size_of(dtype), dtype};
    return w;
}

ALWAYS_INLINE panels panels_from(panels w, int64_t n_elements) {
    w.at = (const char *)w.at + n_elements * size_of(w.dtype);
    return w;
}

enum { MOST_ROWS = 8, MOST_PANELS = 4 }; /* of a tile, for any instruction set */

/* A step of a sum takes one input, or a pair. If a pair takes two steps, the odd input comes first. */
ALWAYS_INLINE int64_t inputs_of_step(enum dtype dtype) { return pairs(dtype) ? PAIR_STEP : 1; }
ALWAYS_INLINE int64_t place_of_step(int64_t i, enum dtype dtype) {
    if (!pairs(dtype) || dtype == READY_PAIRS) return i;
    return PAIR_STEP == 1 ? i ^ 1 : i * PAIR_STEP;
}
ALWAYS_INLINE v16 add_products(v16 sum, v16 w, v16 x, enum dtype dtype) {
    return pairs(dtype) ? v16_add_pairs(sum, w, x) : v16_fma(w, x, sum);
}

/* Adds to the totals y[r, 16 p + lane]. R and P are compile-time constants at every call, so that the accumulators live
 * in registers: R rows share each weight that is loaded, P panels share each x that is broadcast. Prefetches go into
 * L2, as what is read now fills L1; where a step is long enough for one more, the next rows come into L1. */
ALWAYS_INLINE void tile(rows x, panels w, float *y, int64_t y_stride, int64_t n_in, const int R, const int P) {
    const int64_t chunk = CHUNK / inputs_of_step(w.dtype);
    for (int64_t start = 0; start < n_in; start += chunk) {
        const int64_t stop = smaller(start + chunk, n_in);
        v16 sum[MOST_ROWS][MOST_PANELS], scales[MOST_PANELS];
#pragma GCC unroll 4
        for (int p = 0; p < P; p++)
            if (w.dtype == KEYS_Q8)
                scales[p] = v16_load_f16((const uint16_t *)((const char *)w.at + p * w.panel + n_in * LANES) +
                                         start / CHUNK * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) sum[r][p] = v16_set1(0.0f);
        for (int64_t i = start; i < stop; i++) {
            v16 weights[MOST_PANELS];
            if (x.inner > 1) __builtin_prefetch(x.at + i * x.inner + x.later, 0, 2);
            if (x.inner > 1 && P > 1) __builtin_prefetch(x.at + i * x.inner + x.next);
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
                const int64_t at = p * w.panel + place_of_step(i, w.dtype) * LANES;
                __builtin_prefetch((const char *)w.at + (at + w.ahead) * size_of(w.dtype), 0, 2);
                weights[p] = load_stored(w.at, at, w.dtype);
                if (w.dtype == KEYS_Q8) weights[p] = v16_mul(weights[p], scales[p]);
            }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++) {
                const v16 xr = v16_set1(x.at[r * x.row + i * x.inner]);
#pragma GCC unroll 4
                for (int p = 0; p < P; p++) sum[r][p] = add_products(sum[r][p], weights[p], xr, w.dtype);
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int p = 0; p < P; p++) {
                float *total = y + r * y_stride + p * LANES;
                v16_store(total, v16_add(v16_load(total), sum[r][p]));
            }
    }
}

/* The same for any number of rows, in tiles as even as can be. */
ALWAYS_INLINE void tiles(int64_t n_rows, rows x, panels w, float *y, int64_t y_stride, int64_t n_in, const int P) {
    for (int64_t r = 0, n; r < n_rows; r += n) {
        const rows xr = {x.at + r * x.row, x.row, x.inner, x.next, x.later};
        n = even_part(n_rows - r, TILE_ROWS);
#define TILE(height) tile(xr, w, y + r * y_stride, y_stride, n_in, height, P)
        WITH_HEIGHT(n, TILE_ROWS, TILE)
#undef TILE
    }
}

/* The same for any number of panels. Inlined where x.inner and the dtype are constants. */
ALWAYS_INLINE void multiply(int64_t n_rows, rows x, int64_t n_panels, panels w, float *y, int64_t y_stride,
                            int64_t n_in) {
    int64_t p = 0;
    if (n_rows == 1)
        for (; p + GEMV_PANELS <= n_panels; p += GEMV_PANELS)
            tile(x, panels_from(w, p * w.panel), y + p * LANES, y_stride, n_in, 1, GEMV_PANELS);
    for (int64_t n; p < n_panels; p += n) {
        n = even_part(n_panels - p, TILE_PANELS);
        if (n == 3 && TILE_PANELS >= 3) tiles(n_rows, x, panels_from(w, p * w.panel), y + p * LANES, y_stride, n_in, 3);
        else if (n == 2 && TILE_PANELS >= 2)
            tiles(n_rows, x, panels_from(w, p * w.panel), y + p * LANES, y_stride, n_in, 2);
        else tiles(n_rows, x, panels_from(w, p * w.panel), y + p * LANES, y_stride, n_in, 1);
    }
}

/* Compiled once for each dtype, for rows as they are. */
#define MULTIPLY(name, stored)                                                                                       \
    static void name(int64_t n_rows, rows x, int64_t n_panels, panels w, float *y, int64_t y_stride, int64_t n_in) { \
        w.dtype = stored, x.inner = 1;                                                                               \
        multiply(n_rows, x, n_panels, w, y, y_stride, n_in);                                                         \
    }
MULTIPLY(multiply_f32, F32)
MULTIPLY(multiply_f16, F16)
MULTIPLY(multiply_bf16, BF16)
MULTIPLY(multiply_keys_q8, KEYS_Q8)

static void multiply_stored(int64_t n_rows, rows x, int64_t n_panels, panels w, float *y, int64_t y_stride,
                            int64_t n_in) {
    if (w.dtype == F32) multiply_f32(n_rows, x, n_panels, w, y, y_stride, n_in);
    else if (w.dtype == F16) multiply_f16(n_rows, x, n_panels, w, y, y_stride, n_in);
    else if (w.dtype == KEYS_Q8) multiply_keys_q8(n_rows, x, n_panels, w, y, y_stride, n_in);
    else multiply_bf16(n_rows, x, n_panels, w, y, y_stride, n_in);
}

/* Rows that lie side by side: element i of row r at i * x.inner + r. */
#define MULTIPLY_BESIDE(name, stored)                                                                                \
    static void name(int64_t n_rows, rows x, int64_t n_panels, panels w, float *y, int64_t y_stride, int64_t n_in) { \
        w.dtype = stored, x.row = 1;                                                                                 \
        multiply(n_rows, x, n_panels, w, y, y_stride, n_in);                                                         \
    }
MULTIPLY_BESIDE(multiply_beside, F32)
