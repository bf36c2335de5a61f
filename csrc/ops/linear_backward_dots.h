/* The gradient of the rows of linear layers, in bfloat16: as in linear_backward.h, but both factors are rounded and
 * multiplied in pairs of outputs. A piece of weights is decoded, transposed and rounded once for all rows that fit into
 * the L2 cache beside it, whatever it is stored in: weights of few bits too, so that no second layout of them is
 * needed. Rows are rounded again for each group of input blocks. Bound by arithmetic. */

enum { DOTS_BLOCKS = 6, DOTS_PANELS = DOTS_BLOCKS * BLOCK / LANES, DOTS_DEPTH = 128, DOTS_ROWS = 256 };
enum { DOTS_WIDTH = DOTS_PANELS * LANES, DOTS_WORDS = DOTS_DEPTH / PAIR_STEP };

/* 16 outputs of 16 inputs, as pairs of outputs. */
ALWAYS_INLINE void put_turned(const float *turned, float *to) {
    for (int l = 0; l < LANES; l += 2)
        put_pairs(to + l / PAIR_STEP * LANES, v16_load(turned + l * LANES), v16_load(turned + (l + 1) * LANES),
                  SMALLEST_FACTOR);
}

#if PAIR_STEP == 2
/* 32 outputs, two panels of bfloat16, at up to 16 inputs. Two neighbouring outputs of an input are a word already, so
 * that only words change places. */
ALWAYS_INLINE void turn_words(const uint16_t *w, int64_t panel, int64_t n_inputs, float *to) {
    v16 square[LANES];
    for (int64_t i = 0; i < LANES; i++)
        square[i] = i < n_inputs ? v16_join_bfloats(w + i * LANES, w + panel + i * LANES) : v16_set1(0.0f);
    v16_turn(square);
    for (int64_t i = 0; i < LANES; i++) v16_store(to + i * LANES, v16_zero_pairs_below(square[i], SMALLEST_FACTOR));
}
#endif

/* widen_piece, in pairs: panels [n_panels][DOTS_WORDS][16] whose lanes are inputs. */
ALWAYS_INLINE void pair_piece(const refgpt_linear_backward_args *a, int64_t first_out, int64_t depth,
                              int64_t first_block, int64_t n_panels, enum dtype dtype, float *wide) {
    const int64_t n_blocks = (a->n_in + BLOCK - 1) / BLOCK, first_in = first_block * BLOCK;
    float turned[LANES * LANES] __attribute__((aligned(64)));
    for (int64_t o = 0; o < depth; o += LANES) {
        const int64_t panel = (first_out + o) / LANES;
        float *to = wide + o / PAIR_STEP * LANES;
        if (weight_bits(dtype)) {
            for (int64_t p = 0; p < n_panels; p += 2) {
                const char *block = (const char *)a->w + (panel * n_blocks + first_block + p / 2) * block_bytes(dtype);
                const v16 scales = v16_load_f16((const uint16_t *)(block + block_bytes(dtype) - 2 * LANES));
                turn_block(block, 0, scales, dtype, turned);
                put_turned(turned, to + p * DOTS_WORDS * LANES);
                turn_block(block, LANES, scales, dtype, turned);
                put_turned(turned, to + (p + 1) * DOTS_WORDS * LANES);
            }
        } else {
#if PAIR_STEP == 2
            if (o + LANES < depth) {
                for (int64_t p = 0; p < n_panels; p++)
                    turn_words((const uint16_t *)a->w + (panel * a->n_in + first_in + p * LANES) * LANES,
                               a->n_in * LANES, a->n_in - first_in - p * LANES, to + p * DOTS_WORDS * LANES);
                o += LANES; /* two panels */
                continue;
            }
#endif
            for (int64_t p = 0; p < n_panels; p++) {
                const int64_t at = (panel * a->n_in + first_in + p * LANES) * LANES;
                turn_floats(a->w, at, smaller(LANES, a->n_in - first_in - p * LANES), dtype, turned);
                put_turned(turned, to + p * DOTS_WORDS * LANES);
            }
        }
    }
}

ALWAYS_INLINE void linear_backward_dots_block(const refgpt_linear_backward_args *a, int64_t first_row,
                                              int64_t first_block, int64_t n_inputs, enum dtype dtype) {
    float totals[DOTS_ROWS * DOTS_WIDTH] __attribute__((aligned(64)));
    /* One panel more, since a block's second half may be padding. */
    float wide[(DOTS_PANELS + 1) * DOTS_WORDS * LANES] __attribute__((aligned(64)));
    float x[DOTS_ROWS * DOTS_WORDS] __attribute__((aligned(64)));
    const int64_t n_rows = smaller(DOTS_ROWS, a->n_rows - first_row), n_panels = (n_inputs + LANES - 1) / LANES;
    if (!a->n_out) start_totals(totals, DOTS_WIDTH, n_rows, n_inputs, NULL);
    for (int64_t o = 0; o < a->n_out; o += DOTS_DEPTH) {
        const int64_t depth = smaller(DOTS_DEPTH, a->n_out - o), n_words = words_of(depth);
        pair_piece(a, o, depth, first_block, n_panels, dtype, wide);
        for (int64_t r = 0; r < n_rows; r += LANES)
            pair_rows(a->dy_panels + (first_row + r) * a->n_out + o * LANES, LANES, depth, LANES, SMALLEST_GRADIENT,
                      x + r * n_words);
        for (int64_t p = 0, beside; p < n_panels; p += beside) {
            beside = even_part(n_panels - p, TILE_PANELS);
            for (int64_t r = 0; r < n_rows; r += LANES) {
                multiply_words(smaller(LANES, n_rows - r), x + r * n_words, beside, wide + p * DOTS_WORDS * LANES,
                               DOTS_WORDS * LANES, totals + r * DOTS_WIDTH + p * LANES, DOTS_WIDTH, n_words, !o);
            }
        }
    }
    for (int64_t r = 0; r < n_rows; r++)
        memcpy(a->dx + (first_row + r) * a->n_in + first_block * BLOCK, totals + r * DOTS_WIDTH,
               (size_t)n_inputs * sizeof *totals);
}

ALWAYS_INLINE void linear_backward_dots(const refgpt_linear_backward_args *a, int64_t begin, int64_t end,
                                        enum dtype dtype) {
    for (int64_t r = 0; r < a->n_rows; r += DOTS_ROWS)
        for (int64_t b = begin, n; b < end; b += n) {
            n = even_part(end - b, DOTS_BLOCKS);
            linear_backward_dots_block(a, r, b, smaller((b + n) * BLOCK, a->n_in) - b * BLOCK, dtype);
        }
}

KERNEL(linear_backward_dots_bf16) { linear_backward_dots(args, begin, end, BF16); }
KERNEL(linear_backward_dots_q8) { linear_backward_dots(args, begin, end, Q8); }
KERNEL(linear_backward_dots_q4) { linear_backward_dots(args, begin, end, Q4); }
KERNEL(linear_backward_dots_q3) { linear_backward_dots(args, begin, end, Q3); }
