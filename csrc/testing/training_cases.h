/* The cases of the kernels of training; part of rows_driver.c, whose functions they use. */

/* Rows as panels, zeros in the lanes past the last. */
static float *rows_in_panels(call *c, int64_t n_rows, int64_t n) {
    float *panels = buffer(c, panels_of(n_rows) * n * LANES * (int64_t)sizeof *panels);
    for (int64_t r = 0; r < panels_of(n_rows) * LANES; r++)
        for (int64_t i = 0; i < n; i++)
            panels[(r / LANES * n + i) * LANES + r % LANES] = r < n_rows ? random_float() : 0.0f;
    return panels;
}

static void linear_backward_case(call *c, const char *kind, int64_t n, int64_t n_rows) {
    const int64_t n_in = 1 + random_below(130), n_panels = panels_of(n);
    void *w = kind[0] == 'q' ? quantised(c, n_panels, blocks_of(n_in), kind) : stored(c, n_panels * n_in * LANES, kind);
    c->args.linear_backward = (refgpt_linear_backward_args){
        rows_in_panels(c, n_rows, n), w, output(c, n_rows * n_in * (int64_t)sizeof(float)), n_rows, n_in, n};
    c->n_items = blocks_of(n_in);
}

/* The first rows of some texts, one of which may have no rows. */
static int64_t *starts_of_texts(call *c, int64_t n_rows, int64_t n_texts) {
    int64_t *starts = indices(c, n_texts + 1, 0, 1);
    for (int64_t s = 1; s < n_texts; s++) starts[s] = starts[s - 1] + random_below(n_rows - starts[s - 1] + 1);
    starts[n_texts] = n_rows;
    return starts;
}

static void linear_weight_backward_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    const int64_t n_in = 1 + random_below(230);
    c->args.linear_weight_backward =
        (refgpt_linear_weight_backward_args){floats(c, n * n_in),
                                             floats(c, n * n_rows),
                                             output(c, n_rows * n_in * (int64_t)sizeof(float)),
                                             starts_of_texts(c, n, 3),
                                             3,
                                             n_in,
                                             n_rows};
    c->n_items = panels_of(n_rows);
}

static void column_sum_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.column_sum = (refgpt_column_sum_args){floats(c, n * n_rows), output(c, n * (int64_t)sizeof(float)),
                                                  starts_of_texts(c, n_rows, 2), 2, n};
    c->n_items = panels_of(n);
}

static void attention_backward_case(call *c, const char *dtype, int64_t n, int64_t n_heads) {
    (void)dtype;
    static const int64_t widths[] = {1, 8, 16, 17, 24, 40};
    const int64_t t = n ? n : 1, n_head = n_heads < 4 ? n_heads : 3, d_head = widths[random_below(6)],
                  n_z = t * n_head * d_head;
    const int64_t whole = (t + 31) / 32 * 32, width = panels_of(d_head) * LANES;
    const int64_t scratch = 5 * whole * width + 64 * (width + whole + LANES), n_bytes = n_z * (int64_t)sizeof(float);
    const int64_t n_texts = 1 + random_below(3);
    int64_t *starts = starts_of_texts(c, t, n_texts), *n_visible = indices(c, t, 1, 2);
    int64_t *first_visible = random_below(2) ? indices(c, t, 0, 1) : NULL;
    for (int64_t s = 0; s < n_texts; s++)
        for (int64_t r = starts[s]; r < starts[s + 1]; r++) n_visible[r] = 1 + random_below(starts[s + 1] - starts[s]);
    for (int64_t r = 0; r < t && first_visible; r++) first_visible[r] = random_below(n_visible[r]);
    c->args.attention_backward = (refgpt_attention_backward_args){
        floats(c, n_z),
        floats(c, n_z),
        floats(c, n_z),
        floats(c, n_z),
        output(c, n_bytes),
        output(c, n_bytes),
        output(c, n_bytes),
        n_texts == 1 && random_below(2) ? output(c, n_head * t * t * (int64_t)sizeof(float)) : NULL,
        floats(c, scratch),
        first_visible,
        n_visible,
        starts,
        n_head,
        d_head,
        scratch,
        2.5f};
    c->n_items = n_texts * n_head;
}

static void layer_norm_backward_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.layer_norm_backward = (refgpt_layer_norm_backward_args){floats(c, n_rows * n),
                                                                    floats(c, n),
                                                                    floats(c, n_rows * n),
                                                                    output(c, n_rows * n * (int64_t)sizeof(float)),
                                                                    output(c, n_rows * 2 * (int64_t)sizeof(float)),
                                                                    n,
                                                                    1e-5f};
    c->n_items = n_rows;
}

static void layer_norm_weight_backward_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.layer_norm_weight_backward = (refgpt_layer_norm_weight_backward_args){floats(c, n_rows * n),
                                                                                  floats(c, n_rows * n),
                                                                                  floats(c, n_rows * 2),
                                                                                  output(c, n * (int64_t)sizeof(float)),
                                                                                  starts_of_texts(c, n_rows, 2),
                                                                                  2,
                                                                                  n};
    c->n_items = panels_of(n);
}

static void embedding_backward_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.embedding_backward = (refgpt_embedding_backward_args){
        floats(c, n_rows * n), indices(c, n_rows, 0, 13), output(c, 13 * n * (int64_t)sizeof(float)), n_rows, n};
    c->n_items = panels_of(n);
}

static void cross_entropy_backward_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    n = n ? n : 1;
    c->args.cross_entropy_backward =
        (refgpt_cross_entropy_backward_args){floats(c, n_rows * n),
                                             indices(c, n_rows, 0, n),
                                             floats(c, n_rows),
                                             output(c, n_rows * n * (int64_t)sizeof(float)),
                                             output(c, n_rows * 2 * (int64_t)sizeof(float)),
                                             n};
    c->n_items = n_rows;
}

static void adamw_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    const int64_t n_bytes = n_rows * n * (int64_t)sizeof(float);
    c->args.adamw = (refgpt_adamw_args){floats(c, n_rows * n),
                                        output(c, n_bytes),
                                        output(c, n_bytes),
                                        output(c, n_bytes),
                                        n_rows * n,
                                        0.9f,
                                        0.1f,
                                        0.99f,
                                        0.01f,
                                        0.999f,
                                        0.001f,
                                        1e-8f,
                                        0.5f,
                                        0.3f,
                                        0.05f,
                                        0.2f};
    c->n_items = (n_rows * n + 511) / 512;
}

static void gram_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    const int64_t n_lanes = panels_of(n_rows) * LANES;
    c->args.gram = (refgpt_gram_args){rows_in_panels(c, n_rows, n),
                                      random_below(2) ? rows_in_panels(c, n_rows, n_rows) : NULL,
                                      output(c, n_lanes * n_rows * (int64_t)sizeof(float)),
                                      n_rows,
                                      n,
                                      -4.75f,
                                      2.03125f};
    c->n_items = panels_of(n_rows);
}

static void newton_schulz_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.newton_schulz =
        (refgpt_newton_schulz_args){rows_in_panels(c, n, n),
                                    rows_in_panels(c, n_rows, n),
                                    output(c, panels_of(n_rows) * LANES * n * (int64_t)sizeof(float)),
                                    output(c, panels_of(n) * LANES * n_rows * (int64_t)sizeof(float)),
                                    n,
                                    n_rows,
                                    3.4375f};
    c->n_items = panels_of(n_rows);
}
