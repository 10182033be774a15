/* What this machine can do at best, measured: the read bandwidth and the arithmetic of all threads together. Every
 * benchmark of the cpu backend prints its figures beside these, taken in the same run. */
#ifndef TANDEM_BENCHMARKS_CEILINGS_H
#define TANDEM_BENCHMARKS_CEILINGS_H

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/cpu/cpu_device.h"
#include "runtime/base/alloc.h"
#include "runtime/base/check.h"
#include "runtime/base/clock.h"

#define CEILING_MAX_THREADS 64
#define CEILING_FMA_ROUNDS 2000000u

struct ceiling_run {
    pthread_barrier_t barrier;
    uint32_t threads;
    const char *data; /* read by all threads, each its own part; NULL for arithmetic */
    size_t bytes;
    size_t ahead; /* prefetch distance; 0 leaves it to the processor */
    enum cpu_isa isa;
    uint64_t flops; /* of one thread; out */
    uint64_t ns;    /* from the common start to the last thread's end; out */
};

struct ceiling_thread {
    struct ceiling_run *run;
    uint32_t thread;
    volatile float sink; /* keeps the work from being left out */
};

static void ceiling_read_c(const char *data, size_t bytes, struct ceiling_thread *thread) {
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes; i += sizeof sum) {
        uint64_t word;
        memcpy(&word, data + i, sizeof word);
        sum += word;
    }
    thread->sink = (float)sum;
}

static uint64_t ceiling_fma_c(struct ceiling_thread *thread) {
    float sums[8] = {0};
    for (uint32_t round = 0; round < CEILING_FMA_ROUNDS; round++) {
        for (int i = 0; i < 8; i++) {
            sums[i] = sums[i] * 0.5f + 1.0f;
        }
    }
    for (int i = 0; i < 8; i++) {
        thread->sink = thread->sink + sums[i];
    }
    return (uint64_t)CEILING_FMA_ROUNDS * 8 * 2;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void ceiling_read_avx2(const char *data, size_t bytes, size_t ahead,
                                                              struct ceiling_thread *thread) {
    __m256i sums[4] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (size_t i = 0; i < bytes; i += 256) {
        for (size_t line = 0; line < 4; line++) {
            const char *at = data + i + line * 64;
            if (ahead > 0) {
                __builtin_prefetch(at + ahead, 0, 3);
            }
            sums[line] = _mm256_xor_si256(sums[line], _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)at),
                                                                       _mm256_loadu_si256((const __m256i *)at + 1)));
        }
    }
    __m256i all = _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
    thread->sink = (float)_mm256_extract_epi32(all, 0);
}

__attribute__((target("avx2,fma"))) static uint64_t ceiling_fma_avx2(struct ceiling_thread *thread) {
    enum { SUMS = 12 };
    __m256 half = _mm256_set1_ps(0.5f);
    __m256 one = _mm256_set1_ps(1.0f);
    __m256 sums[SUMS];
    for (int i = 0; i < SUMS; i++) {
        sums[i] = one;
    }
    for (uint32_t round = 0; round < CEILING_FMA_ROUNDS; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++) {
            sums[i] = _mm256_fmadd_ps(sums[i], half, one);
        }
    }
    for (int i = 0; i < SUMS; i++) {
        thread->sink = thread->sink + _mm256_cvtss_f32(sums[i]);
    }
    return (uint64_t)CEILING_FMA_ROUNDS * SUMS * 8 * 2;
}

__attribute__((target("avx512f"))) static uint64_t ceiling_fma_avx512(struct ceiling_thread *thread) {
    enum { SUMS = 12 };
    __m512 half = _mm512_set1_ps(0.5f);
    __m512 one = _mm512_set1_ps(1.0f);
    __m512 sums[SUMS];
    for (int i = 0; i < SUMS; i++) {
        sums[i] = one;
    }
    for (uint32_t round = 0; round < CEILING_FMA_ROUNDS; round++) {
#pragma GCC unroll 12
        for (int i = 0; i < SUMS; i++) {
            sums[i] = _mm512_fmadd_ps(sums[i], half, one);
        }
    }
    for (int i = 0; i < SUMS; i++) {
        thread->sink = thread->sink + _mm512_cvtss_f32(sums[i]);
    }
    return (uint64_t)CEILING_FMA_ROUNDS * SUMS * 16 * 2;
}
#endif

