/* Linear layers with 8-, 4- and 3-bit weights: rows rounded to 8 bits (quantise_rows) times panels of blocks.
 *
 * The 32 products of a block are summed as integers, exactly, so that instruction sets may sum them in any order; the
 * blocks' sums are then scaled and added in float32, in one order. One row (decode) is bound by reading the weights
 * once, many rows by integer multiplications: a tile of rows shares each weight that is unpacked, and some panels stay
 * in the L2 cache while they are multiplied with four groups of rows. The rows of more groups, megabytes for 16384
 * inputs, would not fit into the cache; reading the weights again costs little beside the multiplications of four
 * groups. Instruction sets without an instruction for dot products of bytes multiply many rows with 8-bit weights in
 * another way: see q8_pieces.h. */

enum { GROUP = REFGPT_ROW_GROUP, ROWS_AT_ONCE = 4 * GROUP, L2_SHARE = 320 << 10 };

/* y for R rows and the lanes of one panel. x points at the first row's place in its group's first record; `height` rows
 * are in that group. Totals live in registers or close by, and blocks are prefetched. */
ALWAYS_INLINE void tile_quantised(const char *x, int64_t height, const uint8_t *w, int64_t n_blocks, v16 bias, float *y,
                                  int64_t y_stride, int64_t n_lanes, enum dtype dtype, const int R) {
    v16 total[TILE_QUANTISED_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) total[r] = bias;
    for (int64_t b = 0; b < n_blocks; b++, w += block_bytes(dtype), x += RECORD * height) {
        v16 dots[TILE_QUANTISED_ROWS];
        for (int64_t i = 0; i < block_bytes(dtype); i += 64) __builtin_prefetch(w + i + AHEAD);
        if (dtype == Q8) dots_q8(w, x, height, R, dots);
        else dots_fields(w, x, height, weight_bits(dtype), R, dots);
        const v16 scales = v16_load_f16((const uint16_t *)(w + block_bytes(dtype) - 2 * LANES));
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
            total[r] = v16_fma(dots[r], v16_mul(scales, v16_set1(load_float(x + BLOCK * height + 4 * r))), total[r]);
    }
    for (int r = 0; r < R; r++) store_row(y + r * y_stride, 0, n_lanes, total[r]);
}

/* The same for all rows of a group, in tiles of nearly equal height. */
ALWAYS_INLINE void group_quantised(const char *x, int64_t height, const uint8_t *w, int64_t n_blocks, v16 bias,
                                   float *y, int64_t y_stride, int64_t n_lanes, enum dtype dtype) {
    for (int64_t r = 0, n; r < height; r += n) {
        const char *xr = x + 4 * r;
        float *yr = y + r * y_stride;
        n = even_part(height - r, TILE_QUANTISED_ROWS);
#define TILE(rows) tile_quantised(xr, height, w, n_blocks, bias, yr, y_stride, n_lanes, dtype, rows)
        WITH_HEIGHT(n, TILE_QUANTISED_ROWS, TILE)
#undef TILE
    }
}

/* The rows [first_row, last_row), whole groups except the last, times the panels [begin, end). */
ALWAYS_INLINE void groups_quantised(const refgpt_linear_quantised_args *a, int64_t first_row, int64_t last_row,
                                    int64_t begin, int64_t end, enum dtype dtype) {
    const int64_t n_blocks = (a->n_in + BLOCK - 1) / BLOCK, panel = n_blocks * block_bytes(dtype);
    const int64_t n_parts = 1 + (end - begin) * panel / L2_SHARE, some = (end - begin + n_parts - 1) / n_parts;
    for (int64_t first = begin; first < end; first += some)
        for (int64_t r = first_row; r < last_row; r += GROUP)
            for (int64_t p = first; p < smaller(first + some, end); p++) {
                const int64_t o = p * LANES, n_lanes = smaller(LANES, a->n_out - o);
                const v16 bias = a->bias ? load_row(a->bias, o, a->n_out, 0.0f) : v16_set1(0.0f);
                group_quantised(a->x + r * n_blocks * RECORD, smaller(GROUP, last_row - r),
                                (const uint8_t *)a->w + p * panel, n_blocks, bias, a->y + r * a->n_out + o, a->n_out,
                                n_lanes, dtype);
            }
}

ALWAYS_INLINE void linear_quantised(const refgpt_linear_quantised_args *a, int64_t begin, int64_t end,
                                    enum dtype dtype) {
    for (int64_t r = 0; r < a->n_rows; r += ROWS_AT_ONCE)
        groups_quantised(a, r, smaller(r + ROWS_AT_ONCE, a->n_rows), begin, end, dtype);
}

#ifdef TILE_WIDE_ROWS
#include "../simd/q8_pieces.h"
#endif

KERNEL(linear_q8) {
#ifdef TILE_WIDE_ROWS
    if (((const refgpt_linear_quantised_args *)args)->n_rows > TILE_QUANTISED_ROWS) {
        linear_widened(args, begin, end);
        return;
    }
#endif
    linear_quantised(args, begin, end, Q8);
}
KERNEL(linear_q4) { linear_quantised(args, begin, end, Q4); }
KERNEL(linear_q3) { linear_quantised(args, begin, end, Q3); }
