/* A step of AdamW in one pass over weights, gradient and moments. Bound by memory. */

/* `averaged`, a compile-time constant: take the denominators of a gradient averaged over several workers. */
ALWAYS_INLINE void adamw_items(const refgpt_adamw_args *a, int64_t begin, int64_t end, const int averaged) {
    const v16 shrink = v16_set1(a->shrink), rate = v16_set1(a->rate), eps = v16_set1(a->eps),
              correction = v16_set1(a->correction);
    const v16 beta1 = v16_set1(a->beta1), beta2 = v16_set1(a->beta2), rest1 = v16_set1(a->rest1),
              rest2 = v16_set1(a->rest2);
    const v16 mean_correction = v16_set1(a->mean_correction), square_correction = v16_set1(a->square_correction),
              of_variance = v16_set1(a->of_variance);
    const int64_t stop = smaller(end * REFGPT_CHUNK * LANES, a->n);
    for (int64_t i = begin * REFGPT_CHUNK * LANES; i < stop; i += LANES) {
        const v16 g = load_row(a->g, i, stop, 0.0f);
        const v16 mean = v16_add(v16_mul(load_row(a->mean, i, stop, 0.0f), beta1), v16_mul(rest1, g));
        const v16 square = v16_add(v16_mul(load_row(a->square, i, stop, 0.0f), beta2), v16_mul(v16_mul(rest2, g), g));
        v16 direction = mean, root;
        if (averaged) {
            direction = v16_div(mean, mean_correction);
            const v16 squared = v16_mul(direction, direction);
            /* NaN stays NaN in this order. */
            const v16 variance = v16_max(v16_set1(0.0f), v16_sub(v16_div(square, square_correction), squared));
            root = v16_sqrt(v16_add(squared, v16_mul(of_variance, variance)));
        } else {
            root = v16_div(v16_sqrt(square), correction);
        }
        const v16 w = v16_mul(load_row(a->w, i, stop, 0.0f), shrink);
        store_row(a->mean, i, stop, mean);
        store_row(a->square, i, stop, square);
        store_row(a->w, i, stop, v16_sub(w, v16_div(v16_mul(rate, direction), v16_add(root, eps))));
    }
}

KERNEL(adamw) { adamw_items(args, begin, end, 0); }
