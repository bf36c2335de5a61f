/* Adds the output of one branch to the residual stream. Bound by the cache. */

KERNEL(add) {
    const refgpt_add_args *a = args;
    for (int64_t i = begin * a->n; i < end * a->n; i += LANES) {
        const int64_t stop = end * a->n;
        store_row(a->y, i, stop, v16_add(load_row(a->x, i, stop, 0.0f), load_row(a->a, i, stop, 0.0f)));
    }
}
