/* Rounds rows, as checkpoints store them, to 8, 4 or 3 bits a weight, by the operations of
 * refgpt/numbers/quantisation.py. Bound by the arithmetic of the search for each block's scale: 32 inputs of 16 rows
 * are transposed once and stay in the L1 cache. */

typedef struct {
    float ratio, top; /* the largest weight divided by the ratio is a first scale; the largest integer is top */
} quantise_candidate;

enum { N_CANDIDATES_Q8 = 9, N_CANDIDATES_Q4 = 8, N_CANDIDATES_Q3 = 7 };
static const quantise_candidate quantise_q8_candidates[N_CANDIDATES_Q8] = {
    {128.0f, 128.0f}, {127.0f, 127.0f}, {126.0f, 127.0f}, {125.0f, 127.0f}, {124.0f, 127.0f},
    {123.0f, 127.0f}, {122.0f, 127.0f}, {121.0f, 127.0f}, {84.0f, 127.0f},
};
static const quantise_candidate quantise_q4_candidates[N_CANDIDATES_Q4] = {
    {8.0f, 8.0f}, {7.25f, 8.0f}, {8.5f, 8.0f}, {7.75f, 8.0f}, {7.0f, 7.0f}, {9.0f, 8.0f}, {8.25f, 8.0f}, {6.25f, 7.0f},
};
static const quantise_candidate quantise_q3_candidates[N_CANDIDATES_Q3] = {
    {4.0f, 4.0f}, {4.625f, 4.0f}, {3.25f, 4.0f}, {3.75f, 4.0f}, {5.125f, 4.0f}, {4.25f, 4.0f}, {4.0f, 3.0f},
};

/* a where x < limit, else b, as a sum with one term 0. */
static inline v16 quantise_choose(v16 x, v16 limit, v16 a, v16 b) {
    return v16_add(v16_zero_below(b, x, limit), v16_sub(a, v16_zero_below(a, x, limit)));
}

static inline v16 quantise_round_half(v16 a) {
    uint16_t halves[LANES];
    v16_store_f16(halves, a);
    return v16_load_f16(halves);
}

/* Nearest integers of y / scale, ties to even, in a range: adding 1.5 * 2^23 rounds away the fraction. */
static inline v16 quantise_integers(v16 y, v16 inverse, v16 bottom, v16 top) {
    const v16 magic = v16_set1(0x1.8p23f);
    return v16_min(v16_max(v16_sub(v16_add(v16_mul(y, inverse), magic), magic), bottom), top);
}

/* 32 inputs of up to 16 rows, turned; zeros where there are none. */
static inline void quantise_turn(const refgpt_quantise_args *a, int64_t panel, int64_t first, float *turned) {
    const enum dtype dtype = (enum dtype)a->dtype;
    const int64_t size = size_of(dtype), n_lanes = smaller(LANES, a->n_out - panel * LANES);
    memset(turned, 0, CHUNK * LANES * sizeof *turned);
    for (int64_t l = 0; l < n_lanes; l++) {
        const char *row = (const char *)a->w + ((panel * LANES + l) * a->n_in + first) * size;
        for (int64_t i = 0; i < smaller(CHUNK, a->n_in - first); i += LANES) {
            float stored[LANES] = {0}, wide[LANES];
            const int64_t n = smaller(LANES, a->n_in - first - i);
            memcpy(stored, row + i * size, (size_t)(n * size)); /* rows lie at any address */
            v16_store(wide, load_stored(stored, 0, dtype));
            for (int64_t j = 0; j < n; j++) turned[(i + j) * LANES + l] = wide[j];
        }
    }
}

/* The scale of each lane; negative where its integers are -top .. instead of .. top. y has no larger magnitude than
 * `most`. */
ALWAYS_INLINE v16 quantise_search(const float *y, v16 most, const quantise_candidate *candidates, int n_candidates,
                                  float n_steps) {
    const v16 zero = v16_set1(0.0f), one = v16_set1(1.0f), least = v16_set1(0x1p-24f), largest = v16_set1(65504.0f);
    v16 best_scale = zero, best_error = v16_set1(0x1p127f);
    for (int c = 0; c < n_candidates; c++) {
        const v16 top = v16_set1(candidates[c].top), bottom = v16_set1(candidates[c].top - n_steps);
        v16 scale = v16_max(v16_div(most, v16_set1(candidates[c].ratio)), least), inverse = v16_div(one, scale);
        v16 product = zero, square = zero, error = zero;
        for (int64_t i = 0; i < CHUNK; i++) {
            const v16 x = v16_load(y + i * LANES), q = quantise_integers(x, inverse, bottom, top);
            product = v16_add(product, v16_mul(x, q));
            square = v16_add(square, v16_mul(q, q));
        }
        scale = v16_min(v16_max(v16_div(product, v16_max(square, one)), least), largest);
        scale = quantise_round_half(scale);
        inverse = v16_div(one, scale);
        for (int64_t i = 0; i < CHUNK; i++) {
            const v16 x = v16_load(y + i * LANES);
            const v16 off = v16_sub(x, v16_mul(quantise_integers(x, inverse, bottom, top), scale));
            error = v16_add(error, v16_mul(off, off));
        }
        if (candidates[c].top * 2.0f > n_steps) scale = v16_sub(zero, scale);
        best_scale = quantise_choose(error, best_error, scale, best_scale);
        best_error = quantise_choose(error, best_error, error, best_error);
    }
    return best_scale;
}

