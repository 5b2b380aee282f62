/* macOS on Apple silicon. See os.h. Uses public interfaces only, none newer than macOS 12. */
#ifndef DLCC_OS_DARWIN_H
#define DLCC_OS_DARWIN_H

#include <sys/sysctl.h>
#include <time.h>

#define DLCC_LINE 128

/* The system's own wait on an address is public from macOS 14.4 on only. */
typedef struct dlcc_word {
  _Atomic uint32_t value;
  pthread_mutex_t lock;
  pthread_cond_t changed;
} dlcc_word;

static void dlcc_word_open(dlcc_word *word) {
  pthread_mutex_init(&word->lock, NULL);
  pthread_cond_init(&word->changed, NULL);
}

static void dlcc_word_close(dlcc_word *word) {
  pthread_cond_destroy(&word->changed);
  pthread_mutex_destroy(&word->lock);
}

static void dlcc_word_wait(dlcc_word *word, uint32_t value) {
  pthread_mutex_lock(&word->lock);
  if (atomic_load(&word->value) == value) pthread_cond_wait(&word->changed, &word->lock);
  pthread_mutex_unlock(&word->lock);
}

/* The value has changed before: who takes the lock from here on does not sleep, and who has taken
 * it before sleeps once this thread has it. */
static void dlcc_word_wake(dlcc_word *word, int threads) {
  pthread_mutex_lock(&word->lock);
  if (threads == 1)
    pthread_cond_signal(&word->changed);
  else
    pthread_cond_broadcast(&word->changed);
  pthread_mutex_unlock(&word->lock);
}

static void dlcc_huge_pages(void *memory, size_t bytes) { /* pages have one size */
  (void)memory, (void)bytes;
}

static uint64_t dlcc_now(void) { return clock_gettime_nsec_np(CLOCK_UPTIME_RAW); }

/* A number that the system tells by name; 0 where it knows none of that name. */
static int dlcc_system_number(const char *name) {
  int value = 0;
  size_t bytes = sizeof value;
  return sysctlbyname(name, &value, &bytes, NULL, 0) == 0 ? value : 0;
}

/* Performance cores: threads have equal parts of a layer, which an efficiency core would delay. */
static int dlcc_cpu_count(void) {
  const int fast = dlcc_system_number("hw.perflevel0.logicalcpu");
  const int all = fast > 0 ? fast : dlcc_system_number("hw.logicalcpu");
  return all > 0 ? all : 1;
}

#define DLCC_MOST_CPUS 1

static dlcc_status dlcc_cpus_choose(uint32_t workers, const int *cpus, int *chosen) {
  (void)workers, (void)cpus, (void)chosen;
  return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT),
                   "cannot pin threads: macOS does not let a program choose CPUs");
}

static void dlcc_thread_bind(pthread_t thread, int cpu) { (void)thread, (void)cpu; }

#endif
