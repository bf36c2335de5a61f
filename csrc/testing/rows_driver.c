/* Runs the rows of the table that this machine has against their scalar rows, on seeded inputs of many shapes, and
 * compares every bit of what they wrote. It needs no Python, so it runs under emulators and sanitizers.
 *
 *     rows_driver [isa]    with an isa: it is an error if one of its rows cannot run
 *
 * Each buffer is an allocation of exactly its size, and outputs lie between guards. Before a call they are filled with
 * one byte, which makes floats of 0.75: kernels that add to an output add to that. */
#include "../refgpt_kernels.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 16, GUARD = 64, FILL = 0x3f, MOST_BUFFERS = 16, MOST_OUTPUTS = 4, MOST_ELEMENTS = 4200 };

static const int64_t sizes[] = {0, 1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 129, 200};
static const int64_t row_counts[] = {1, 2, 3, 5, 8, 9, 13, 16, 17, 19, 33, 130, 275};
enum { N_SIZES = sizeof sizes / sizeof *sizes, N_ROW_COUNTS = sizeof row_counts / sizeof *row_counts };

/* One call: its arguments, and where they point. */
typedef struct {
    union {
        refgpt_linear_args linear;
        refgpt_linear_quantised_args linear_quantised;
        refgpt_quantise_rows_args quantise_rows;
        refgpt_round_rows_args round_rows;
        refgpt_linear_backward_args linear_backward;
        refgpt_linear_weight_backward_args linear_weight_backward;
        refgpt_column_sum_args column_sum;
        refgpt_attention_backward_args attention_backward;
        refgpt_layer_norm_backward_args layer_norm_backward;
        refgpt_layer_norm_weight_backward_args layer_norm_weight_backward;
        refgpt_embedding_backward_args embedding_backward;
        refgpt_cross_entropy_backward_args cross_entropy_backward;
        refgpt_adamw_args adamw;
        refgpt_gram_args gram;
        refgpt_newton_schulz_args newton_schulz;
        refgpt_residual_args residual;
        refgpt_add_args add;
        refgpt_attention_args attention;
        refgpt_kv_append_args kv_append;
        refgpt_softmax_args softmax;
        refgpt_layer_norm_args layer_norm;
        refgpt_gelu_args gelu;
        refgpt_gelu_backward_args gelu_backward;
        refgpt_rotary_args rotary;
        refgpt_embedding_args embedding;
        refgpt_row_sum_args row_sum;
        refgpt_pack_args pack;
        refgpt_quantise_args quantise;
        refgpt_digests_args digests;
    } args;
    int64_t n_items;
    void *buffers[MOST_BUFFERS];
    int n_buffers;
    struct {
        unsigned char *start; /* of the guard before it */
        size_t n_bytes;       /* with both guards */
    } outputs[MOST_OUTPUTS];
    int n_outputs;
} call;

/* ---- numbers --------------------------------------------------------------------------------------------------- */

static uint64_t state;

static uint32_t random_bits(void) { /* xorshift64* */
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return (uint32_t)(state * 0x2545f4914f6cdd1dULL >> 32);
}
static int64_t random_below(int64_t n) { return random_bits() % n; }

/* Mostly numbers between -2 and 2; some zeros of both signs, subnormal and large ones. */
static float random_float(void) {
    const float x = (float)(int32_t)random_bits() * 0x1p-30f;
    switch (random_bits() % 16) {
    case 0: return 0.0f;
    case 1: return -0.0f;
    case 2: return x * 0x1p-140f;
    case 3: return x * 0x1p+10f;
    default: return x;
    }
}
static uint16_t random_half(void) { /* any finite one */
    const uint16_t half = (uint16_t)random_bits();
    return (half & 0x7c00) == 0x7c00 ? half & 0xbfff : half;
}
static uint16_t random_bfloat(void) {
    const float x = random_float();
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)(bits >> 16);
}

/* ---- buffers --------------------------------------------------------------------------------------------------- */

