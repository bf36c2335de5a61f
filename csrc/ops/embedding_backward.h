/* The backward of embeddings: adds rows to those of the table, in the order of the text, so that an id may occur any
 * number of times. Items are columns, so that no two threads write the same number. Bound by memory. */

KERNEL(embedding_backward) {
    const refgpt_embedding_backward_args *a = args;
    const int64_t first = begin * LANES, stop = smaller(end * LANES, a->n);
    for (int64_t r = 0; r < a->n_rows; r++) {
        const float *dy = a->dy + r * a->n;
        float *to = a->dtable + a->ids[r] * a->n;
        for (int64_t i = first; i < stop; i += LANES)
            store_row(to, i, stop, v16_add(load_row(to, i, stop, 0.0f), load_row(dy, i, stop, 0.0f)));
    }
}
