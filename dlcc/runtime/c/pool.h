/* Fork and join over the threads of one instance.
 *
 * A step is cut into one contiguous part per thread. Every thread computes its own part, which keeps
 * a layer's weights in that core's cache from run to run; the caller's is never another's. Who has
 * waited in vain for a microsecond or so then takes parts that nobody has begun: a worker that the
 * system wakes late delays nobody. Not sooner, because looking at another thread's claim takes its
 * cache line away. Workers spin for some tens of microseconds between steps, then sleep.
 *
 * A fork writes one cache line that the workers poll, a join reads one that they write. */
#ifndef DLCC_POOL_H
#define DLCC_POOL_H

/* Looks at a word before its thread sleeps on it: the first ones follow each other closely, because
 * most waits are short; the others are some 40 ns apart and leave the core to its other thread. */
#define DLCC_EAGER 256
#define DLCC_SPINS (DLCC_EAGER + 1000)
#define DLCC_PATIENCE (DLCC_EAGER + 15) /* looks before taking over parts of others */

struct dlcc_pool;

typedef struct dlcc_worker {
  _Alignas(DLCC_LINE) _Atomic uint64_t claimed; /* generation of the last claim of this part */
  uint32_t index;
  pthread_t thread;
  struct dlcc_pool *pool;
} dlcc_worker;

typedef struct dlcc_pool {
  _Alignas(DLCC_LINE) _Atomic uint64_t job; /* generation << 16 | number of parts */
  const dlcc_step *step; /* of the job; stable while a part is unfinished */
  const dlcc_frame *frame;
  _Alignas(DLCC_LINE) dlcc_word pending; /* unfinished parts but the caller's own */
  _Atomic uint32_t waiting;              /* 1: the caller sleeps on pending */
  _Atomic int32_t failure;
  _Alignas(DLCC_LINE) _Atomic uint32_t sleepers;
  dlcc_word bell; /* sleepers wait for it to change */
  _Atomic uint32_t stop;
  uint32_t threads; /* the caller's included */
  uint32_t started; /* worker threads to join */
  uint32_t spins;
  pid_t process; /* that started them */
  dlcc_worker *workers; /* [threads]; [0], the caller's, is not used */
} dlcc_pool;

static int32_t dlcc_part(const dlcc_step *step, const dlcc_frame *frame, uint32_t part,
                         uint32_t parts) {
  const int64_t items = step->work_items;
  return step->call(frame, part, (int32_t)(items * part / parts),
                    (int32_t)(items * (part + 1) / parts));
}

/* A late thread that still holds a finished generation finds every part claimed by that generation
 * or a later one, so it can never run a part of a job it has not read. */
static int dlcc_claim(dlcc_worker *slot, uint64_t generation) {
  uint64_t last = atomic_load_explicit(&slot->claimed, memory_order_relaxed);
  while (last < generation) {
    if (atomic_compare_exchange_weak(&slot->claimed, &last, generation)) return 1;
  }
  return 0;
}

static inline void dlcc_pool_pause(uint32_t looks) {
  if (looks >= DLCC_EAGER) dlcc_cpu_relax();
}

static void dlcc_try(dlcc_pool *pool, uint64_t job, uint32_t part) {
  if (!dlcc_claim(&pool->workers[part], job >> 16)) return;
  const int32_t result = dlcc_part(pool->step, pool->frame, part, job & 0xffff);
  if (result != 0) atomic_store(&pool->failure, result);
  if (atomic_fetch_sub(&pool->pending.value, 1) == 1 && atomic_load(&pool->waiting))
    dlcc_word_wake(&pool->pending, 1);
}

/* Takes every part of the job that nobody has begun, the ones after `index` first. */
static void dlcc_help(dlcc_pool *pool, uint64_t job, uint32_t index) {
  const uint32_t parts = job & 0xffff;
  for (uint32_t i = 1; i < parts; i++) {
    const uint32_t part = (index + i) % parts;
    if (part != 0) dlcc_try(pool, job, part);
  }
}

/* Between the look at `job` and the wait the caller may publish another: it then sees the sleeper
 * and changes the bell, and the wait returns at once. */
static void dlcc_sleep(dlcc_pool *pool, uint64_t seen) {
  const uint32_t bell = atomic_load(&pool->bell.value);
  atomic_fetch_add(&pool->sleepers, 1);
  if (atomic_load(&pool->job) == seen) dlcc_word_wait(&pool->bell, bell);
  atomic_fetch_sub(&pool->sleepers, 1);
}

/* Waits for another job than `seen`, and helps that one if it lasts. */
static uint64_t dlcc_next_job(dlcc_pool *pool, uint64_t seen, uint32_t index) {
  uint64_t job;
  uint32_t looks = 0;
  while ((job = atomic_load_explicit(&pool->job, memory_order_acquire)) == seen) {
    if (looks == DLCC_PATIENCE) dlcc_help(pool, seen, index);
    if (looks < pool->spins)
      dlcc_pool_pause(looks++);
    else
      dlcc_sleep(pool, seen);
  }
  return job;
}

static void *dlcc_worker_main(void *argument) {
  const dlcc_worker *self = argument;
  dlcc_pool *pool = self->pool;
  uint64_t job = 0;
  dlcc_cpu_float_enter(); /* a thread inherits its creator's environment */
  for (;;) {
    job = dlcc_next_job(pool, job, self->index);
    if (atomic_load_explicit(&pool->stop, memory_order_relaxed)) return NULL;
    if (self->index < (job & 0xffff)) dlcc_try(pool, job, self->index);
  }
}