static uint64_t ceiling_fma(enum cpu_isa isa, struct ceiling_thread *thread) {
#if defined(__x86_64__)
    if (isa != CPU_ISA_C) {
        return isa == CPU_ISA_AVX512 ? ceiling_fma_avx512(thread) : ceiling_fma_avx2(thread);
    }
#endif
    (void)isa;
    return ceiling_fma_c(thread);
}

/* Wider loads than those of AVX2 read no faster. */
static void ceiling_read(enum cpu_isa isa, const char *data, size_t bytes, size_t ahead,
                         struct ceiling_thread *thread) {
#if defined(__x86_64__)
    if (isa != CPU_ISA_C) {
        ceiling_read_avx2(data, bytes, ahead, thread);
        return;
    }
#endif
    (void)isa;
    (void)ahead;
    ceiling_read_c(data, bytes, thread);
}

static void *ceiling_main(void *argument) {
    struct ceiling_thread *thread = argument;
    struct ceiling_run *run = thread->run;
    size_t part = run->bytes / run->threads / 4096 * 4096;
    const char *data = run->data == NULL ? NULL : run->data + part * thread->thread;
    pthread_barrier_wait(&run->barrier);
    uint64_t start_ns = clock_now_ns();
    uint64_t flops = data != NULL ? 0 : ceiling_fma(run->isa, thread);
    if (data != NULL) {
        ceiling_read(run->isa, data, part, run->ahead, thread);
    }
    pthread_barrier_wait(&run->barrier);
    if (thread->thread == 0) {
        run->flops = flops;
        run->ns = clock_now_ns() - start_ns;
    }
    return NULL;
}

static void ceiling_run_threads(struct ceiling_run *run) {
    struct ceiling_thread threads[CEILING_MAX_THREADS] = {0};
    pthread_t handles[CEILING_MAX_THREADS];
    CHECK(run->threads <= CEILING_MAX_THREADS, "more than %d threads", CEILING_MAX_THREADS);
    CHECK(pthread_barrier_init(&run->barrier, NULL, run->threads) == 0, "no barrier");
    for (uint32_t i = 0; i < run->threads; i++) {
        threads[i] = (struct ceiling_thread){.run = run, .thread = i};
        CHECK(pthread_create(&handles[i], NULL, ceiling_main, &threads[i]) == 0, "no thread");
    }
    for (uint32_t i = 0; i < run->threads; i++) {
        pthread_join(handles[i], NULL);
    }
    pthread_barrier_destroy(&run->barrier);
}

/* Bytes a second that `threads` threads read from `data` (much larger than the caches, all pages present) together:
 * the best of several rounds and prefetch distances. */
static inline double ceiling_read_bandwidth(uint32_t threads, const void *data, size_t bytes) {
    static const size_t distances[] = {0, 1024, 2048, 4096, 8192};
    double best = 0;
    for (size_t i = 0; i < 3 * sizeof distances / sizeof *distances; i++) {
        struct ceiling_run run = {.threads = threads, .data = data, .bytes = bytes, .isa = cpu_isa()};
        run.ahead = distances[i % (sizeof distances / sizeof *distances)];
        ceiling_run_threads(&run);
        double rate = (double)bytes * 1e9 / (double)run.ns;
        best = rate > best ? rate : best;
    }
    return best;
}

/* Floating-point operations a second of `threads` threads with the instruction set in use; a fused multiply-add is
 * two. */
static inline double ceiling_arithmetic(uint32_t threads) {
    double best = 0;
    for (int i = 0; i < 5; i++) {
        struct ceiling_run run = {.threads = threads, .isa = cpu_isa()};
        ceiling_run_threads(&run);
        double rate = (double)run.flops * threads * 1e9 / (double)run.ns;
        best = rate > best ? rate : best;
    }
    return best;
}

#endif
