/* Sums of columns, striped over rows, for the gradients of biases. Bound by the cache. */

KERNEL(column_sum) {
    const refgpt_column_sum_args *a = args;
    for (int64_t p = begin; p < end; p++) {
        for (int64_t s = 0; s < a->n_texts; s++) {
            const float *x = a->x + a->starts[s] * a->n;
            v16 sums[LANES];
            start_stripes(sums);
            for (int64_t r = 0; r < a->starts[s + 1] - a->starts[s]; r++)
                sums[r % LANES] = v16_add(sums[r % LANES], load_row(x + r * a->n, p * LANES, a->n, 0.0f));
            add_stripes(sums, a->y, p * LANES, a->n);
        }
    }
}
