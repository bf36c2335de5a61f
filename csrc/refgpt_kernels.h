/* The kernels' signatures and contracts. Apart from the include guard this is also what cffi reads: plain C, plain
 * constants.
 *
 * A kernel is a pure function of a range of items: it reads its arguments, writes the outputs of items [begin, end) and
 * nothing else. No malloc, no threads, no globals, no exit. Shapes are checked in Python before the call. Items of one
 * call may run in any order and on any thread; each writes its own outputs, so the bits do not depend on the split.
 * Outputs overlap no input, except where "x may be y" is said.
 *
 * Arithmetic is float32 with explicit fused multiply-adds and no other contraction; every instruction set performs the
 * same operations on the same 16 lanes in the same order, so all of them return the same bits.
 *
 * Panels. Matrices that are multiplied are stored as panels of 16 rows ("lanes"): panel p, inner index k, lane l lies
 * at ((p * n_inner) + k) * 16 + l and holds row 16p + l. Lanes past the last row are zero and are never stored to an
 * output.
 *
 * Panels of 8-, 4- and 3-bit weights are cut into blocks of 32 inputs; padding is zero. A block of 8 bits is
 * [8 quads][16 lanes][4] signed bytes, one of 4 bits [4 steps][16 lanes][4] bytes (input 8 step + i, plus 8, in the low
 * half of byte i; 8 step + 4 + i, plus 8, in the high half), one of 3 bits [3 steps][16 lanes][4] bytes (input 8 step +
 * i, plus 4, in bits 0 .. 2 of byte i; 8 step + 4 + i, plus 4, in bits 3 .. 5; of the same byte of step 3, bits 2 step
 * and 2 step + 1 in bits 6 and 7); then come 16 float16 scales. The weight is scale * integer.
 *
 * Quantised rows. Activations that meet such weights are rounded to 8 bits, each row by blocks of 32: a row's largest
 * absolute value a in a block gives the scale a / 127 and the integers round(x * (127 / a)), to nearest even; a block
 * whose a is below 2^-100 is all zeros, and one with NaN or infinity has the scale NaN. Rows lie in groups of 24, the
 * last group in the height h that is left; a group is a sequence of records, one a block: [8 quads][h rows][4] bytes, h
 * scales, h times -8 * the sum of the integers (int32).
 *
 * Order of every inner sum ("chunked"): the inner dimension is cut into chunks of 32 from index 0; within a chunk one
 * accumulator starts at +0 and takes fma(weight, x, accumulator) with ascending k; finished chunks are added with
 * ascending chunk to a total, which starts at the bias (or +0). With quantised weights the total takes, with ascending
 * block, fma(sum of the block's 32 products as an integer, fl(weight's scale * row's scale), total). Sums over keys end
 * at the last one that the row sees, so keys after it cannot touch its bits.
 *
 * Several texts. Kernels that sum over the rows of texts take those of several, one after the other: text s has the
 * rows starts[s] .. starts[s + 1] - 1. Each text is summed by itself, from its own first row on, and the sums are added
 * with ascending text to what the output holds: the same bits as a call for each text.
 *
 * Order of every sum along a row ("striped"): 16 partial sums, element i into partial i % 16 with ascending i, then
 * partials l and l + 8, l and l + 4, l and l + 2, 0 and 1 are added. */
#ifndef REFGPT_KERNELS_H
#define REFGPT_KERNELS_H
#include <stdint.h>

/* Changes whenever a struct or a contract below changes; the binding refuses another number. */
#define REFGPT_ABI 18
#define REFGPT_LANES 16     /* rows side by side in a panel */
#define REFGPT_CHUNK 32     /* terms of a partial sum */
#define REFGPT_FEW_ROWS 8   /* that linear takes as they are; the most rows of a query tile */
#define REFGPT_BLOCK 32     /* inputs of a quantised matrix that share a scale */
#define REFGPT_ROW_GROUP 24 /* quantised rows that lie together */

typedef void (*refgpt_kernel)(const void *args, int64_t begin, int64_t end, int64_t worker);

/* One row of the table in kernels.def. `run` is NULL where the row is not compiled for this architecture. */
typedef struct {
    const char *op;
    const char *isa;
    refgpt_kernel run;
} refgpt_row;

