/* Linear layers: rows of activations times panels of weights.
 *
 * Few rows (decode) are bound by reading the weights once: they stream from memory and are widened in registers. Many
 * rows (prefill) are bound by arithmetic, so both factors have to be in a cache. Rows are packed side by side, which
 * makes broadcasts sequential loads. 64 of them stay in L2 while they are multiplied with 24 panels of weights, 8 KiB
 * of each. The weights of a tile stay in L1 until they are multiplied with all these rows; each tile widens them again,
 * which costs less than storing them wide and reading twice the bytes. Meanwhile the next tile's weights are prefetched
 * into L2. Totals are kept in a buffer until they are complete: y's rows are often a power of two apart, and would
 * compete for the same lines of the cache. */

enum { PIECE = 8 << 10, ROW_BLOCK = 64, PANEL_BLOCK = 24 };
_Static_assert(PIECE % (4 * LANES * CHUNK) == 0, "a piece of any dtype is whole chunks");

static void start_totals(float *totals, int64_t stride, int64_t n_rows, int64_t n_outputs, const float *bias) {
    for (int64_t r = 0; r < n_rows; r++, totals += stride)
        if (bias) memcpy(totals, bias, (size_t)n_outputs * sizeof *totals);
        else memset(totals, 0, (size_t)n_outputs * sizeof *totals);
}

/* The same, and zeros in the lanes of the last panel that lie past the last output. */
static void start_panels(float *totals, int64_t stride, int64_t n_rows, int64_t n_outputs, const float *bias) {
    const int64_t n_past = -n_outputs & (LANES - 1);
    start_totals(totals, stride, n_rows, n_outputs, bias);
    if (n_past) start_totals(totals + n_outputs, stride, n_rows, n_past, NULL);
}

static void linear_few_rows(const refgpt_linear_args *a, int64_t first, int64_t n_outputs, panels w) {
    const rows x = rows_as_they_are(a->x, a->n_in);
    const int64_t n_panels = n_outputs / LANES, n_left = n_outputs % LANES;
    float *y = a->y + first;
    start_totals(y, a->n_out, a->n_rows, n_outputs, a->bias ? a->bias + first : NULL);
    multiply_stored(a->n_rows, x, n_panels, w, y, a->n_out, a->n_in);
    if (n_left) { /* the last panel's lanes reach past y: its totals need a buffer */
        float totals[FEW_ROWS * LANES] = {0};
        y += n_panels * LANES;
        for (int64_t r = 0; r < a->n_rows; r++)
            memcpy(totals + r * LANES, y + r * a->n_out, (size_t)n_left * sizeof *y);
        multiply_stored(a->n_rows, x, 1, panels_from(w, n_panels * w.panel), totals, LANES, a->n_in);
        for (int64_t r = 0; r < a->n_rows; r++)
            memcpy(y + r * a->n_out, totals + r * LANES, (size_t)n_left * sizeof *y);
    }
}

/* y for up to ROW_BLOCK rows (whole panels of packed rows) and PANEL_BLOCK panels of weights. Depth by depth, a PIECE
 * of each panel. */
ALWAYS_INLINE void linear_block(const refgpt_linear_args *a, int64_t first_row, int64_t first, int64_t n_outputs,
                                panels w) {
    enum { WIDTH = PANEL_BLOCK * LANES };
    const int64_t deepest = PIECE / (LANES * size_of(w.dtype)); /* the depth of a piece */
    float totals[ROW_BLOCK * WIDTH] __attribute__((aligned(64)));
    const int64_t n_rows = smaller(ROW_BLOCK, a->n_rows - first_row), n_panels = (n_outputs + LANES - 1) / LANES;
    start_panels(totals, WIDTH, n_rows, n_outputs, a->bias ? a->bias + first : NULL);
    for (int64_t i = 0; i < a->n_in; i += deepest) {
        const int64_t depth = smaller(deepest, a->n_in - i);
        for (int64_t p = 0, beside; p < n_panels; p += beside) {
            beside = even_part(n_panels - p, TILE_PANELS);
            w.ahead = p + beside < n_panels ? beside * w.panel : deepest * LANES - p * w.panel;
            for (int64_t r = 0; r < n_rows; r += LANES) {
                const int64_t next = r + LANES < n_rows ? LANES * a->n_in : -r * a->n_in;
                const rows x = {(const float *)a->x_panels + (first_row + r) * a->n_in + i * LANES, 1, LANES, next,
                                deepest * LANES};
                multiply(smaller(LANES, n_rows - r), x, beside, panels_from(w, p * w.panel + i * LANES),
                         totals + r * WIDTH + p * LANES, WIDTH, depth);
            }
        }
    }
    for (int64_t r = 0; r < n_rows; r++)
        memcpy(a->y + (first_row + r) * a->n_out + first, totals + r * WIDTH, (size_t)n_outputs * sizeof *totals);
}

ALWAYS_INLINE void linear(const refgpt_linear_args *a, int64_t begin, int64_t end, enum dtype dtype) {
    const int64_t panel = a->n_in * LANES;
    const panels w = stream_of(a->w, panel, dtype);
    if (!a->x_panels) {
        linear_few_rows(a, begin * LANES, smaller(end * LANES, a->n_out) - begin * LANES,
                        panels_from(w, begin * panel));
        return;
    }
    for (int64_t p = begin; p < end; p += PANEL_BLOCK)
        for (int64_t r = 0; r < a->n_rows; r += ROW_BLOCK) {
            const int64_t last = smaller(smaller(p + PANEL_BLOCK, end) * LANES, a->n_out);
            linear_block(a, r, p * LANES, last - p * LANES, panels_from(w, p * panel));
        }
}

KERNEL(linear_f32) { linear(args, begin, end, F32); }
KERNEL(linear_f16) { linear(args, begin, end, F16); }
KERNEL(linear_bf16) { linear(args, begin, end, BF16); }