static void *buffer(call *c, int64_t n_bytes) {
    void *p = NULL;
    if (c->n_buffers == MOST_BUFFERS || posix_memalign(&p, 64, n_bytes ? (size_t)n_bytes : 1)) abort();
    return c->buffers[c->n_buffers++] = p;
}
static float *floats(call *c, int64_t n) {
    float *p = buffer(c, n * (int64_t)sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = random_float();
    return p;
}
static int64_t *indices(call *c, int64_t n, int64_t least, int64_t stop) {
    int64_t *p = buffer(c, n * (int64_t)sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = least + random_below(stop - least);
    return p;
}
static int64_t size_of(const char *dtype) { return strcmp(dtype, "f32") && strcmp(dtype, "b4") ? 2 : 4; }
static void *stored(call *c, int64_t n, const char *dtype) {
    if (size_of(dtype) == 4) return floats(c, n);
    uint16_t *p = buffer(c, n * (int64_t)sizeof *p);
    for (int64_t i = 0; i < n; i++) p[i] = strcmp(dtype, "bf16") ? random_half() : random_bfloat();
    return p;
}
static void *output(call *c, int64_t n_bytes) {
    const int i = c->n_outputs++;
    c->outputs[i].n_bytes = (size_t)n_bytes + 2 * GUARD;
    c->outputs[i].start = buffer(c, n_bytes + 2 * GUARD);
    return c->outputs[i].start + GUARD;
}

/* ---- one case a family of ops ------------------------------------------------------------------------------------ */

static int64_t panels_of(int64_t n) { return (n + LANES - 1) / LANES; }
static int64_t pairs_of(int64_t n) { return (n + 1) / 2; }
static int64_t blocks_of(int64_t n) { return (n + REFGPT_BLOCK - 1) / REFGPT_BLOCK; }

/* Bytes of integers in a block of 8, 4 or 3 bits. */
static int64_t integer_bytes(const char *kind) { return REFGPT_BLOCK * LANES * (kind[1] - '0') / 8; }

/* Blocks of a matrix of so few bits: any bytes, then scales. */
static void *quantised(call *c, int64_t n_panels, int64_t n_blocks, const char *kind) {
    const int64_t n_integers = integer_bytes(kind), n_bytes = n_integers + 2 * LANES;
    unsigned char *p = buffer(c, n_panels * n_blocks * n_bytes);
    for (int64_t b = 0; b < n_panels * n_blocks; b++, p += n_bytes) {
        for (int64_t i = 0; i < n_integers; i++) p[i] = (unsigned char)random_bits();
        for (int l = 0; l < LANES; l++) {
            const uint16_t scale = random_half();
            memcpy(p + n_integers + 2 * l, &scale, 2);
        }
    }
    return p - n_panels * n_blocks * n_bytes;
}

/* Records of rows: any bytes, finite scales, and the sums that belong to the bytes. */
static char *records(call *c, int64_t n_rows, int64_t n_blocks) {
    char *const start = buffer(c, n_rows * n_blocks * 40), *p = start;
    for (int64_t first = 0; first < n_rows; first += REFGPT_ROW_GROUP) {
        const int64_t left = n_rows - first, h = left < REFGPT_ROW_GROUP ? left : REFGPT_ROW_GROUP;
        for (int64_t b = 0; b < n_blocks; b++, p += 40 * h)
            for (int64_t r = 0; r < h; r++) {
                int32_t sum = 0;
                for (int64_t i = 0; i < 32; i++) {
                    const int8_t x = (int8_t)(random_below(255) - 127);
                    p[(i / 4 * h + r) * 4 + i % 4] = x;
                    sum += x;
                }
                const float scale = random_float();
                sum *= -8;
                memcpy(p + 32 * h + 4 * r, &scale, 4);
                memcpy(p + 36 * h + 4 * r, &sum, 4);
            }
    }
    return start;
}

#include "linear_cases.h"

#include "cache_cases.h"

static void softmax_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.softmax = (refgpt_softmax_args){floats(c, n_rows * n), output(c, n_rows * n * (int64_t)sizeof(float)), n};
    c->n_items = n_rows;
}

static void gelu_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.gelu = (refgpt_gelu_args){floats(c, n_rows * n), output(c, n_rows * n * (int64_t)sizeof(float)), n};
    c->n_items = n_rows;
}

static void gelu_backward_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.gelu_backward = (refgpt_gelu_backward_args){floats(c, n_rows * n), floats(c, n_rows * n),
                                                        output(c, n_rows * n * (int64_t)sizeof(float)), n};
    c->n_items = n_rows;
}

static void layer_norm_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.layer_norm = (refgpt_layer_norm_args){
        floats(c, n_rows * n), floats(c, n), floats(c, n), output(c, n_rows * n * (int64_t)sizeof(float)), n, 1e-5f};
    c->n_items = n_rows;
}

static void rotary_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    const int64_t n_head = 3, n_ctx = 50, d_rotary = n * 3 / 4 / 2 * 2;
    c->args.rotary = (refgpt_rotary_args){floats(c, n_rows * n_head * n),
                                          floats(c, n_ctx * d_rotary),
                                          floats(c, n_ctx * d_rotary),
                                          indices(c, n_rows, 0, n_ctx),
                                          output(c, n_rows * n_head * n * (int64_t)sizeof(float)),
                                          n_head,
                                          n,
                                          d_rotary};
    c->n_items = n_rows;
}

static void embedding_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    void *table = dtype[0] == 'q' ? quantised(c, panels_of(13), blocks_of(n), dtype) : stored(c, 13 * n, dtype);
    c->args.embedding =
        (refgpt_embedding_args){table, indices(c, n_rows, 0, 13), output(c, n_rows * n * (int64_t)sizeof(float)), n};
    c->n_items = n_rows;
}

