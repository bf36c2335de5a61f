/* What the processor's multipliers can do when nothing else is in their way: the ceiling of a prompt's arithmetic.
 *
 *     cc -O3 -march=native -pthread peak.c -o peak && ./peak THREADS
 *
 * prints float32 multiply-adds in 10^9 operations a second (one is two operations), then those of 8-bit integers where
 * the processor has dot products of four (AVX-512 VNNI), else 0. Twelve independent chains hide the latency. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#ifdef __AVX512VNNI__
#include <immintrin.h>
#endif

#ifdef __AVX512F__
enum { LANES = 16 };
#else
enum { LANES = 8 };
#endif
enum { CHAINS = 12, STEPS = 4 << 20 };
typedef float vector __attribute__((vector_size(4 * LANES)));

static volatile float sink; /* results must go somewhere, or the compiler drops the work */

static void *multiply_floats(void *unused) {
    vector sums[CHAINS] = {{0}}, x = {0}, y = {0};
    for (int i = 0; i < LANES; i++) x[i] = 1.0f + 1e-7f * i, y[i] = 1e-7f;
    for (int step = 0; step < STEPS; step++) {
        __asm__ volatile("" : "+x"(x));
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) sums[i] = sums[i] * x + y;
    }
    for (int i = 0; i < CHAINS; i++) sink = sums[i][0];
    return unused;
}

#ifdef __AVX512VNNI__
static void *multiply_bytes(void *unused) {
    __m512i sums[CHAINS], x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(-5);
    for (int i = 0; i < CHAINS; i++) sums[i] = _mm512_setzero_si512();
    for (int step = 0; step < STEPS; step++) {
        __asm__ volatile("" : "+v"(x));
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) sums[i] = _mm512_dpbusd_epi32(sums[i], x, y);
    }
    for (int i = 0; i < CHAINS; i++) sink = (float)_mm_cvtsi128_si32(_mm512_castsi512_si128(sums[i]));
    return unused;
}
#endif

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

/* 10^9 operations a second of all threads together. */
static double rate(void *(*work)(void *), int n_threads, int ops_per_chain_step) {
    pthread_t threads[256];
    double start = now();
    for (int i = 0; i < n_threads; i++)
        if (pthread_create(&threads[i], NULL, work, NULL)) exit(1);
    for (int i = 0; i < n_threads; i++) pthread_join(threads[i], NULL);
    return 1e-9 * n_threads * CHAINS * (double)STEPS * ops_per_chain_step / (now() - start);
}

int main(int argc, char **argv) {
    int n_threads = argc > 1 ? atoi(argv[1]) : 1;
    if (n_threads < 1 || n_threads > 256) return 2;
    printf("%.1f\n", rate(multiply_floats, n_threads, 2 * LANES));
#ifdef __AVX512VNNI__
    printf("%.1f\n", rate(multiply_bytes, n_threads, 2 * 64));
#else
    printf("0\n");
#endif
    return 0;
}
