/* The cases of linear layers, and of the rounding of their rows; part of rows_driver.c, whose functions they use. */

static void linear_quantised_case(call *c, const char *kind, int64_t n, int64_t n_rows) {
    const int64_t n_out = 1 + random_below(130), n_panels = panels_of(n_out);
    c->args.linear_quantised = (refgpt_linear_quantised_args){records(c, n_rows, blocks_of(n)),
                                                              quantised(c, n_panels, blocks_of(n), kind),
                                                              random_below(4) ? floats(c, n_out) : NULL,
                                                              output(c, n_rows * n_out * (int64_t)sizeof(float)),
                                                              n_rows,
                                                              n,
                                                              n_out};
    c->n_items = n_panels;
}

static void quantise_rows_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.quantise_rows =
        (refgpt_quantise_rows_args){floats(c, n_rows * n), output(c, n_rows * blocks_of(n) * 40), n_rows, n};
    c->n_items = (n_rows + REFGPT_ROW_GROUP - 1) / REFGPT_ROW_GROUP * blocks_of(n);
}

static void round_rows_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    float *x = floats(c, n_rows * n);
    for (int64_t i = 0; i < n_rows * n; i += 3) x[i] *= 0x1p-56f; /* near the size below which numbers count as 0 */
    c->args.round_rows = (refgpt_round_rows_args){x, output(c, panels_of(n_rows) * pairs_of(n) * LANES * 4), n_rows, n};
    c->n_items = panels_of(n_rows);
}

static void linear_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    if (dtype[0] == 'q') {
        linear_quantised_case(c, dtype, n, n_rows);
        return;
    }
    const int64_t n_out = 1 + random_below(130), n_panels = panels_of(n_out);
    float *x = floats(c, n_rows * n), *x_panels = NULL;
    if (n_rows > 8) {
        x_panels = buffer(c, panels_of(n_rows) * n * LANES * (int64_t)sizeof *x);
        for (int64_t r = 0; r < panels_of(n_rows) * LANES; r++)
            for (int64_t i = 0; i < n; i++)
                x_panels[(r / LANES * n + i) * LANES + r % LANES] = r < n_rows ? x[r * n + i] : 0.0f;
    }
    c->args.linear = (refgpt_linear_args){x,
                                          x_panels,
                                          stored(c, n_panels * n * LANES, dtype),
                                          random_below(4) ? floats(c, n_out) : NULL,
                                          output(c, n_rows * n_out * (int64_t)sizeof *x),
                                          n_rows,
                                          n,
                                          n_out};
    c->n_items = n_panels;
}

/* Some rows and weights near the size below which numbers count as 0. */
static void linear_bf16_dots_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    linear_case(c, "bf16", n, n_rows);
    (void)dtype;
    float *x = (float *)c->args.linear.x;
    for (int64_t i = 0; i < n_rows * n; i += 3) x[i] *= 0x1p-56f;
    if (n_rows > 8) { /* as round_rows writes them: no number is smaller than 2^-56, and 0 follows the last input */
        const int64_t n_numbers = panels_of(n_rows) * pairs_of(n) * LANES * 2;
        uint16_t *rows = stored(c, n_numbers, "bf16");
        for (int64_t i = 0; i < n_numbers; i++)
            if ((rows[i] & 0x7fff) < 0x2380 || (n % 2 && i % 2 && i / (2 * LANES) % pairs_of(n) == n / 2)) rows[i] = 0;
        c->args.linear.x_panels = rows;
    }
    uint16_t *w = (uint16_t *)c->args.linear.w;
    for (int64_t i = 0; i < c->n_items * n * LANES; i += 5) w[i] = (uint16_t)(0x2300 + random_below(0x100));
}