static void embedding_panels_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    void *table = stored(c, panels_of(33) * n * LANES, dtype);
    c->args.embedding =
        (refgpt_embedding_args){table, indices(c, n_rows, 0, 33), output(c, n_rows * n * (int64_t)sizeof(float)), n};
    c->n_items = n_rows;
}

static void add_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.add = (refgpt_add_args){floats(c, n_rows * n), floats(c, n_rows * n),
                                    output(c, n_rows * n * (int64_t)sizeof(float)), n};
    c->n_items = n_rows;
}

static void residual_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.residual = (refgpt_residual_args){floats(c, n_rows * n), floats(c, n_rows * n), floats(c, n_rows * n),
                                              output(c, n_rows * n * (int64_t)sizeof(float)), n};
    c->n_items = n_rows;
}

static void row_sum_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.row_sum = (refgpt_row_sum_args){floats(c, n_rows * n), output(c, n_rows * (int64_t)sizeof(float)), n};
    c->n_items = n_rows;
}

static void pack_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    c->args.pack = (refgpt_pack_args){stored(c, n_rows * n, dtype),
                                      output(c, panels_of(n_rows) * n * LANES * size_of(dtype)), n, n_rows};
    c->n_items = panels_of(n_rows);
}

static void pack_rounded_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    c->args.pack = (refgpt_pack_args){floats(c, n_rows * n), output(c, panels_of(n_rows) * n * LANES * 2), n, n_rows};
    c->n_items = panels_of(n_rows);
}

#include "training_cases.h"

static void quantise_case(call *c, const char *kind, int64_t n, int64_t n_rows) {
    static const char *const dtypes[] = {"f32", "f16", "bf16"};
    const int64_t dtype = random_below(3), n_blocks = (n + 31) / 32, block = integer_bytes(kind) + 2 * LANES;
    c->args.quantise = (refgpt_quantise_args){stored(c, n_rows * n, dtypes[dtype]),
                                              output(c, panels_of(n_rows) * n_blocks * block), n, n_rows, dtype};
    c->n_items = panels_of(n_rows);
}

static void digests_case(call *c, const char *dtype, int64_t n, int64_t n_rows) {
    (void)dtype;
    const int64_t n_words = n * n_rows - (n ? random_below(n) : 0), n_pieces = n ? n_rows : 0;
    uint32_t *words = buffer(c, n_words * (int64_t)sizeof *words);
    for (int64_t i = 0; i < n_words; i++) words[i] = random_bits();
    c->args.digests = (refgpt_digests_args){
        .words = words,
        .digests = output(c, n_pieces * (int64_t)sizeof(uint64_t)),
        .n_words = n_words,
        .piece_words = n ? n : 1,
    };
    if (random_below(2)) { /* look at floats: groups of up to 40, up to 40 others between them, to the last that fits */
        refgpt_digests_args *a = &c->args.digests;
        a->finite = output(c, n_pieces);
        a->float_bytes = random_below(2) ? 2 : 4, a->exponent = a->float_bytes == 2 ? 0x7c00 : 0x7f800000;
        a->first_byte = a->float_bytes * random_below(40), a->n_floats = 1 + random_below(40);
        a->group_bytes = a->float_bytes * (a->n_floats + random_below(40));
        const int64_t left = 4 * n_words - a->first_byte - a->float_bytes * a->n_floats;
        a->n_groups = left < 0 ? 0 : left / a->group_bytes + 1;
    }
    c->n_items = n_pieces;
}

typedef void (*make_case)(call *c, const char *dtype, int64_t n, int64_t n_rows);
static const struct {
    const char *name;
    make_case make;
} families[] = {
    {"linear_backward_dots", linear_backward_case}, /* before the shorter names, here and below */
    {"linear_backward", linear_backward_case},
    {"linear_weight_backward", linear_weight_backward_case},
    {"linear_bf16_dots", linear_bf16_dots_case},
    {"linear", linear_case},
    {"attention_backward", attention_backward_case},
    {"attention", attention_case},
    {"column_sum", column_sum_case},
    {"cross_entropy_backward", cross_entropy_backward_case},
    {"adamw", adamw_case},
    {"gram", gram_case},
    {"newton_schulz", newton_schulz_case},
    {"kv_append", kv_append_case},
    {"softmax", softmax_case},
    {"gelu_backward", gelu_backward_case},
    {"gelu_erf_backward", gelu_backward_case},
    {"gelu", gelu_case},     /* gelu_erf too, */
    {"rotary", rotary_case}, /* and rotary_halves: they take the same arguments */
    {"layer_norm_backward", layer_norm_backward_case},
    {"layer_norm_weight_backward", layer_norm_weight_backward_case},
    {"layer_norm", layer_norm_case},
    {"embedding_panels", embedding_panels_case},
    {"embedding_backward", embedding_backward_case},
    {"embedding", embedding_case},
    {"row_sum", row_sum_case},
    {"pack_rounded", pack_rounded_case},
    {"pack", pack_case},
    {"residual", residual_case},
    {"add", add_case},
    {"quantise_rows", quantise_rows_case},
    {"round_rows", round_rows_case},
    {"quantise", quantise_case},
    {"digests", digests_case},
};