/* y[r, o] = bias[o] + sum over i of w[o, i] * x[r, i], chunked over i. Items: panels of w. linear_{f32,f16,bf16}: the
 * dtype of w; 16-bit weights are widened exactly. bias may be NULL.
 *
 * linear_bf16_dots: w is bfloat16, and rows are rounded to it, to nearest even: many by round_rows, few here. Rounded
 * numbers smaller than 2^-56 count as 0, so that no sum of products is ever subnormal. Within a chunk the two inputs of
 * each pair (2i, 2i + 1) are added odd first:
 * accumulator = fma(w[2i], x[2i], fma(w[2i + 1], x[2i + 1], accumulator)). */
typedef struct {
    const float *x;       /* [n_rows, n_in] */
    const void *x_panels; /* the rows as panels, or as round_rows writes them; NULL exactly if n_rows <= 8 */
    const void *w;        /* panels [ceil(n_out / 16)][n_in][16], 64-byte aligned */
    const float *bias;    /* [n_out] or NULL */
    float *y;             /* [n_rows, n_out] */
    int64_t n_rows, n_in, n_out;
} refgpt_linear_args;

/* y[r, o] = bias[o] + sum over i of w[o, i] * x[r, i], x rounded to 8 bits, by blocks. Items: panels of w.
 * linear_{q8,q4,q3}: the bits of w. bias may be NULL. */
typedef struct {
    const char *x;     /* n_rows quantised rows */
    const void *w;     /* panels [ceil(n_out / 16)][ceil(n_in / 32)] of blocks */
    const float *bias; /* [n_out] or NULL */
    float *y;          /* [n_rows, n_out] */
    int64_t n_rows, n_in, n_out;
} refgpt_linear_quantised_args;

/* Rounds rows to 8 bits. Items: blocks of groups, blocks fastest. */
typedef struct {
    const float *x; /* [n_rows, n_in] */
    char *y;        /* n_rows * ceil(n_in / 32) * 40 bytes */
    int64_t n_rows, n_in;
} refgpt_quantise_rows_args;

/* Rounds rows to bfloat16 for linear_bf16_dots, in pairs of inputs; numbers that count as 0 there become 0. Items:
 * panels of rows. A word of y has input 2i of a row in its lower half and input 2i + 1 in its upper half; zeros follow
 * the last input and the last row. */
typedef struct {
    const float *x; /* [n_rows, n_in] */
    uint32_t *y;    /* [ceil(n_rows / 16)][ceil(n_in / 2)][16] */
    int64_t n_rows, n_in;
} refgpt_round_rows_args;

/* Rows of queries that share one sequence and are worked on together. */
typedef struct {
    int64_t first_row, n_rows; /* n_rows <= 8 */
    int64_t slot;              /* which sequence of the cache */
} refgpt_query_tile;

/* z[r, h] = sum over first_visible[r] <= s < n_visible[r] of softmax(q[r, h] . k[s, h] / divisor) v[s, h]. Items: tiles
 * x heads. Neighbouring tiles of one sequence are taken together, and their items are ordered by head and then by tile.
 * Scores are chunked over d_head, exp is summed striped from the first visible key on, z is chunked over s: chunks are
 * cut from key 0 on, so that the first may be the end of one. Keys outside are not read, but for those that share a
 * panel with one inside. attention_{f32,f16,q8}: the dtype of the cache.
 *
 * The cache consists of blocks of `block` positions. Key s of slot i lies in block tables[i][s / block], at position s
 * % block; without tables, slot i has the one block i. Several slots may share a block. Where the blocks lie changes no
 * bit.
 *
 * A cache of 8 bits (q8) has records of 16 keys, [block][n_head][block / 16]. A record of k begins with signed bytes
 * [d_head][16 keys], a record of v with panels of signed bytes [ceil(d_head / 16)][16 keys][16 dimensions]. Both end
 * with scales [ceil(d_head / 32)][16 keys], float16: 32 numbers of a key share one. A number is scale * integer, which
 * float32 holds exactly, and attention over it has the bits that it has over a float32 cache of these numbers. */
typedef struct {
    const float *q; /* [t, n_head, d_head], rotated */
    const void *k;  /* [block][n_head] panels [block / 16][d_head][16]: lanes are keys; q8: records */
    const void *v;  /* [block][n_head] panels [ceil(d_head / 16)][block][16]: lanes are dimensions; q8: records */
    float *z;       /* [t, n_head, d_head] */
    float *pattern; /* [n_head, t, n_keys] or NULL; invisible keys get 0 */
    float *scratch; /* [workers][8][capacity] */
    const refgpt_query_tile *tiles; /* [n_tiles] */
    const int64_t *tables;          /* [slot][capacity / block] or NULL */
    const int64_t
        *first_visible;       /* [t], 0 .. n_visible - 1: local mask, a row sees keys from this one on; NULL is all 0 */
    const int64_t *n_visible; /* [t], 1 .. capacity: causal or prefix mask, a row sees the keys before this one */
    int64_t n_tiles, n_rows, n_keys, n_head, d_head;
    int64_t block, capacity; /* multiples of 16; a slot's capacity is whole blocks; a smaller block is whole chunks */
    float divisor;           /* of the scores */
} refgpt_attention_args;

