/* The cases of attention and of what fills its cache; part of rows_driver.c, whose functions they use. */

/* Records of a cache of 8 bits, n_integers then n_scales. */
static void *cache_records(call *c, int64_t n_records, int64_t n_integers, int64_t n_scales) {
    unsigned char *const start = buffer(c, n_records * (n_integers + 2 * n_scales)), *p = start;
    for (int64_t i = 0; i < n_records; i++) {
        for (int64_t j = 0; j < n_integers; j++) *p++ = (unsigned char)random_bits();
        for (int64_t j = 0; j < n_scales; j++, p += 2) {
            const uint16_t scale = random_half();
            memcpy(p, &scale, sizeof scale);
        }
    }
    return start;
}

static void attention_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    static const int64_t widths[] = {1, 8, 16, 17, 24, 40, 64, 80};
    const int64_t n_keys = n ? n : 1, n_slots = 3;
    int64_t block = panels_of(n_keys + random_below(20)) * LANES, capacity = block, n_blocks = n_slots, *tables = NULL;
    if (random_below(2)) { /* blocks of one chunk or two; a sequence may have the same block twice */
        block = 32 * (1 + random_below(2)), capacity = (n_keys / block + 1) * block, n_blocks = capacity / block + 2;
        tables = indices(c, n_slots * (capacity / block), 0, n_blocks);
    }
    const int64_t d_head = widths[random_below(8)], n_head = 2, n_z = n_rows * n_head * d_head;
    refgpt_query_tile *tiles = buffer(c, n_rows * (int64_t)sizeof *tiles);
    int64_t n_tiles = 0;
    for (int64_t r = 0; r < n_rows; r += tiles[n_tiles++].n_rows) {
        const int64_t height = 1 + random_below(8), left = n_rows - r;
        tiles[n_tiles] = (refgpt_query_tile){r, height < left ? height : left, random_below(n_slots)};
    }
    const int64_t n_cache = n_blocks * n_head * block, n_scales = blocks_of(d_head) * LANES;
    /* Numbers of a panel, or a record, of 16 keys. */
    const int64_t n_of[2] = {d_head * LANES, panels_of(d_head) * LANES * LANES};
    void *kept[2];
    for (int i = 0; i < 2; i++)
        kept[i] = dtype[0] == 'q' ? cache_records(c, n_cache / LANES, n_of[i], n_scales)
                                  : stored(c, n_cache / LANES * n_of[i], dtype);
    c->args.attention =
        (refgpt_attention_args){floats(c, n_z),
                                kept[0],
                                kept[1],
                                output(c, n_z * (int64_t)sizeof(float)),
                                random_below(4) ? output(c, n_head * n_rows * n_keys * (int64_t)sizeof(float)) : NULL,
                                floats(c, 8 * capacity),
                                tiles,
                                tables,
                                NULL,
                                indices(c, n_rows, 1, n_keys + 1),
                                n_tiles,
                                n_rows,
                                n_keys,
                                n_head,
                                d_head,
                                block,
                                capacity,
                                2.5f};
    if (random_below(2)) { /* local: some of the last keys that each row sees */
        const int64_t *n_visible = c->args.attention.n_visible;
        int64_t *first_visible = indices(c, n_rows, 0, 1);
        for (int64_t r = 0; r < n_rows; r++) first_visible[r] = random_below(n_visible[r]);
        c->args.attention.first_visible = first_visible;
    }
    c->n_items = n_tiles * n_head;
}

static void kv_append_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    const int64_t n_head = 2, block = 64, n_panels = (n_rows / block + 1) * n_head * block / LANES;
    const int64_t size = dtype[0] == 'q' ? 1 : size_of(dtype), scales = dtype[0] == 'q' ? blocks_of(n) * LANES * 2 : 0;
    int64_t *positions = buffer(c, n_rows * (int64_t)sizeof *positions),
            *blocks = buffer(c, n_rows * (int64_t)sizeof *blocks);
    for (int64_t r = 0; r < n_rows; r++) positions[r] = r % block, blocks[r] = r / block;
    c->args.kv_append = (refgpt_kv_append_args){floats(c, n_rows * n_head * n),
                                                floats(c, n_rows * n_head * n),
                                                output(c, n_panels * (n * LANES * size + scales)),
                                                output(c, n_panels * (panels_of(n) * LANES * LANES * size + scales)),
                                                positions,
                                                blocks,
                                                n_head,
                                                n,
                                                block};
    c->n_items = n_rows;
}
