/* Threads that run one function together and wait for each other inside it.
 *
 * A region is one call of work(context, thread) on every thread; thread 0 is the caller. Inside, pool_barrier makes all meet, and
 * pool_take hands out pieces: every thread has its own contiguous share of a round's pieces and helps others when it is done, so
 * that a thread that lost its core delays nobody. Rounds are counted by barriers.
 *
 * Who waits spins for SPIN_NS (by the clock: a PAUSE takes 40 to 140 cycles), then yields its core until YIELD_NS, then
 * sleeps. Where others want the cores too, spinning and yielding use up the time that the scheduler grants, and it is missing
 * when there is work: two threads on one core took 350 us per operation with 100 us of spinning before the first yield, and
 * 7 us with 5. A pool with more threads than it may use CPUs sleeps at once: whom it waits for needs its core. Two threads on
 * one core take 2.1 instead of 3.1 times as long as one for linears of 9 us, 1.08 times for those of 140 us.
 */
#ifndef OLLAMA_POOL_H
#define OLLAMA_POOL_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { SPIN_NS = 5000, YIELD_NS = 50000, MAX_THREADS = 1024 };

typedef void pool_work(void *context, int thread);

/* What is taken of a thread's share in even and odd rounds, each on its own cache line. */
struct share { _Alignas(64) atomic_long taken; };

struct worker;

struct pool {
    _Alignas(64) atomic_int region;     /* counts regions; workers wait for it to change */
    _Alignas(64) atomic_int sleepers;   /* threads that wait for any of these in the kernel */
    _Alignas(64) atomic_int arrived;    /* at the barrier */
    _Alignas(64) atomic_int round;      /* counts barriers */
    _Alignas(64) atomic_int running;    /* workers still in the region */
    int threads, stop;
    int crowded;                        /* more threads than CPUs */
    pool_work *work;
    void *context;
    struct share (*shares)[2];          /* [threads] */
    struct worker *workers;             /* [threads - 1] */
};

struct worker { struct pool *pool; pthread_t handle; int thread; };

static inline void pause_cpu(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#endif
}

static inline int64_t clock_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Wait until *value, one of the pool's counters, is no longer old. */
static inline void wait_for_change(struct pool *pool, atomic_int *value, int old)
{
    int64_t start = 0;
    for (int i = 1; !pool->crowded && atomic_load_explicit(value, memory_order_acquire) == old; i++) {
        pause_cpu();
        if (i % 16) continue;
        int64_t now = clock_ns();
        if (!start) start = now;
        if (now - start > YIELD_NS) break;
        if (now - start > SPIN_NS) sched_yield();
    }
    if (atomic_load_explicit(value, memory_order_acquire) != old) return;
    atomic_fetch_add(&pool->sleepers, 1);
    while (atomic_load(value) == old) syscall(SYS_futex, value, FUTEX_WAIT_PRIVATE, old, NULL, NULL, 0);
    atomic_fetch_sub(&pool->sleepers, 1);
}

/* After one of the counters has changed: wake who sleeps for it. */
static inline void wake(struct pool *pool, atomic_int *value)
{
    if (atomic_load(&pool->sleepers)) syscall(SYS_futex, value, FUTEX_WAKE_PRIVATE, MAX_THREADS, NULL, NULL, 0);
}

static inline void share_reset(struct pool *pool, int thread, int round)
{
    atomic_store_explicit(&pool->shares[thread][round & 1].taken, 0, memory_order_relaxed);
}

/* All threads meet. What was written before is seen after. */
static inline void pool_barrier(struct pool *pool, int thread)
{
    int round = atomic_load_explicit(&pool->round, memory_order_relaxed);
    share_reset(pool, thread, round + 1);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == pool->threads - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store(&pool->round, round + 1);
        wake(pool, &pool->round);
    } else {
        wait_for_change(pool, &pool->round, round);
    }
}

/* Take up to chunk of this round's pieces 0..count. Returns how many, from *first; 0 when none is left. */
static inline long pool_take(struct pool *pool, int thread, long count, long chunk, long *first)
{
    int n = pool->threads, parity = atomic_load_explicit(&pool->round, memory_order_relaxed) & 1;
    for (int i = 0, owner = thread; i < n; i++, owner = owner + 1 < n ? owner + 1 : 0) {
        atomic_long *taken = &pool->shares[owner][parity].taken;
        long begin = count * owner / n, size = count * (owner + 1) / n - begin;
        if (atomic_load_explicit(taken, memory_order_relaxed) >= size) continue;
        long from = atomic_fetch_add_explicit(taken, chunk, memory_order_relaxed);
        if (from >= size) continue;
        *first = begin + from;
        return size - from < chunk ? size - from : chunk;
    }
    return 0;
}

static void *worker_main(void *argument)
{
    struct worker *self = argument;
    struct pool *pool = self->pool;
    for (int seen = 0;;) {
        wait_for_change(pool, &pool->region, seen);
        seen = atomic_load(&pool->region);
        if (pool->stop) return NULL;
        pool->work(pool->context, self->thread);
        if (atomic_fetch_sub(&pool->running, 1) == 1) wake(pool, &pool->running);
    }
}

static void start_region(struct pool *pool)
{
    atomic_fetch_add(&pool->region, 1);
    wake(pool, &pool->region);
}

/* Run work on every thread and return when all are done. One caller at a time. */
static void pool_run(struct pool *pool, pool_work *work, void *context)
{
    int round = atomic_load_explicit(&pool->round, memory_order_relaxed);
    for (int i = 0; i < pool->threads; i++) share_reset(pool, i, round);
    pool->work = work;
    pool->context = context;
    atomic_store_explicit(&pool->running, pool->threads - 1, memory_order_relaxed);
    if (pool->threads > 1) start_region(pool);
    work(context, 0);
    for (int left; (left = atomic_load(&pool->running));) wait_for_change(pool, &pool->running, left);
}

static inline void pool_free(struct pool *pool)
{
    if (!pool) return;
    pool->stop = 1;
    start_region(pool);
    for (int i = 0; i < pool->threads - 1; i++) pthread_join(pool->workers[i].handle, NULL);
    free(pool->workers);
    free(pool->shares);
    free(pool);
}

static void pin_to(pthread_t thread, int cpu)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    pthread_setaffinity_np(thread, sizeof set, &set);
}

static int allowed_cpus(void)
{
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) ? MAX_THREADS : CPU_COUNT(&set);
}

/* A pool of `threads`, the caller's included, or NULL. cpus[i], if given, is where worker i (from 1) is pinned; the caller is not. */
static inline struct pool *pool_new(int threads, const int *cpus)
{
    struct pool *pool = aligned_alloc(64, sizeof *pool);
    if (!pool) return NULL;
    memset(pool, 0, sizeof *pool);
    pool->shares = aligned_alloc(64, threads * sizeof *pool->shares);
    pool->workers = calloc(threads, sizeof *pool->workers);
    pool->threads = 1;
    pool->crowded = threads > allowed_cpus();
    if (!pool->shares || !pool->workers) {
        pool_free(pool);
        return NULL;
    }
    for (int i = 1; i < threads; i++) {
        struct worker *worker = &pool->workers[i - 1];
        *worker = (struct worker){.pool = pool, .thread = i};
        if (pthread_create(&worker->handle, NULL, worker_main, worker)) {
            pool_free(pool);
            return NULL;
        }
        if (cpus) pin_to(worker->handle, cpus[i]);
        pool->threads = i + 1;
    }
    return pool;
}

#endif