/* Puts keys and values at positions of blocks of the cache, rounded to its dtype (nearest even); what is too large for
 * float16 becomes NaN. Items: rows.
 *
 * kv_append_q8: the largest absolute value a of 32 neighbours gives the scale s, a / 127 rounded to float16, and the
 * integers round(x * (1 / s)) within -127 .. 127, to nearest even; all are 0 if s is. If one of the 32 is NaN or
 * infinite, or s is too large for float16, s is NaN. */
typedef struct {
    const float *k, *v;       /* [t, n_head, d_head] */
    void *k_cache, *v_cache;  /* see attention */
    const int64_t *positions; /* [t], 0 .. block - 1 */
    const int64_t *blocks;    /* [t] */
    int64_t n_head, d_head, block;
} refgpt_kv_append_args;

/* y[r] = exp(x[r] - max) / sum, sum striped. x may be y. Items: rows. */
typedef struct {
    const float *x; /* [n_rows, n] */
    float *y;
    int64_t n;
} refgpt_softmax_args;

/* y = fma((x - mean) * (1 / sqrt(variance + eps)), w, b); mean and then variance (of x - mean, squares by fma) are
 * striped sums divided by n. A row whose variance overflows becomes NaN. x may be y. Items: rows. */
typedef struct {
    const float *x; /* [n_rows, n] */
    const float *w; /* [n] */
    const float *b; /* [n] */
    float *y;
    int64_t n;
    float eps;
} refgpt_layer_norm_args;

/* y = x / (1 + exp(-2 sqrt(2/pi) (x + 0.044715 x^3))), which is 0.5 x (1 + tanh(..)). x may be y. Items: rows. */
typedef struct {
    const float *x; /* [n_rows, n] */
    float *y;
    int64_t n;
} refgpt_gelu_args;

/* y = max(x, 0) - t Q(t) with t = |x| and Q(t) = (1 - erf(t / sqrt 2)) / 2, as csrc/ops/gelu_erf.h writes it in steps:
 * GELU itself. Its arguments are gelu's, its op is gelu_erf. x may be y. Items: rows. */
/* dx = dy (s + ((x s) (e s)) rise) with x within -16 .. 16, e = exp(-2 sqrt(2/pi) (x + 0.044715 x^3)), s = 1 / (1 + e)
 * and rise = 2 sqrt(2/pi) (1 + 0.134145 x^2): the slope of gelu, times dy. dx may be either. Items: rows.
 * gelu_erf_backward: dx = dy fma(x / sqrt(2 pi), exp(-x^2 / 2), |[x >= 0] - Q(|x|)|) with x within -14 .. 14, Q and the
 * power as gelu_erf has them. */
typedef struct {
    const float *x;  /* [n_rows, n] */
    const float *dy; /* [n_rows, n] */
    float *dx;
    int64_t n;
} refgpt_gelu_backward_args;

/* Turns the pairs (2i, 2i+1) of the first d_rotary dimensions of every head by the row's angle and copies the rest:
 * y = fma(x, cos, partner * sin), with sin negated at even dimensions. x may be y. Items: rows. rotary_halves: the
 * pairs are (i, i + d_rotary / 2), sin is negated in the first half, and the tables hold each half's cosines and sines
 * in turn. */
typedef struct {
    const float *x;           /* [t, n_head, d_head] */
    const float *cos;         /* [n_ctx, d_rotary], each cosine twice */
    const float *sin;         /* [n_ctx, d_rotary], -sin and +sin in turn */
    const int64_t *positions; /* [t], 0 .. n_ctx - 1 */
    float *y;
    int64_t n_head, d_head, d_rotary;
} refgpt_rotary_args;

/* y = (x + a) + b. y may be any of them. Items: rows. */
typedef struct {
    const float *x, *a, *b; /* [n_rows, n] */
    float *y;
    int64_t n;
} refgpt_residual_args;

