/* The backward of attention, a text and a head at a time: scores and pattern are computed again, then the gradients, by
 * products of tiles as in the forward pass. 32 queries, one chunk of the sums over queries, are computed together, for
 * only the keys that at least one of them sees. The memory grows with the text's length, not with its square. Bound by
 * arithmetic. */

/* Places in a worker's scratch memory, for n keys, a multiple of 32. */
typedef struct {
    float *keys, *values;   /* panels [n / 16][d_head][16]: lanes are keys */
    float *k, *q, *dz;      /* panels [ceil(d_head / 16)][n or 32][16]: lanes are dimensions */
    float *dk, *dv;         /* totals [n][width] */
    float *pattern, *slope; /* [32][stride] */
    int64_t width;          /* d_head in whole panels */
    int64_t stride;         /* n + 16, so that neighbouring rows do not share the cache's lines */
} attention_places;

static attention_places attention_places_of(const refgpt_attention_backward_args *a, int64_t n_rows, int64_t worker) {
    const int64_t n = whole_chunks(n_rows), width = (a->d_head + LANES - 1) / LANES * LANES;
    attention_places at = {.width = width, .stride = n + LANES};
    at.keys = a->scratch + worker * a->scratch_floats;
    at.values = at.keys + n * width, at.k = at.values + n * width;
    at.q = at.k + n * width, at.dz = at.q + CHUNK * width;
    at.dk = at.dz + CHUNK * width, at.dv = at.dk + n * width;
    at.pattern = at.dv + n * width, at.slope = at.pattern + CHUNK * at.stride;
    return at;
}

/* Rows of a head as panels whose lanes are rows; zeros past the last. */
static void rows_as_lanes(const float *x, int64_t stride, int64_t n_rows, int64_t d_head, float *lanes) {
    for (int64_t first = 0; first < n_rows; first += LANES, lanes += d_head * LANES)
        for (int64_t d = 0; d < d_head; d += LANES) {
            v16 square[LANES];
            for (int64_t l = 0; l < LANES; l++)
                square[l] = first + l < n_rows ? load_row(x + (first + l) * stride, d, d_head, 0.0f) : v16_set1(0.0f);
            v16_turn(square);
            for (int64_t i = 0; i < smaller(LANES, d_head - d); i++) v16_store(lanes + (d + i) * LANES, square[i]);
        }
}

/* Rows of a head as panels [..][room][16] whose lanes are dimensions; zeros past the last of both. */
static void dimensions_as_lanes(const float *x, int64_t stride, int64_t n_rows, int64_t d_head, int64_t room,
                                float *lanes) {
    for (int64_t d = 0; d < d_head; d += LANES, lanes += room * LANES) {
        for (int64_t r = 0; r < n_rows; r++) v16_store(lanes + r * LANES, load_row(x + r * stride, d, d_head, 0.0f));
        memset(lanes + n_rows * LANES, 0, (size_t)((room - n_rows) * LANES) * sizeof *lanes);
    }
}

/* Products of up to 32 rows with the keys or values of some panels, into a [32][stride]. */
static void attention_products(const float *x, int64_t x_stride, int64_t n_rows, const float *lanes, int64_t d_head,
                               int64_t n_panels, float *products, int64_t stride) {
    for (int64_t r = 0; r < n_rows; r++)
        memset(products + r * stride, 0, (size_t)(n_panels * LANES) * sizeof *products);
    const panels w = stream_of(lanes, d_head * LANES, F32);
    multiply_f32(n_rows, rows_as_they_are(x, x_stride), n_panels, w, products, stride, d_head);
}

/* Replaces a row's scores by its pattern, and the gradient of its pattern by that of its scores; of the keys from
 * `start` to `stop`, those that it does not see become zero in both. */
static void attention_row_backward(float *pattern, float *slope, int64_t start, int64_t first, int64_t n_visible,
                                   int64_t stop, v16 divisor) {
    float *p = pattern + first, *ds = slope + first;
    const int64_t n = n_visible - first;
    for (int64_t s = 0; s < n; s += LANES) store_row(p, s, n, v16_div(load_row(p, s, n, 0.0f), divisor));
    softmax_row(p, p, n);
    v16 sum = v16_set1(0.0f);
    for (int64_t s = 0; s < n; s += LANES)
        sum = v16_add(sum, v16_mul(load_row(ds, s, n, 0.0f), load_row(p, s, n, 0.0f)));
    const v16 mean = v16_set1(v16_sum(sum));
    for (int64_t s = 0; s < n; s += LANES) {
        const v16 off = v16_sub(load_row(ds, s, n, 0.0f), mean);
        store_row(ds, s, n, v16_div(v16_mul(load_row(p, s, n, 0.0f), off), divisor));
    }
    memset(pattern + start, 0, (size_t)(first - start) * sizeof *pattern);
    memset(slope + start, 0, (size_t)(first - start) * sizeof *slope);
    memset(pattern + n_visible, 0, (size_t)(stop - n_visible) * sizeof *pattern);
    memset(slope + n_visible, 0, (size_t)(stop - n_visible) * sizeof *slope);
}

