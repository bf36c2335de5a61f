/* The backward of softmax with cross-entropy: the probabilities, minus 1 at the target. Bound by exp. */

KERNEL(cross_entropy_backward) {
    const refgpt_cross_entropy_backward_args *a = args;
    for (int64_t r = begin; r < end; r++) {
        float *dx = a->dx + r * a->n;
        const float logit = a->x[r * a->n + a->targets[r]]; /* dx may be x */
        const softmax_sums found = softmax_row(a->x + r * a->n, dx, a->n);
        a->parts[2 * r] = found.total;
        a->parts[2 * r + 1] = logit - found.most;
        dx[a->targets[r]] -= 1.0f;
        const v16 dy = v16_set1(a->dy[r]);
        for (int64_t i = 0; i < a->n; i += LANES) store_row(dx, i, a->n, v16_mul(load_row(dx, i, a->n, 0.0f), dy));
    }
}
