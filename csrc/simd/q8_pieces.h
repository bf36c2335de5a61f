/* Many rows times 8-bit weights, for instruction sets without an instruction for dot products of bytes. Rows and
 * weights are widened to 16 bits piece by piece, once for many products: a piece of a panel stays in the L1 cache while
 * it is multiplied with up to four groups of rows.
 *
 * Half of the multiplications are then replaced by additions, of which processors make twice as many (Winograd 1968).
 * With a row's integers x and a lane's w at even and odd places, w0 x0 + w1 x1 = (x0 + w1) (x1 + w0) - x0 x1 - w0 w1,
 * and the sums of the last two products belong to a row or a lane.
 *
 * An integer k below 2^22 in size is added to the bits of the float 1.5 * 2^23, which gives the float 1.5 * 2^23 + k. A
 * lane's sum starts at these bits, less the lane's own products; subtracting 1.5 * 2^23 plus the row's own products, in
 * float, is exact and leaves the dot product as a float. */

enum { PIECE_BLOCKS = 8, PIECE_PANELS = 32, FLOAT_BITS = 0x4b400000 /* 1.5 * 2^23 */ };
/* Bytes of a widened block. Of a tile's rows: [8 quads][even, odd places][rows][2] 16-bit integers, then for each row
 * the float to subtract and the scale. Of a panel: the same with 16 lanes, then for each lane the bits at which its
 * sums start and the scale. */
enum { WIDE_ROWS = (16 + 2) * 4 * TILE_WIDE_ROWS, WIDE_LANES = (16 + 2) * 4 * LANES };

/* The bytes of a quad of four rows, or of n if that is less, as 16-bit integers: those at even and those at odd places.
 * Returns each row's sum of products of neighbours. */
ALWAYS_INLINE __m128i widen_quad(const char *quad, int64_t n, char *even, char *odd) {
    char rest[16] = {0};
    const __m128i both = _mm_loadu_si128((const __m128i *)(n >= 4 ? quad : memcpy(rest, quad, (size_t)n * 4)));
    const __m128i of_even = _mm_srai_epi16(_mm_slli_epi16(both, 8), 8), of_odd = _mm_srai_epi16(both, 8);
    _mm_store_si128((__m128i *)even, of_even);
    _mm_store_si128((__m128i *)odd, of_odd);
    return _mm_madd_epi16(of_even, of_odd);
}

/* A block of n rows of a tile; x points at the first row's place in a record of `height` rows. */
ALWAYS_INLINE void widen_rows(const char *x, int64_t height, int64_t n, char *to) {
    for (int64_t r = 0; r < n; r += 4) {
        __m128i sum = _mm_setzero_si128();
        for (int64_t quad = 0; quad < 8; quad++) {
            char *even = to + (quad * 2 * TILE_WIDE_ROWS + r) * 4;
            sum = _mm_add_epi32(sum, widen_quad(x + (quad * height + r) * 4, n - r, even, even + 4 * TILE_WIDE_ROWS));
        }
        _mm_store_ps((float *)to + 16 * TILE_WIDE_ROWS + r, _mm_add_ps(_mm_set1_ps(0x1.8p23f), _mm_cvtepi32_ps(sum)));
    }
    memcpy(to + 17 * 4 * TILE_WIDE_ROWS, x + BLOCK * height, (size_t)n * 4);
}

/* Some blocks of a panel. What lies `next` bytes further is prefetched. */
ALWAYS_INLINE void widen_weights(const uint8_t *w, int64_t n_blocks, int64_t next, char *to) {
    for (int64_t b = 0; b < n_blocks; b++, w += block_bytes(Q8), to += WIDE_LANES) {
        for (int64_t i = 0; i < block_bytes(Q8); i += 64) __builtin_prefetch(w + next + i, 0, 2);
        __m256i starts[2] = {_mm256_set1_epi32(FLOAT_BITS), _mm256_set1_epi32(FLOAT_BITS)};
#pragma GCC unroll 16
        for (int64_t i = 0; i < 16; i++) {
            const __m256i both = _mm256_loadu_si256((const __m256i *)(w + 32 * i));
            const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 8), odd = _mm256_srai_epi16(both, 8);
            char *quad = to + i / 2 * 8 * LANES + i % 2 * 32;
            _mm256_store_si256((__m256i *)quad, even);
            _mm256_store_si256((__m256i *)(quad + 4 * LANES), odd);
            starts[i % 2] = _mm256_sub_epi32(starts[i % 2], _mm256_madd_epi16(even, odd));
        }
        _mm256_store_si256((__m256i *)(to + 16 * 4 * LANES), starts[0]);
        _mm256_store_si256((__m256i *)(to + 16 * 4 * LANES + 32), starts[1]);
        v16_store((float *)to + 17 * LANES, v16_load_f16((const uint16_t *)(w + BLOCK * LANES)));
    }
}