/* One block: integers [32][16] as floats, and their 16 scales. */
ALWAYS_INLINE void quantise_block(float *y, uint16_t *scales, const quantise_candidate *candidates, int n_candidates,
                                  float n_steps) {
    const v16 zero = v16_set1(0.0f), one = v16_set1(1.0f), half_way = v16_set1((n_steps + 1.0f) / 2.0f);
    v16 up = zero, down = zero;
    for (int64_t i = 0; i < CHUNK; i++) {
        const v16 x = v16_load(y + i * LANES);
        up = v16_max(up, x);
        down = v16_max(down, v16_sub(zero, x));
    }
    /* With the sign that makes the largest weight positive. */
    const v16 sign = quantise_choose(up, down, v16_set1(-1.0f), one);
    for (int64_t i = 0; i < CHUNK; i++) v16_store(y + i * LANES, v16_mul(v16_load(y + i * LANES), sign));
    const v16 signed_scale = quantise_search(y, v16_max(up, down), candidates, n_candidates, n_steps);
    const v16 scale = v16_max(signed_scale, v16_sub(zero, signed_scale)), inverse = v16_div(one, scale);
    const v16 side = quantise_choose(signed_scale, zero, v16_set1(-1.0f), one);
    const v16 top = quantise_choose(signed_scale, zero, half_way, v16_sub(half_way, one)),
              bottom = v16_sub(top, v16_set1(n_steps));
    v16 square = zero;
    for (int64_t i = 0; i < CHUNK; i++) {
        const v16 q = quantise_integers(v16_load(y + i * LANES), inverse, bottom, top);
        square = v16_add(square, v16_mul(q, q));
        v16_store(y + i * LANES, v16_mul(q, side));
    }
    v16_store_f16(scales, v16_zero_below(v16_mul(v16_mul(scale, sign), side), square, one));
}

static inline void quantise_store_q8(const float *integers, uint8_t *to) {
    for (int64_t i = 0; i < CHUNK; i++)
        for (int64_t l = 0; l < LANES; l++)
            to[(i / 4 * LANES + l) * 4 + i % 4] = (uint8_t)(int32_t)integers[i * LANES + l];
}
/* Steps of two quads. Those of 3 bits leave two bits of each byte free, in which the last step is stored. */
ALWAYS_INLINE void quantise_store_fields(const float *integers, uint8_t *to, const int bits) {
    uint8_t steps[CHUNK / 8][LANES * 4];
    for (int64_t step = 0; step < CHUNK / 8; step++)
        for (int64_t j = 0; j < 4; j++)
            for (int64_t l = 0; l < LANES; l++) {
                const float *low = integers + (8 * step + j) * LANES + l, *high = low + 4 * LANES;
                const int32_t zero = 1 << (bits - 1);
                steps[step][4 * l + j] = (uint8_t)(((int32_t)*low + zero) | ((int32_t)*high + zero) << bits);
            }
    for (int64_t step = 0; bits == 3 && step < 3; step++)
        for (int64_t i = 0; i < LANES * 4; i++) steps[step][i] |= (uint8_t)((steps[3][i] >> (2 * step) & 3) << 6);
    memcpy(to, steps, CHUNK * LANES * (size_t)bits / 8);
}

ALWAYS_INLINE void quantise(const refgpt_quantise_args *a, int64_t begin, int64_t end, const int bits) {
    const int64_t n_blocks = (a->n_in + CHUNK - 1) / CHUNK, n_bytes = CHUNK * LANES * bits / 8;
    float y[CHUNK * LANES] __attribute__((aligned(64)));
    uint16_t scales[LANES];
    for (int64_t p = begin; p < end; p++)
        for (int64_t b = 0; b < n_blocks; b++) {
            uint8_t *to = (uint8_t *)a->panels + (p * n_blocks + b) * (n_bytes + LANES * 2);
            quantise_turn(a, p, b * CHUNK, y);
            if (bits == 8) quantise_block(y, scales, quantise_q8_candidates, N_CANDIDATES_Q8, 255.0f);
            else if (bits == 4) quantise_block(y, scales, quantise_q4_candidates, N_CANDIDATES_Q4, 15.0f);
            else quantise_block(y, scales, quantise_q3_candidates, N_CANDIDATES_Q3, 7.0f);
            if (bits == 8) quantise_store_q8(y, to);
            else quantise_store_fields(y, to, bits);
            memcpy(to + n_bytes, scales, sizeof scales);
        }
}

KERNEL(quantise_q8) { quantise(args, begin, end, 8); }
KERNEL(quantise_q4) { quantise(args, begin, end, 4); }
KERNEL(quantise_q3) { quantise(args, begin, end, 3); }
