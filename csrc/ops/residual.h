/* Adds the outputs of a block's two branches to the residual stream. Bound by the cache. */

KERNEL(residual) {
    const refgpt_residual_args *a = args;
    for (int64_t i = begin * a->n; i < end * a->n; i += LANES) {
        const int64_t stop = end * a->n;
        const v16 sum = v16_add(load_row(a->x, i, stop, 0.0f), load_row(a->a, i, stop, 0.0f));
        store_row(a->y, i, stop, v16_add(sum, load_row(a->b, i, stop, 0.0f)));
    }
}