/* y = x + a. y may be either. Items: rows. */
typedef struct {
    const float *x, *a; /* [n_rows, n] */
    float *y;
    int64_t n;
} refgpt_add_args;

/* y[r] = table[ids[r]], widened exactly. Items: rows. embedding_{f32,f16,bf16,q8}: the dtype of the table.
 * embedding_panels_{f32,f16,bf16}: a table in panels. */
typedef struct {
    /* [n_vocab, n]; panels [ceil(n_vocab / 16)][n][16]; or of 8 bits [ceil(n_vocab / 16)][ceil(n / 32)] blocks. */
    const void *table;
    const int64_t *ids; /* [n_rows], 0 .. n_vocab - 1 */
    float *y;           /* [n_rows, n] */
    int64_t n;
} refgpt_embedding_args;

/* y[r] = sum of x[r], striped. Items: rows. */
typedef struct {
    const float *x; /* [n_rows, n] */
    float *y;       /* [n_rows] */
    int64_t n;
} refgpt_row_sum_args;

/* dx[r, i] = sum over o of w[o, i] * dy[r, o], chunked over o. Items: 32 inputs.
 * linear_backward_{f32,f16,bf16,q8,q4,q3}: what w is kept in, in the panels that linear reads; weights are widened
 * exactly, and rows are not rounded.
 *
 * linear_backward_dots_{bf16,q8,q4,q3}: weights and rows are rounded to bfloat16, to nearest even. What is then smaller
 * than 2^-80 in dy and 2^-32 in w counts as 0, so that no sum of products is ever subnormal. Within a chunk the two
 * outputs of each pair (2o, 2o + 1) are added odd first, as linear_bf16_dots adds inputs. */
typedef struct {
    const float *dy_panels; /* [n_rows, n_out] as panels */
    const void *w;          /* [n_out, n_in]; see linear and linear_quantised */
    float *dx;              /* [n_rows, n_in] */
    int64_t n_rows, n_in, n_out;
} refgpt_linear_backward_args;

/* dw[o, i] += sum over r of x[r, i] * dy[r, o], chunked over r, from +0 on, text by text. Items: 16 outputs.
 *
 * linear_weight_backward_dots: x and dy are rounded to bfloat16, to nearest even. What is then smaller than 2^-80 in dy
 * and 2^-32 in x counts as 0. Within a chunk the two rows of each pair, counted from the text's first, are added odd
 * first. */
typedef struct {
    const float *x;        /* [n_rows, n_in] */
    const float *dy;       /* [n_rows, n_out] */
    float *dw;             /* [n_out, n_in] */
    const int64_t *starts; /* [n_texts + 1], ascending, 0 .. n_rows */
    int64_t n_texts, n_in, n_out;
} refgpt_linear_weight_backward_args;

/* y[i] += sum over r of x[r, i], striped over r, text by text. Items: 16 columns. */
typedef struct {
    const float *x;        /* [n_rows, n] */
    float *y;              /* [n] */
    const int64_t *starts; /* [n_texts + 1], ascending, 0 .. n_rows */
    int64_t n_texts, n;
} refgpt_column_sum_args;

/* The gradients of q, k and v by way of attention's z, in each text: row r sees the keys first_visible[r] <= s <
 * n_visible[r]. With the pattern p as attention computes it, dp[r, s] = dz[r] . v[s], chunked over d_head, and the
 * slope ds[r, s] = (p[r, s] * (dp[r, s] - sum over s of dp * p)) / divisor, whose sum is striped from the first visible
 * key on: dq[r] = sum over s of ds[r, s] k[s], dk[s] = sum over r of ds[r, s] q[r], dv[s] = sum over r of p[r, s]
 * dz[r], chunked over s and over r from 0 on; where r does not see s, both p and ds are 0. Rows, keys and all that
 * n_visible counts are those of one text. Items: texts x heads, heads fastest. */
typedef struct {
    const float *q, *k, *v; /* [t, n_head, d_head], q and k rotated, k and v rounded as the cache keeps them */
    const float *dz;        /* [t, n_head, d_head] */
    float *dq, *dk, *dv;    /* [t, n_head, d_head] */
    float *dpattern;        /* [n_head, t, t] or NULL: dp, of unseen keys too; only of a single text */
    /* [workers][scratch_floats]; of each 5 n w + 64 (w + n + 16), n = the longest text's rows in whole 32, w = d_head
     * in whole 16. */
    float *scratch;
    const int64_t *first_visible; /* [t], 0 .. n_visible - 1, or NULL; see attention */
    const int64_t *n_visible;     /* [t], 1 .. the text's rows */
    const int64_t *starts;        /* [n_texts + 1], ascending, 0 .. t */
    int64_t n_head, d_head, scratch_floats;
    float divisor;
} refgpt_attention_backward_args;

