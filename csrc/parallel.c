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

/* The job that may be entered, 0 if none: its number and, in the lowest bits, how many threads it wants. Workers read
 * both at once, so that a job wakes and waits for only those that it wants. */
static _Atomic uint64_t open_job;
enum { THREADS_BITS = 11 }; /* for 1 .. MOST_WORKERS + 1 */
static _Atomic int n_inside;
/* One job at a time. It also guards n_workers and n_jobs. */
static pthread_mutex_t caller_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t sleep_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake_up[MOST_WORKERS + 1]; /* of each worker; initialised before it is created */
static _Atomic int asleep[MOST_WORKERS + 1];
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

static int64_t threads_of(uint64_t opened) { return (int64_t)(opened & ((1 << THREADS_BITS) - 1)); }

/* Until a job opens that this worker has not seen, and that wants it: first spinning, then asleep. */
static uint64_t wait_for_job(int64_t worker, uint64_t seen) {
    const int64_t deadline = nanoseconds() + SPIN_NANOSECONDS;
    uint64_t opened;
    do {
        for (int i = 0; i < 64; i++) {
            opened = atomic_load(&open_job);
            if (opened != seen && worker < threads_of(opened)) return opened;
            relax();
        }
    } while (nanoseconds() < deadline);
    pthread_mutex_lock(&sleep_lock);
    atomic_store(&asleep[worker], 1); /* before the last look: see wake_workers */
    while ((opened = atomic_load(&open_job)) == seen || worker >= threads_of(opened))
        pthread_cond_wait(&wake_up[worker], &sleep_lock);
    atomic_store(&asleep[worker], 0);
    pthread_mutex_unlock(&sleep_lock);
    return opened;
}

/* Wakes the sleepers among the workers that the open job wants. None is missed: a worker first says that it sleeps and
 * then looks for a job; the caller first opens the job and then looks for sleepers. Threads agree on one order of these
 * four operations (they are sequentially consistent), and whichever look is last in it finds what the other thread has
 * written. No signal is lost either: a worker holds the lock from saying that it sleeps until it waits, so one that was
 * found asleep waits once the lock has been free, and one that takes the lock after that sees the job. */
static void wake_workers(int64_t n_threads) {
    int64_t worker = 1;
    while (worker < n_threads && !atomic_load(&asleep[worker])) worker++;
    if (worker == n_threads) return;
    pthread_mutex_lock(&sleep_lock);
    pthread_mutex_unlock(&sleep_lock); /* before the signals: whoever wakes needs the lock at once */
    for (; worker < n_threads; worker++)
        if (atomic_load(&asleep[worker])) pthread_cond_signal(&wake_up[worker]);
}

static void *work(void *worker) {
    refgpt_default_float_state(); /* instead of the state inherited from the creating thread */
    for (uint64_t seen = 0;;) {
        seen = wait_for_job((intptr_t)worker, seen);
        atomic_fetch_add(&n_inside, 1); /* from here the caller waits for us; so look again whether it still wants us */
        if (atomic_load(&open_job) == seen) take_pieces((intptr_t)worker);
        atomic_fetch_sub(&n_inside, 1);
    }
    return NULL;
}

/* Only the forking thread exists in the child: it starts with an empty pool. */
static void forget_workers(void) {
    pthread_mutex_init(&caller_lock, NULL);
    pthread_mutex_init(&sleep_lock, NULL);
    atomic_store(&open_job, 0);
    atomic_store(&n_inside, 0);
    for (; n_workers > 0; n_workers--) atomic_store(&asleep[n_workers], 0);
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
        const int64_t worker = n_workers + 1;
        pthread_t thread;
        pthread_cond_init(&wake_up[worker], NULL); /* in a forked child, too, which has the parent's */
        if (pthread_create(&thread, &attributes, work, (void *)(intptr_t)worker)) break;
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
    atomic_store(&open_job, ++n_jobs << THREADS_BITS | (uint64_t)n_threads);
    wake_workers(n_threads);
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
