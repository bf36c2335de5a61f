/* Striped sums of rows. The forward pass does not use it; it measures the machine's reading speed, with which decoding
 * is compared. */

KERNEL(row_sum) {
    const refgpt_row_sum_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        const float *x = a->x + r * a->n;
        v16 sum = v16_set1(0.0f);
        for (int64_t i = 0; i < a->n; i += LANES) {
            __builtin_prefetch(x + i + 512);
            sum = v16_add(sum, load_row(x, i, a->n, 0.0f));
        }
        a->y[r] = v16_sum(sum);
    }
}