/* The case of an op, which is a family's name, alone or with _dtype after it. */
static make_case find_case(const char *op, const char **dtype) {
    for (size_t i = 0; i < sizeof families / sizeof *families; i++) {
        const size_t n = strlen(families[i].name);
        if (strncmp(op, families[i].name, n) || (op[n] && op[n] != '_')) continue;
        *dtype = op + n + (op[n] != 0);
        return families[i].make;
    }
    return NULL;
}

/* ---- comparing --------------------------------------------------------------------------------------------------- */

static void run(call *c, refgpt_kernel kernel) {
    for (int i = 0; i < c->n_outputs; i++) memset(c->outputs[i].start, FILL, c->outputs[i].n_bytes);
    kernel(&c->args, 0, c->n_items, 0);
}

static int guards_hold(const call *c) {
    for (int i = 0; i < c->n_outputs; i++)
        for (size_t j = 0; j < GUARD; j++)
            if (c->outputs[i].start[j] != FILL || c->outputs[i].start[c->outputs[i].n_bytes - 1 - j] != FILL) return 0;
    return 1;
}

/* NULL, or what is wrong. */
static const char *compare(call *c, refgpt_kernel kernel, refgpt_kernel scalar) {
    const char *fault = NULL;
    unsigned char *want[MOST_OUTPUTS];
    run(c, scalar);
    if (!guards_hold(c)) fault = "the scalar row wrote outside its output";
    for (int i = 0; i < c->n_outputs; i++) {
        want[i] = malloc(c->outputs[i].n_bytes);
        if (!want[i]) abort();
        memcpy(want[i], c->outputs[i].start, c->outputs[i].n_bytes);
    }
    run(c, kernel);
    if (!guards_hold(c)) fault = "wrote outside its output";
    for (int i = 0; i < c->n_outputs; i++) {
        if (!fault && memcmp(want[i], c->outputs[i].start, c->outputs[i].n_bytes))
            fault = "other bits than the scalar row";
        free(want[i]);
    }
    return fault;
}

static refgpt_kernel scalar_row(const char *op) {
    for (const refgpt_row *row = refgpt_table(); row->op; row++)
        if (!strcmp(row->op, op) && !strcmp(row->isa, "scalar")) return row->run;
    return NULL;
}

/* 0 if all is well. */
static int check(const refgpt_row *row) {
    const char *dtype = "", *fault = NULL;
    int n_shapes = 0;
    const make_case make = find_case(row->op, &dtype);
    const refgpt_kernel scalar = scalar_row(row->op);
    if (!make || !scalar) return printf("%s/%s: no case to compare\n", row->op, row->isa), 1;
    for (int i = 0; i < N_SIZES; i++)
        for (int j = 0; j < N_ROW_COUNTS && !fault; j++) {
            if (sizes[i] * row_counts[j] > MOST_ELEMENTS) continue; /* emulators and sanitizers are slow */
            n_shapes++;
            call c = {.n_items = 0};
            state = 1 + (uint64_t)(i * N_ROW_COUNTS + j);
            make(&c, dtype, sizes[i], row_counts[j]);
            fault = compare(&c, row->run, scalar);
            while (c.n_buffers) free(c.buffers[--c.n_buffers]);
            if (fault)
                printf("%s/%s: n %d, %d rows: %s\n", row->op, row->isa, (int)sizes[i], (int)row_counts[j], fault);
        }
    if (!fault) printf("%s/%s: %d shapes, every bit as the scalar row\n", row->op, row->isa, n_shapes);
    return fault != NULL;
}

int main(int argc, char **argv) {
    int n_faults = 0, n_checked = 0;
    for (const refgpt_row *row = refgpt_table(); row->op; row++) {
        if (!strcmp(row->isa, "scalar") || (argc > 1 && strcmp(row->isa, argv[1]))) continue;
        const char *obstacle = refgpt_isa_obstacle(row->isa);
        if (obstacle || !row->run) {
            printf("%s/%s: not run: %s\n", row->op, row->isa, obstacle ? obstacle : "not compiled");
            n_faults += argc > 1;
            continue;
        }
        n_faults += check(row);
        n_checked++;
    }
    printf("%d rows compared, %d at fault\n", n_checked, n_faults);
    return n_faults || !n_checked;
}