/* Up to 32 queries from `first_row` on, a multiple of 32, of a text of `n_text` rows. */
static void attention_backward_tile(const refgpt_attention_backward_args *a, attention_places at, int64_t n_text,
                                    int64_t h, int64_t first_row) {
    const int64_t row = a->n_head * a->d_head, offset = first_row * row + h * a->d_head, n_panels = at.width / LANES;
    const int64_t n_rows = smaller(CHUNK, n_text - first_row), n = whole_chunks(n_text);
    const int64_t *n_visible = a->n_visible + first_row,
                  *first_visible = a->first_visible ? a->first_visible + first_row : NULL;
    int64_t first = n_text, last = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        first = smaller(first, first_visible ? first_visible[r] : 0);
        last = last > n_visible[r] ? last : n_visible[r];
    }
    const int64_t start = first / CHUNK * CHUNK, n_key_panels = (last - start + LANES - 1) / LANES,
                  stop = start + n_key_panels * LANES;

    attention_products(a->q + offset, row, n_rows, at.keys + start * a->d_head, a->d_head, n_key_panels,
                       at.pattern + start, at.stride);
    if (a->dpattern) { /* of all keys, seen or not */
        attention_products(a->dz + offset, row, n_rows, at.values, a->d_head, n / LANES, at.slope, at.stride);
        for (int64_t r = 0; r < n_rows; r++)
            memcpy(a->dpattern + (h * n_text + first_row + r) * n_text, at.slope + r * at.stride,
                   (size_t)n_text * sizeof *at.slope);
    } else {
        const float *values = at.values + start * a->d_head;
        attention_products(a->dz + offset, row, n_rows, values, a->d_head, n_key_panels, at.slope + start, at.stride);
    }
    for (int64_t r = 0; r < n_rows; r++)
        attention_row_backward(at.pattern + r * at.stride, at.slope + r * at.stride, start,
                               first_visible ? first_visible[r] : 0, n_visible[r], stop, v16_set1(a->divisor));

    for (int64_t r = 0; r < n_rows; r += FEW_ROWS) /* sums over keys; dq's rows may end inside a panel */
        for (int64_t p = 0; p < n_panels; p++) {
            float dq[FEW_ROWS * LANES] = {0};
            const int64_t n_few = smaller(FEW_ROWS, n_rows - r);
            const rows slope = rows_as_they_are(at.slope + r * at.stride + start, at.stride);
            const panels k = stream_of(at.k + (p * n + start) * LANES, n * LANES, F32);
            multiply_f32(n_few, slope, 1, k, dq, LANES, stop - start);
            for (int64_t i = 0; i < n_few; i++)
                memcpy(a->dq + offset + (r + i) * row + p * LANES, dq + i * LANES,
                       (size_t)smaller(LANES, a->d_head - p * LANES) * sizeof *dq);
        }
    /* This is one chunk of the sums over queries. */
    dimensions_as_lanes(a->q + offset, row, n_rows, a->d_head, CHUNK, at.q);
    dimensions_as_lanes(a->dz + offset, row, n_rows, a->d_head, CHUNK, at.dz);
    const rows pattern = {at.pattern + start, 1, at.stride, 0, 0}, slope = {at.slope + start, 1, at.stride, 0, 0};
    const panels q = {at.q, CHUNK * LANES, 0, F32}, dz = {at.dz, CHUNK * LANES, 0, F32};
    multiply_beside(stop - start, pattern, n_panels, dz, at.dv + start * at.width, at.width, n_rows);
    multiply_beside(stop - start, slope, n_panels, q, at.dk + start * at.width, at.width, n_rows);
}

/* The arguments of one text: everything from its first row on. */
static refgpt_attention_backward_args text_of(const refgpt_attention_backward_args *a, int64_t text) {
    refgpt_attention_backward_args of = *a;
    const int64_t first = a->starts[text], offset = first * a->n_head * a->d_head;
    of.starts += text;
    of.q += offset, of.k += offset, of.v += offset, of.dz += offset;
    of.dq += offset, of.dk += offset, of.dv += offset;
    of.n_visible += first;
    if (of.first_visible) of.first_visible += first;
    return of;
}

KERNEL(attention_backward) {
    const refgpt_attention_backward_args *all = args;
    for (int64_t item = begin; item < end; item++) {
        const refgpt_attention_backward_args text = text_of(all, item / all->n_head), *a = &text;
        const int64_t h = item % a->n_head, n_rows = a->starts[1] - a->starts[0];
        const attention_places at = attention_places_of(a, n_rows, worker);
        const int64_t row = a->n_head * a->d_head, n = whole_chunks(n_rows);
        const float *k = a->k + h * a->d_head, *v = a->v + h * a->d_head;
        memset(at.keys, 0, (size_t)(n * at.width) * sizeof *at.keys);
        memset(at.values, 0, (size_t)(n * at.width) * sizeof *at.values);
        rows_as_lanes(k, row, n_rows, a->d_head, at.keys);
        rows_as_lanes(v, row, n_rows, a->d_head, at.values);
        dimensions_as_lanes(k, row, n_rows, a->d_head, n, at.k);
        memset(at.dk, 0, (size_t)(n * at.width) * sizeof *at.dk);
        memset(at.dv, 0, (size_t)(n * at.width) * sizeof *at.dv);
        for (int64_t r = 0; r < n_rows; r += CHUNK) attention_backward_tile(a, at, n_rows, h, r);
        for (int64_t r = 0; r < n_rows; r++) {
            memcpy(a->dk + r * row + h * a->d_head, at.dk + r * at.width, (size_t)a->d_head * sizeof *at.dk);
            memcpy(a->dv + r * row + h * a->d_head, at.dv + r * at.width, (size_t)a->d_head * sizeof *at.dv);
        }
    }
}
