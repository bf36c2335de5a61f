/* The pool of threads under load: several callers at once, calls of every size, workers asleep and awake, forked
 * children. Every item must be worked on exactly once a call, and rounded to nearest although all callers round upward.
 * Meant to be built with the thread sanitizer, which knows no threads after a fork: `pool_driver fork` adds that
 * part. */
#include "../refgpt_kernels.h"
#include <fenv.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { N_ITEMS = 1000, N_CALLS = 3000, N_CALLERS = 3, N_CHILDREN = 5 };

static int rounds_upward(void) {
    const volatile float one = 1.0f, little = 0x1p-30f;
    return one + little > 1.0f;
}

static void count(const void *args, int64_t begin, int64_t end, int64_t worker) {
    if (rounds_upward()) {
        printf("worker %lld rounds as its maker did\n", (long long)worker);
        exit(1);
    }
    int64_t *counts = *(int64_t *const *)args;
    for (int64_t i = begin; i < end; i++) counts[i]++;
}

static void *call_often(void *unused) {
    int64_t counts[N_ITEMS] = {0}, *args = counts;
    fesetround(FE_UPWARD); /* as another library may have left it, before the first worker is started */
    for (int i = 0; i < N_CALLS; i++) {
        refgpt_run(count, &args, N_ITEMS, 1 + i % 7, 1 + i % 5);
        if (i % 500 == 0) usleep(300); /* long enough for workers to fall asleep */
    }
    for (int i = 0; i < N_ITEMS; i++)
        if (counts[i] != N_CALLS) {
            printf("item %d was worked on %lld times in %d calls\n", i, (long long)counts[i], N_CALLS);
            exit(1);
        }
    if (!rounds_upward()) {
        puts("a call changed how its caller rounds");
        exit(1);
    }
    return unused;
}

int main(int argc, char **argv) {
    pthread_t callers[N_CALLERS];
    for (int i = 0; i < N_CALLERS; i++) pthread_create(&callers[i], NULL, call_often, NULL);
    for (int i = 0; i < N_CALLERS; i++) pthread_join(callers[i], NULL);
    for (int i = 0; argc > 1 && !strcmp(argv[1], "fork") && i < N_CHILDREN; i++) {
        const pid_t child = fork();
        if (child == 0) {
            call_often(NULL);
            _exit(0);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status) return 1;
        call_often(NULL);
    }
    puts("pool: every item once a call");
    return 0;
}
