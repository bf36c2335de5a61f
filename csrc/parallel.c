/* The only file that knows of threads. Items are dealt in pieces to whoever is free; results do not depend on the deal. */
#include "refgpt_kernels.h"

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>

/* GNU OpenMP hangs in a child that was forked after threads had started: such a child works alone. */
static int is_forked_child = 0;
static void mark_child(void) { is_forked_child = 1; }
__attribute__((constructor)) static void watch_fork(void) { pthread_atfork(NULL, NULL, mark_child); }

int refgpt_has_threads(void) { return 1; }

void refgpt_run(refgpt_kernel kernel, const void *args, int64_t n_items, int64_t grain, int64_t n_threads) {
    const int64_t most_pieces = (n_items + grain - 1) / grain;
    if (n_threads > most_pieces) n_threads = most_pieces;
    if (n_threads <= 1 || is_forked_child) {
        if (n_items > 0) kernel(args, 0, n_items, 0);
        return;
    }
    /* Several pieces a thread even out a busy machine; whole grains keep a kernel's groups of items together. */
    int64_t piece = (n_items / (8 * n_threads) + grain - 1) / grain * grain;
    if (piece < grain) piece = grain;
    const int64_t n_pieces = (n_items + piece - 1) / piece;
#pragma omp parallel for schedule(dynamic, 1) num_threads((int)n_threads)
    for (int64_t i = 0; i < n_pieces; i++) {
        const int64_t begin = i * piece, end = begin + piece < n_items ? begin + piece : n_items;
        kernel(args, begin, end, omp_get_thread_num());
    }
}
#else
int refgpt_has_threads(void) { return 0; }

void refgpt_run(refgpt_kernel kernel, const void *args, int64_t n_items, int64_t grain, int64_t n_threads) {
    (void)grain, (void)n_threads;
    if (n_items > 0) kernel(args, 0, n_items, 0);
}
#endif