/* Publishes a job; returns how many workers slept. */
static uint32_t dlcc_pool_publish(dlcc_pool *pool, uint64_t job) {
  atomic_store(&pool->job, job);
  const uint32_t sleepers = atomic_load(&pool->sleepers);
  if (sleepers > 0) {
    atomic_fetch_add(&pool->bell.value, 1);
    dlcc_word_wake(&pool->bell, INT_MAX);
  }
  return sleepers;
}

/* Whether all parts are done after some of the looks from number `from` to `to`. */
static int dlcc_pool_spin(dlcc_pool *pool, uint32_t from, uint32_t to) {
  for (uint32_t looks = from;; looks++) {
    if (atomic_load_explicit(&pool->pending.value, memory_order_acquire) == 0) return 1;
    if (looks >= to) return 0;
    dlcc_pool_pause(looks);
  }
}

static void dlcc_pool_join(dlcc_pool *pool, uint64_t job, uint32_t patience) {
  if (dlcc_pool_spin(pool, 0, patience)) return;
  dlcc_help(pool, job, 0);
  if (dlcc_pool_spin(pool, patience, pool->spins)) return;
  atomic_store(&pool->waiting, 1);
  uint32_t left;
  while ((left = atomic_load(&pool->pending.value)) != 0) dlcc_word_wait(&pool->pending, left);
  atomic_store(&pool->waiting, 0);
}

static __attribute__((noinline)) int32_t dlcc_pool_fork(dlcc_pool *pool, const dlcc_step *step,
                                                        const dlcc_frame *frame, uint32_t parts) {
  const uint64_t generation = (atomic_load_explicit(&pool->job, memory_order_relaxed) >> 16) + 1;
  const uint64_t job = generation << 16 | parts;
  pool->step = step;
  pool->frame = frame;
  atomic_store_explicit(&pool->failure, 0, memory_order_relaxed);
  atomic_store_explicit(&pool->pending.value, parts - 1, memory_order_relaxed);
  const uint32_t sleepers = dlcc_pool_publish(pool, job);
  const int32_t result = dlcc_part(step, frame, 0, parts);
  dlcc_pool_join(pool, job, sleepers > 0 ? 0 : DLCC_PATIENCE);
  const int32_t failure = atomic_load_explicit(&pool->failure, memory_order_relaxed);
  return failure != 0 ? failure : result;
}

/* Runs one step on as many threads as it pays for. Returns 0 or what a kernel returned. */
static inline int32_t dlcc_pool_run(dlcc_pool *pool, const dlcc_step *step,
                                    const dlcc_frame *frame) {
  uint32_t parts = pool->threads;
  if (step->max_threads > 0 && parts > step->max_threads) parts = step->max_threads;
  if (parts > (uint32_t)step->work_items) parts = (uint32_t)step->work_items;
  if (parts <= 1) return step->call(frame, 0, 0, step->work_items);
  return dlcc_pool_fork(pool, step, frame, parts);
}

/* A forked child has no workers to join; its runs do every part on the calling thread. */
static void dlcc_pool_stop(dlcc_pool *pool) {
  if (pool->workers == NULL) return;
  if (pool->process != getpid()) pool->started = 0;
  atomic_store(&pool->stop, 1);
  dlcc_pool_publish(pool, ((atomic_load(&pool->job) >> 16) + 1) << 16);
  for (uint32_t i = 1; i <= pool->started; i++) pthread_join(pool->workers[i].thread, NULL);
  dlcc_word_close(&pool->pending);
  dlcc_word_close(&pool->bell);
  free(pool->workers);
}

/* Pins worker i to cpus[i - 1]; NULL: to CPUs of its choice. */
static dlcc_status dlcc_pool_pin(dlcc_pool *pool, const int *cpus) {
  const uint32_t workers = pool->threads - 1;
  int chosen[DLCC_MOST_CPUS];
  if (workers == 0) return DLCC_CODE(OK);
  const dlcc_status status = dlcc_cpus_choose(workers, cpus, chosen);
  if (status != DLCC_CODE(OK)) return status;
  for (uint32_t i = 0; i < workers; i++) dlcc_thread_bind(pool->workers[i + 1].thread, chosen[i]);
  return DLCC_CODE(OK);
}

static dlcc_status dlcc_pool_start(dlcc_pool *pool, int threads) {
  pool->threads = (uint32_t)threads;
  pool->process = getpid();
  if (threads == 1) return DLCC_CODE(OK);
  /* Spinning helps only while every thread has a CPU of its own. */
  pool->spins = threads <= dlcc_cpu_count() ? DLCC_SPINS : 0;
  void *workers;
  if (posix_memalign(&workers, _Alignof(dlcc_worker), (size_t)threads * sizeof(dlcc_worker)) != 0)
    return dlcc_fail(DLCC_CODE(OUT_OF_MEMORY), "no memory for %d threads", threads);
  memset(workers, 0, (size_t)threads * sizeof(dlcc_worker));
  pool->workers = workers;
  dlcc_word_open(&pool->pending);
  dlcc_word_open(&pool->bell);
  sigset_t all, before; /* the program's signal handlers run on the program's own threads */
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int reason = 0;
  for (int i = 0; i < threads; i++) {
    pool->workers[i].index = (uint32_t)i;
    pool->workers[i].pool = pool;
    if (i == 0) continue;
    reason = pthread_create(&pool->workers[i].thread, NULL, dlcc_worker_main, &pool->workers[i]);
    if (reason != 0) break;
    pool->started = (uint32_t)i;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (reason == 0) return DLCC_CODE(OK);
  return dlcc_fail(DLCC_CODE(NO_THREADS), "cannot start thread %u of %d: %s", pool->started + 2,
                   threads, dlcc_system_reason(reason));
}

#endif
