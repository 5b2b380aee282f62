/* Linux. See os.h. */
#ifndef DLCC_OS_LINUX_H
#define DLCC_OS_LINUX_H

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>

#define DLCC_LINE 64

typedef struct dlcc_word {
  _Atomic uint32_t value;
} dlcc_word;

static inline void dlcc_word_open(dlcc_word *word) { (void)word; }

static inline void dlcc_word_close(dlcc_word *word) { (void)word; }

static void dlcc_word_wait(dlcc_word *word, uint32_t value) {
  syscall(SYS_futex, &word->value, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void dlcc_word_wake(dlcc_word *word, int threads) {
  syscall(SYS_futex, &word->value, FUTEX_WAKE_PRIVATE, threads, NULL, NULL, 0);
}

static void dlcc_huge_pages(void *memory, size_t bytes) { madvise(memory, bytes, MADV_HUGEPAGE); }

static uint64_t dlcc_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int dlcc_cpu_count(void) {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return CPU_COUNT(&set);
  const long online = sysconf(_SC_NPROCESSORS_ONLN); /* more CPUs than cpu_set_t holds */
  return online > 0 && online < INT_MAX ? (int)online : 1;
}

#define DLCC_MOST_CPUS CPU_SETSIZE

/* The CPU for each worker, the caller's left out of `allowed`, in ascending order. */
static dlcc_status dlcc_cpus_others(uint32_t workers, cpu_set_t allowed, int *chosen) {
  const int here = sched_getcpu(), most = CPU_COUNT(&allowed);
  if (here >= 0 && here < CPU_SETSIZE) CPU_CLR(here, &allowed);
  uint32_t found = 0;
  for (int cpu = 0; cpu < CPU_SETSIZE && found < workers; cpu++) {
    if (CPU_ISSET(cpu, &allowed)) chosen[found++] = cpu;
  }
  if (found == workers) return DLCC_CODE(OK);
  return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT),
                   "cannot pin %u threads: this thread may run on %d CPUs only", workers + 1, most);
}

static dlcc_status dlcc_cpus_choose(uint32_t workers, const int *cpus, int *chosen) {
  cpu_set_t allowed;
  if (workers > CPU_SETSIZE || sched_getaffinity(0, sizeof allowed, &allowed) != 0)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "cannot pin threads: more than %d CPUs",
                     CPU_SETSIZE);
  if (cpus == NULL) return dlcc_cpus_others(workers, allowed, chosen);
  for (uint32_t i = 0; i < workers; i++) {
    if (cpus[i] < 0 || cpus[i] >= CPU_SETSIZE || !CPU_ISSET(cpus[i], &allowed))
      return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT),
                       "cannot pin a thread to CPU %d: this thread may not run there", cpus[i]);
    chosen[i] = cpus[i];
  }
  return DLCC_CODE(OK);
}

static void dlcc_thread_bind(pthread_t thread, int cpu) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  pthread_setaffinity_np(thread, sizeof one, &one);
}

#endif