/* The gradient of layer_norm's x. With mean, centred = x - mean, root = sqrt(variance + eps), normed = centred / root
 * and dnormed = dy * w: dx = ((dnormed - a) - normed * b) / root, a and b the means of dnormed and of dnormed * normed.
 * All sums are striped; no product is fused with a sum. Items: rows. */
typedef struct {
    const float *x;  /* [n_rows, n] */
    const float *w;  /* [n] */
    const float *dy; /* [n_rows, n] */
    float *dx;       /* [n_rows, n] */
    float *moments;  /* [n_rows, 2]: mean and root */
    int64_t n;
    float eps;
} refgpt_layer_norm_backward_args;

/* dw[i] += sum over r of dy[r, i] * ((x[r, i] - mean) / root), striped over r, text by text. Items: 16 columns. The
 * gradient of the bias is dy's column_sum. */
typedef struct {
    const float *x, *dy;   /* [n_rows, n] */
    const float *moments;  /* [n_rows, 2], from layer_norm_backward */
    float *dw;             /* [n] */
    const int64_t *starts; /* [n_texts + 1], ascending, 0 .. n_rows */
    int64_t n_texts, n;
} refgpt_layer_norm_weight_backward_args;

/* dtable[ids[r]] += dy[r], with ascending r. Items: 16 columns. */
typedef struct {
    const float *dy;    /* [n_rows, n] */
    const int64_t *ids; /* [n_rows], 0 .. n_vocab - 1 */
    float *dtable;      /* [n_vocab, n] */
    int64_t n_rows, n;
} refgpt_embedding_backward_args;

/* dx[r] = (softmax(x[r]) - 1 at the target) * dy[r]: the gradient of the logits by way of cross-entropy, -log
 * softmax(x[r])[target], which is log(total) - above. dx may be x. Items: rows. */
typedef struct {
    const float *x;         /* [n_rows, n] */
    const int64_t *targets; /* [n_rows], 0 .. n - 1 */
    const float *dy;        /* [n_rows] */
    float *dx;              /* [n_rows, n] */
    float *parts;           /* [n_rows, 2]: total, softmax's sum; above, x at the target - the largest x */
    int64_t n;
} refgpt_cross_entropy_backward_args;

/* mean = mean * beta1 + rest1 * g, square = square * beta2 + (rest2 * g) * g,
 * w = w * shrink - (rate * mean) / (sqrt(square) / correction + eps); no product is fused with a sum. Its second op is
 * adamw_averaged: with m = mean / mean_correction and v = max(square / square_correction - m * m, 0),
 * w = w * shrink - (rate * m) / (sqrt(m * m + of_variance * v) + eps). Items: 512 elements. */
typedef struct {
    const float *g;           /* [n] */
    float *w, *mean, *square; /* [n] */
    int64_t n;
    float beta1, rest1, beta2, rest2, shrink, rate, eps;
    float correction;                                      /* of adamw */
    float mean_correction, square_correction, of_variance; /* of adamw_averaged */
} refgpt_adamw_args;

/* y[i, j] = sum over k of x[i, k] * x[j, k], chunked over k; with a base, of_base * base[i, j] + of_sum * that sum, no
 * product fused with the sum. y[i, j] and y[j, i] are one number, and base[i, j] and base[j, i] are to be. All are
 * panels, whose lanes past the last row are zeros in y too. Items: panels of x; an item writes y[i, j] and y[j, i] for
 * each row j of its panel and each i from the panel's first row on. */
typedef struct {
    const float *x;    /* [n_rows, n] */
    const float *base; /* [n_rows, n_rows] or NULL */
    float *y;          /* [n_rows, n_rows] */
    int64_t n_rows, n;
    float of_base, of_sum;
} refgpt_gram_args;

/* y[i, j] = of_x * x[i, j] + sum over k of s[i, k] * x[k, j], chunked over k, the product not fused with the sum;
 * s[i, k] and s[k, i] are to be one number. x and y are the panels of their transposes, whose lanes past the last
 * column are zeros in y too. Items: panels of x. */
typedef struct {
    const float *s; /* [n_rows, n_rows] */
    const float *x; /* [n_rows, n], its columns as panels */
    float *y;       /* like x */
    float *rows;    /* y's rows as panels */
    int64_t n_rows, n;
    float of_x;
} refgpt_newton_schulz_args;

