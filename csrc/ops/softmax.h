/* Softmax of a row: its largest element, then exp of the differences and their striped sum, then the division. Bound by
 * exp. */

typedef struct {
    float most, total; /* the largest element, and the sum of the powers */
} softmax_sums;

static softmax_sums softmax_row(const float *x, float *y, int64_t n) {
    v16 most = v16_set1(-INFINITY);
    for (int64_t i = 0; i < n; i += LANES) most = v16_max(most, load_row(x, i, n, -INFINITY));
    softmax_sums found;
    found.most = v16_largest(most);
    const v16 largest = v16_set1(found.most);
    v16 sum = v16_set1(0.0f);
    for (int64_t i = 0; i < n; i += LANES) {
        const v16 e = v16_exp(v16_sub(load_row(x, i, n, -INFINITY), largest));
        sum = v16_add(sum, e);
        store_row(y, i, n, e);
    }
    found.total = v16_sum(sum);
    const v16 total = v16_set1(found.total);
    for (int64_t i = 0; i < n; i += LANES) store_row(y, i, n, v16_div(load_row(y, i, n, 0.0f), total));
    return found;
}

KERNEL(softmax) {
    const refgpt_softmax_args *a = args;
    for (int64_t r = begin; r < end; r++) softmax_row(a->x + r * a->n, a->y + r * a->n, a->n);
}
