/* A step of AdamW in one pass over weights, gradient and moments. Bound by memory. */

KERNEL(adamw) {
    const refgpt_adamw_args *a = args;
    const v16 shrink = v16_set1(a->shrink), rate = v16_set1(a->rate), eps = v16_set1(a->eps),
              correction = v16_set1(a->correction);
    const v16 beta1 = v16_set1(a->beta1), beta2 = v16_set1(a->beta2), rest1 = v16_set1(a->rest1),
              rest2 = v16_set1(a->rest2);
    const int64_t stop = smaller(end * REFGPT_CHUNK * LANES, a->n);
    for (int64_t i = begin * REFGPT_CHUNK * LANES; i < stop; i += LANES) {
        const v16 g = load_row(a->g, i, stop, 0.0f);
        const v16 mean = v16_add(v16_mul(load_row(a->mean, i, stop, 0.0f), beta1), v16_mul(rest1, g));
        const v16 square = v16_add(v16_mul(load_row(a->square, i, stop, 0.0f), beta2), v16_mul(v16_mul(rest2, g), g));
        const v16 root = v16_add(v16_div(v16_sqrt(square), correction), eps);
        const v16 w = v16_mul(load_row(a->w, i, stop, 0.0f), shrink);
        store_row(a->mean, i, stop, mean);
        store_row(a->square, i, stop, square);
        store_row(a->w, i, stop, v16_sub(w, v16_div(v16_mul(rate, mean), root)));
    }
}
