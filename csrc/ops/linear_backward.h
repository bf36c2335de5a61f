/* The backward of linear layers: the gradient of their rows. It sums over outputs, which are the lanes of the weights'
 * panels, while the blocks of weights of few bits lie along the inputs. So a piece of the weights is transposed,
 * widened to float32, and multiplied with all rows that fit into the L2 cache beside it. This adds a few operations for
 * each weight to one for each weight and row. No weight is stored twice: a second layout would double the memory of the
 * largest matrices, and its blocks would round them again. Bound by arithmetic. */

enum { BACK_BLOCKS = 3, BACK_PANELS = BACK_BLOCKS * BLOCK / LANES, BACK_DEPTH = 128, BACK_ROWS = 256 };
enum { BACK_WIDTH = BACK_PANELS * LANES };

/* The lanes of one panel of floats at 16 inputs, as 16 inputs of each lane. */
ALWAYS_INLINE void turn_floats(const void *w, int64_t at, int64_t n_inputs, enum dtype dtype, float *turned) {
    v16 square[LANES];
    for (int64_t i = 0; i < LANES; i++)
        square[i] = i < n_inputs ? load_stored(w, at + i * LANES, dtype) : v16_set1(0.0f);
    v16_turn(square);
    for (int64_t l = 0; l < LANES; l++) v16_store(turned + l * LANES, square[l]);
}

/* The same of 16 inputs of a block, from `first` on: integers times the lanes' scales. */
ALWAYS_INLINE void turn_block(const char *block, int first, v16 scales, enum dtype dtype, float *turned) {
    const int bits = weight_bits(dtype), n_quads = dtype == Q8 ? 1 : 2; /* in a step */
    const uint32_t signs = dtype == Q8 ? 0 : dtype == Q4 ? 0x88888888 : 0x24242424;
    v16 square[LANES];
    uint8_t last[4 * LANES];
    for (int i = 0; dtype == Q3 && first > 0 && i < 4 * LANES; i++) last[i] = last_step((const uint8_t *)block + i);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) {
        const int k = first + i, quad = k / 4;
        const char *step = dtype == Q3 && quad >= 6 ? (const char *)last : block + quad / n_quads * 64;
        square[i] =
            v16_mul(v16_of_fields(step, signs, 32 - bits - k % 4 * 8 - quad % n_quads * bits, 32 - bits), scales);
    }
    v16_turn(square);
    for (int64_t l = 0; l < LANES; l++) v16_store(turned + l * LANES, square[l]);
}

/* Weights of `depth` outputs from `first_out` on, a multiple of 16, and of some blocks of inputs: as panels
 * [n_panels][BACK_DEPTH][16] whose lanes are inputs. */
ALWAYS_INLINE void widen_piece(const refgpt_linear_backward_args *a, int64_t first_out, int64_t depth,
                               int64_t first_block, int64_t n_panels, enum dtype dtype, float *wide) {
    const int64_t n_blocks = (a->n_in + BLOCK - 1) / BLOCK, first_in = first_block * BLOCK;
    for (int64_t o = 0; o < depth; o += LANES) {
        const int64_t panel = (first_out + o) / LANES;
        if (weight_bits(dtype)) {
            for (int64_t p = 0; p < n_panels; p += 2) {
                const char *block = (const char *)a->w + (panel * n_blocks + first_block + p / 2) * block_bytes(dtype);
                const v16 scales = v16_load_f16((const uint16_t *)(block + block_bytes(dtype) - 2 * LANES));
                float *to = wide + (p * BACK_DEPTH + o) * LANES;
                turn_block(block, 0, scales, dtype, to);
                turn_block(block, LANES, scales, dtype, to + BACK_DEPTH * LANES);
            }
        } else {
            for (int64_t p = 0; p < n_panels; p++) {
                const int64_t at = (panel * a->n_in + first_in + p * LANES) * LANES;
                const int64_t n_inputs = smaller(LANES, a->n_in - first_in - p * LANES);
                turn_floats(a->w, at, n_inputs, dtype, wide + (p * BACK_DEPTH + o) * LANES);
            }
        }
    }
}

ALWAYS_INLINE void linear_backward_block(const refgpt_linear_backward_args *a, int64_t first_row, int64_t first_block,
                                         int64_t n_inputs, enum dtype dtype) {
    float totals[BACK_ROWS * BACK_WIDTH] __attribute__((aligned(64)));
    /* One panel more, since a block's second half may be padding. */
    float wide[(BACK_PANELS + 1) * BACK_DEPTH * LANES] __attribute__((aligned(64)));
    const int64_t n_rows = smaller(BACK_ROWS, a->n_rows - first_row), n_panels = (n_inputs + LANES - 1) / LANES;
    start_totals(totals, BACK_WIDTH, n_rows, n_panels * LANES, NULL);
    for (int64_t o = 0; o < a->n_out; o += BACK_DEPTH) {
        const int64_t depth = smaller(BACK_DEPTH, a->n_out - o);
        widen_piece(a, o, depth, first_block, n_panels, dtype, wide);
        for (int64_t p = 0, beside; p < n_panels; p += beside) {
            beside = even_part(n_panels - p, TILE_PANELS);
            for (int64_t r = 0; r < n_rows; r += LANES) {
                const int64_t next = r + LANES < n_rows ? LANES * a->n_out : -r * a->n_out;
                const rows dy = {a->dy_panels + (first_row + r) * a->n_out + o * LANES, 1, LANES, next,
                                 BACK_DEPTH * LANES};
                const panels w = {wide + p * BACK_DEPTH * LANES, BACK_DEPTH * LANES, 0, F32};
                multiply_beside(smaller(LANES, n_rows - r), dy, beside, w, totals + r * BACK_WIDTH + p * LANES,
                                BACK_WIDTH, depth);
            }
        }
    }
    for (int64_t r = 0; r < n_rows; r++)
        memcpy(a->dx + (first_row + r) * a->n_in + first_block * BLOCK, totals + r * BACK_WIDTH,
               (size_t)n_inputs * sizeof *totals);
}

ALWAYS_INLINE void linear_backward(const refgpt_linear_backward_args *a, int64_t begin, int64_t end, enum dtype dtype) {
    for (int64_t r = 0; r < a->n_rows; r += BACK_ROWS)
        for (int64_t b = begin, n; b < end; b += n) {
            n = even_part(end - b, BACK_BLOCKS);
            linear_backward_block(a, r, b, smaller((b + n) * BLOCK, a->n_in) - b * BLOCK, dtype);
        }
}

KERNEL(linear_backward_f32) { linear_backward(args, begin, end, F32); }
KERNEL(linear_backward_f16) { linear_backward(args, begin, end, F16); }
KERNEL(linear_backward_bf16) { linear_backward(args, begin, end, BF16); }
KERNEL(linear_backward_q8) { linear_backward(args, begin, end, Q8); }
KERNEL(linear_backward_q4) { linear_backward(args, begin, end, Q4); }
KERNEL(linear_backward_q3) { linear_backward(args, begin, end, Q3); }