/* Rearranges a row-major matrix [n_out, n_in] into panels, zeros in the lanes past n_out. Items: panels.
 * pack_{b2,b4}: the size of an element in bytes. pack_rounded: from float32 to bfloat16, to nearest even. */
typedef struct {
    const void *w; /* at any address */
    void *panels;
    int64_t n_in, n_out;
} refgpt_pack_args;

/* Quantises a row-major matrix [n_out, n_in] as refgpt/numbers/quantisation.py writes it down, into the panels of
 * refgpt/numbers/panels.py. No weight's magnitude exceeds 65504 * 127 (q8), 65504 * 7 (q4) or 65504 * 3 (q3). Items:
 * panels. No multiplication is fused with an addition: NumPy returns the same bits. */
typedef struct {
    const void *w; /* at any address */
    void *panels;  /* [ceil(n_out / 16)][ceil(n_in / 32)] blocks of 544 (q8), 288 (q4) or 224 (q3) bytes */
    int64_t n_in, n_out;
    int64_t dtype; /* of w: 0 float32, 1 float16, 2 bfloat16 */
} refgpt_quantise_args;

/* Digests of pieces of piece_words words, the last one possibly shorter. Items: pieces. 64 lanes start at 0; word i
 * goes into lane i % 64: lane = (rotl(lane, 15) ^ word) * 0x01000193, with ascending i, and zeros for the words that
 * the last step of 64 lacks. The digest starts at the number of words and takes the lanes in order:
 * digest = (digest ^ lane) * 0x100000001b3. Every step can be undone, so that no single word can change without the
 * digest.
 *
 * While a piece lies in the cache, the floats in it are looked through. The words hold n_groups groups of n_floats
 * floats of float_bytes bytes (2 or 4), one next to the other; groups begin at byte first_byte and are group_bytes
 * apart, all of them multiples of float_bytes. exponent is the mask of their exponents, the bits below the sign.
 * finite[piece] is 0 if a float that begins in the piece has all these bits set, which makes it NaN or infinity,
 * otherwise 1. */
typedef struct {
    const uint32_t *words;
    uint64_t *digests;
    uint8_t *finite; /* [pieces]; NULL: floats are not looked at, and the numbers below not read */
    int64_t n_words, piece_words;
    int64_t float_bytes, exponent, first_byte, group_bytes, n_groups, n_floats;
} refgpt_digests_args;

/* The table, ended by a row whose op is NULL. */
const refgpt_row *refgpt_table(void);

/* Why the CPU or the operating system cannot run an instruction set of the table ("avx2" for one); NULL if it can. */
const char *refgpt_isa_obstacle(const char *isa);

/* Run a kernel over items [0, n_items) on at most n_threads threads, in pieces of whole multiples of `grain` (but the
 * last). Blocks until done.
 * Workers are numbered 0 .. n_threads - 1; the caller is 0, and works alone while another thread's call has the
 * workers. Kernels run under the default floating-point state, whatever the caller's is; that is as it was
 * afterwards. */
void refgpt_run(refgpt_kernel kernel, const void *args, int64_t n_items, int64_t grain, int64_t n_threads);

/* Such a call, written down. */
typedef struct {
    refgpt_kernel kernel;
    const void *args;
    int64_t n_items, grain;
} refgpt_step;

/* Run steps one after another, each when all items of the one before are done. */
void refgpt_run_steps(const refgpt_step *steps, int64_t n_steps, int64_t n_threads);

/* Numbers that a recorded step reads as indices: index[i] is to be in [least, stop) for i in [0, n). */
typedef struct {
    const int64_t *index;
    int64_t n, least, stop;
} refgpt_range;

/* The first range that holds a number outside, or -1 if none does. */
int64_t refgpt_outside(const refgpt_range *ranges, int64_t n_ranges);

/* Whether tiles are rows 0 .. n_rows - 1, each once and in order, at most REFGPT_FEW_ROWS a tile, of slots [0,
 * n_slots). */
int refgpt_tiles_fit(const refgpt_query_tile *tiles, int64_t n_tiles, int64_t n_rows, int64_t n_slots);

/* Give the calling thread the default floating-point state (to nearest, nothing flushed to 0, no exception traps), and
 * return the state that it had; give it that one back. */
uint64_t refgpt_default_float_state(void);
void refgpt_set_float_state(uint64_t state);

#endif