/* Adds the products of R rows and a panel to their totals, block by block. */
ALWAYS_INLINE void tile_widened(const char *x, const char *w, int64_t n_blocks, float *totals, const int R) {
    for (int64_t b = 0; b < n_blocks; b++, x += WIDE_ROWS, w += WIDE_LANES) {
        words sum[TILE_WIDE_ROWS];
        __asm__("" : "+r"(totals)); /* or the compiler keeps copies of the totals, which are stored twice */
        for (int64_t i = 0; i < WIDE_ROWS; i += 64) __builtin_prefetch(x + 2 * WIDE_ROWS + i);
#pragma GCC unroll 8
        for (int quad = 0; quad < 8; quad++) {
            words even = words_load(w + quad * 8 * LANES), odd = words_load(w + quad * 8 * LANES + 4 * LANES);
            WORDS_IN_ORDER(even); /* in registers, not read once for each row */
            WORDS_IN_ORDER(odd);
#pragma GCC unroll 16
            for (int r = 0; r < R; r++) {
                const char *at = x + (quad * 2 * TILE_WIDE_ROWS + r) * 4;
                const words x_even = words_spread(load_int(at)),
                            x_odd = words_spread(load_int(at + 4 * TILE_WIDE_ROWS));
                const words products = shorts_multiply(shorts_add(x_even, odd), shorts_add(x_odd, even));
                sum[r] = words_add(quad ? sum[r] : words_load(w + 16 * 4 * LANES), products);
                WORDS_IN_ORDER(sum[r]);
            }
        }
        const v16 scales = v16_load((const float *)w + 17 * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
            const char *of_row = x + (16 * TILE_WIDE_ROWS + r) * 4;
            const v16 dots = v16_sub(v16_of_bits(sum[r]), v16_set1(load_float(of_row)));
            const v16 scale = v16_mul(scales, v16_set1(load_float(of_row + 4 * TILE_WIDE_ROWS)));
            v16_store(totals + r * LANES, v16_fma(dots, scale, v16_load(totals + r * LANES)));
        }
    }
}

/* y for up to four groups of rows and PIECE_PANELS panels: some blocks of all of them, then the next. Each group is cut
 * into tiles of nearly equal height. */
static void multiply_widened(const refgpt_linear_quantised_args *a, int64_t first_row, int64_t begin, int64_t end) {
    const int64_t n_blocks = (a->n_in + BLOCK - 1) / BLOCK, panel = n_blocks * block_bytes(Q8);
    const int64_t n_rows = smaller(ROWS_AT_ONCE, a->n_rows - first_row), n_panels = end - begin;
    enum { MOST_TILES = ROWS_AT_ONCE / TILE_WIDE_ROWS };
    __attribute__((aligned(64))) float totals[PIECE_PANELS * ROWS_AT_ONCE * LANES];
    __attribute__((aligned(64))) char rows[MOST_TILES * PIECE_BLOCKS * WIDE_ROWS], weights[PIECE_BLOCKS * WIDE_LANES];
    for (int64_t p = 0; p < n_panels; p++) {
        const v16 bias = a->bias ? load_row(a->bias, (begin + p) * LANES, a->n_out, 0.0f) : v16_set1(0.0f);
        for (int64_t r = 0; r < n_rows; r++) v16_store(totals + (p * ROWS_AT_ONCE + r) * LANES, bias);
    }
    for (int64_t b = 0, depth; b < n_blocks; b += depth) {
        depth = smaller(PIECE_BLOCKS, n_blocks - b);
        for (int64_t p = 0; p < n_panels; p++) {
            const int64_t next = p + 1 < n_panels ? panel : depth * block_bytes(Q8) - p * panel;
            widen_weights((const uint8_t *)a->w + (begin + p) * panel + b * block_bytes(Q8), depth, next, weights);
            char *tile = rows;
            for (int64_t r = 0, n; r < n_rows; r += n, tile += PIECE_BLOCKS * WIDE_ROWS) {
                const int64_t of_group = r % GROUP, height = smaller(GROUP, n_rows - (r - of_group));
                n = even_part(height - of_group, TILE_WIDE_ROWS);
                const char *x = a->x + ((first_row + r - of_group) * n_blocks + b * height) * RECORD + 4 * of_group;
                for (int64_t i = 0; i < depth && p == 0; i++)
                    widen_rows(x + i * RECORD * height, height, n, tile + i * WIDE_ROWS);
#define TILE(height) tile_widened(tile, weights, depth, totals + (p * ROWS_AT_ONCE + r) * LANES, height)
                WITH_HEIGHT(n, TILE_WIDE_ROWS, TILE)
#undef TILE
            }
        }
    }
    for (int64_t p = 0; p < n_panels; p++)
        for (int64_t r = 0; r < n_rows; r++)
            store_row(a->y + (first_row + r) * a->n_out, (begin + p) * LANES, a->n_out,
                      v16_load(totals + (p * ROWS_AT_ONCE + r) * LANES));
}

ALWAYS_INLINE void linear_widened(const refgpt_linear_quantised_args *a, int64_t begin, int64_t end) {
    for (int64_t r = 0; r < a->n_rows; r += ROWS_AT_ONCE)
        for (int64_t p = begin, n; p < end; p += n) {
            n = even_part(end - p, PIECE_PANELS);
            multiply_widened(a, r, p, p + n);
        }
}
