/* The only file that uses threads: a pool of workers that is created on first use and waits between calls.
 *
 * The caller deals the items in pieces and takes pieces itself, so it never waits for a worker that has not woken up:
 * on a busy machine a call takes at most about as long as it would alone. Results do not depend on the deal. Why not
 * OpenMP: its regions end only when every thread has been scheduled, it hangs in forked children, and wheels would have
 * to carry it. */
#include "refgpt_kernels.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

enum { MOST_WORKERS = 1023 };
/* Kernels keep about half a megabyte of sums there; some systems grant less by default. */
enum { STACK_BYTES = 2 << 20 };
static const int64_t SPIN_NANOSECONDS = 100000; /* decode calls follow each other faster than a sleeper wakes */

/* The current job. Written by the caller before it opens the job, read by the workers. */
static struct {
    refgpt_kernel kernel;
    const void *args;
    int64_t n_items, grain, n_threads;
    _Atomic int64_t next; /* first item that no thread has taken */
} job;

static _Atomic uint64_t open_job; /* number of the job that may be entered, 0 if none */
static _Atomic int n_inside, n_asleep;
/* One job at a time. It also guards n_workers and n_jobs. */
static pthread_mutex_t caller_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake_up = PTHREAD_COND_INITIALIZER;
static int64_t n_workers;
static uint64_t n_jobs;

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t nanoseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* Large pieces first, then ever smaller ones down to a grain: few of them, and all threads are done at about the same
 * time, whether they are two or sixteen, and whatever else the machine does. */
static void take_pieces(int64_t worker) {
    int64_t begin = atomic_load(&job.next);
    while (begin < job.n_items) {
        const int64_t left = job.n_items - begin;
        int64_t piece = left / (4 * job.n_threads) / job.grain * job.grain;
        if (piece < job.grain) piece = job.grain < left ? job.grain : left;
        /* If another thread was faster, begin is where the next piece starts now. */
        if (!atomic_compare_exchange_weak(&job.next, &begin, begin + piece)) continue;
        job.kernel(job.args, begin, begin + piece, worker);
        begin = atomic_load(&job.next);
    }
}

/* Until a job opens that this worker has not seen: first spinning, then asleep. */
static uint64_t wait_for_job(uint64_t seen) {
    const int64_t deadline = nanoseconds() + SPIN_NANOSECONDS;
    uint64_t number;
    do {
        for (int i = 0; i < 64; i++) {
            number = atomic_load(&open_job);
            if (number && number != seen) return number;
            relax();
        }
    } while (nanoseconds() < deadline);
    pthread_mutex_lock(&sleep_lock);
    atomic_fetch_add(&n_asleep, 1); /* before the last look: a caller opens first and counts sleepers afterwards */
    while ((number = atomic_load(&open_job)) == 0 || number == seen) pthread_cond_wait(&wake_up, &sleep_lock);
    atomic_fetch_sub(&n_asleep, 1);
    pthread_mutex_unlock(&sleep_lock);
    return number;
}

static void *work(void *worker) {
    refgpt_default_float_state(); /* instead of the state inherited from the creating thread */
    for (uint64_t seen = 0;;) {
        seen = wait_for_job(seen);
        atomic_fetch_add(&n_inside, 1); /* from here the caller waits for us; so look again whether it still wants us */
        if (atomic_load(&open_job) == seen && (intptr_t)worker < job.n_threads) take_pieces((intptr_t)worker);
        atomic_fetch_sub(&n_inside, 1);
    }
    return NULL;
}

/* Only the forking thread exists in the child: it starts with an empty pool. */
static void forget_workers(void) {
    pthread_mutex_init(&caller_lock, NULL);
    pthread_mutex_init(&sleep_lock, NULL);
    pthread_cond_init(&wake_up, NULL);
    atomic_store(&open_job, 0);
    atomic_store(&n_inside, 0);
    atomic_store(&n_asleep, 0);
    n_workers = 0;
}

/* As many workers as wanted, or as the system grants. Signals are left to the threads that were there before. */
static void start_workers(int64_t n_wanted) {
    if (n_workers >= n_wanted) return;
    static int watching_forks = 0;
    if (!watching_forks) watching_forks = !pthread_atfork(NULL, NULL, forget_workers);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    while (n_workers < n_wanted) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, work, (void *)(intptr_t)(n_workers + 1))) break;
        pthread_detach(thread);
        n_workers++;
    }
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void run(refgpt_kernel kernel, const void *args, int64_t n_items, int64_t grain, int64_t n_threads) {
    const int64_t most_pieces = (n_items + grain - 1) / grain;
    if (n_threads > most_pieces) n_threads = most_pieces;
    if (n_threads > MOST_WORKERS + 1) n_threads = MOST_WORKERS + 1;
    if (n_threads <= 1 || pthread_mutex_trylock(&caller_lock)) { /* another thread's call has the workers */
        kernel(args, 0, n_items, 0);
        return;
    }
    start_workers(n_threads - 1);
    job.kernel = kernel, job.args = args, job.n_items = n_items, job.grain = grain, job.n_threads = n_threads;
    atomic_store(&job.next, 0);
    atomic_store(&open_job, ++n_jobs);
    if (atomic_load(&n_asleep)) {
        pthread_mutex_lock(&sleep_lock);
        pthread_cond_broadcast(&wake_up);
        pthread_mutex_unlock(&sleep_lock);
    }
    take_pieces(0);
    atomic_store(&open_job, 0);
    for (int i = 0; atomic_load(&n_inside); i++) { /* workers that still process a piece */
        if (i < 1000) relax();
        else sched_yield();
    }
    pthread_mutex_unlock(&caller_lock);
}

void refgpt_run(refgpt_kernel kernel, const void *args, int64_t n_items, int64_t grain, int64_t n_threads) {
    if (n_items <= 0) return;
    const uint64_t callers = refgpt_default_float_state();
    run(kernel, args, n_items, grain, n_threads);
    refgpt_set_float_state(callers);
}

void refgpt_run_steps(const refgpt_step *steps, int64_t n_steps, int64_t n_threads) {
    for (int64_t i = 0; i < n_steps; i++)
        refgpt_run(steps[i].kernel, steps[i].args, steps[i].n_items, steps[i].grain, n_threads);
}
