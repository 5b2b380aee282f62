/* What this machine can do at most: multiply-accumulates and bytes read per second.
 *
 *   limits CPUS SECONDS TASK...      CPUS: one for each thread, joined by commas
 *
 * A TASK is the name of an arithmetic loop below, or of a reading one with the bytes that all threads
 * read together: fp32.avx2, read256:1048576. Prints a line TASK RATE for each: the best of WINDOWS
 * windows of SECONDS, summed over the threads.
 * The caller asks only for loops that the CPU has the instructions of.
 */
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 256, WINDOWS = 12, XTILEDATA = 18, REQUEST_PERMISSION = 0x1023 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Independent accumulators hide the latency of the instruction; the empty assembly statement keeps
 * each in a register and every instruction in the loop. */
#define EACH12(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)
#define EACH24(X) EACH12(X) X(12) X(13) X(14) X(15) X(16) X(17) X(18) X(19) X(20) X(21) X(22) X(23)
#define KEEP(i) __asm__ volatile("" : "+v"(c##i));
#define KEEP_XMM(i) __asm__ volatile("" : "+x"(c##i));

/* NAME(n) runs n rounds of COUNT instructions on accumulators of TYPE; returns MACs. */
#define LOOP(NAME, FEATURES, TYPE, ZERO, A, B, STEP, EACH, COUNT, MACS, HOLD)        \
  __attribute__((target(FEATURES), noinline)) static double NAME(long n) {           \
    TYPE a = A, b = B;                                                               \
    __asm__ volatile("" : "+x"(a), "+x"(b));                                         \
    EACH(ZERO)                                                                       \
    for (long k = 0; k < n; k++) { EACH(STEP) EACH(HOLD) }                           \
    return (double)n * (COUNT) * (MACS);                                             \
  }
#define ZERO_PS128(i) __m128 c##i = _mm_setzero_ps();
#define ZERO_PS256(i) __m256 c##i = _mm256_setzero_ps();
#define ZERO_PS512(i) __m512 c##i = _mm512_setzero_ps();
#define ZERO_SI128(i) __m128i c##i = _mm_setzero_si128();
#define ZERO_SI256(i) __m256i c##i = _mm256_setzero_si256();
#define ZERO_SI512(i) __m512i c##i = _mm512_setzero_si512();

#define MULADD128(i) c##i = _mm_add_ps(c##i, _mm_mul_ps(a, b));
LOOP(fp32_sse4, "sse4.1", __m128, ZERO_PS128, _mm_set1_ps(1.5f), _mm_set1_ps(1e-9f),
     MULADD128, EACH12, 12, 4, KEEP_XMM)
#define FMA256(i) c##i = _mm256_fmadd_ps(a, b, c##i);
LOOP(fp32_avx2, "avx2,fma", __m256, ZERO_PS256, _mm256_set1_ps(1.5f), _mm256_set1_ps(1e-9f),
     FMA256, EACH12, 12, 8, KEEP_XMM)
#define FMA512(i) c##i = _mm512_fmadd_ps(a, b, c##i);
LOOP(fp32_avx512, "avx512f", __m512, ZERO_PS512, _mm512_set1_ps(1.5f), _mm512_set1_ps(1e-9f),
     FMA512, EACH24, 24, 16, KEEP)

#define MADD128(i) c##i = _mm_add_epi32(c##i, _mm_madd_epi16(a, b));
LOOP(int8_sse4, "sse4.1", __m128i, ZERO_SI128, _mm_set1_epi16(3), _mm_set1_epi16(1),
     MADD128, EACH12, 12, 8, KEEP_XMM)
#define MADD256(i) c##i = _mm256_add_epi32(c##i, _mm256_madd_epi16(a, b));
LOOP(int8_avx2, "avx2", __m256i, ZERO_SI256, _mm256_set1_epi16(3), _mm256_set1_epi16(1),
     MADD256, EACH12, 12, 16, KEEP_XMM)
#define DOT256(i) c##i = _mm256_dpbusd_avx_epi32(c##i, a, b);
LOOP(int8_avxvnni, "avx2,avxvnni", __m256i, ZERO_SI256, _mm256_set1_epi8(3), _mm256_set1_epi8(1),
     DOT256, EACH12, 12, 32, KEEP_XMM)
#define MADD512(i) c##i = _mm512_add_epi32(c##i, _mm512_madd_epi16(a, b));
LOOP(int8_avx512, "avx512f,avx512bw", __m512i, ZERO_SI512,
     _mm512_set1_epi16(3), _mm512_set1_epi16(1), MADD512, EACH24, 24, 32, KEEP)
#define DOT512(i) c##i = _mm512_dpbusd_epi32(c##i, a, b);
LOOP(int8_avx512vnni, "avx512f,avx512vnni", __m512i, ZERO_SI512,
     _mm512_set1_epi8(3), _mm512_set1_epi8(1), DOT512, EACH24, 24, 64, KEEP)
#define BF512(i) c##i = _mm512_dpbf16_ps(c##i, (__m512bh)a, (__m512bh)b);
LOOP(bf16_avx512, "avx512f,avx512bw,avx512bf16", __m512i, ZERO_PS512,
     _mm512_set1_epi16(0x3f80), _mm512_set1_epi16(0x3f80), BF512, EACH24, 24, 32, KEEP)

/* Four tiles of sums, two of each operand: what a 32x32 block of a matrix product uses. */
struct tiles {
  uint8_t palette, start, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};

__attribute__((target("amx-tile"))) static void open_tiles(void) {
  struct tiles c;
  memset(&c, 0, sizeof c);
  c.palette = 1;
  for (int i = 0; i < 8; i++) c.bytes[i] = 64, c.rows[i] = 16;
  static const uint8_t zeros[1024] __attribute__((aligned(64)));
  _tile_loadconfig(&c);
  _tile_zero(0), _tile_zero(1), _tile_zero(2), _tile_zero(3);
  _tile_loadd(4, zeros, 64), _tile_loadd(5, zeros, 64);
  _tile_loadd(6, zeros, 64), _tile_loadd(7, zeros, 64);
}

__attribute__((target("amx-tile,amx-int8"))) static double int8_amx(long n) {
  open_tiles();
  for (long k = 0; k < n; k++) {
    _tile_dpbusd(0, 4, 6), _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6), _tile_dpbusd(3, 5, 7);
  }
  _tile_release();
  return (double)n * 4 * 16 * 16 * 64;
}

__attribute__((target("amx-tile,amx-bf16"))) static double bf16_amx(long n) {
  open_tiles();
  for (long k = 0; k < n; k++) {
    _tile_dpbf16ps(0, 4, 6), _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6), _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return (double)n * 4 * 16 * 16 * 32;
}

/* Reading. Bytes read at each loop's width, four streams of accumulators. */
struct buffer {
  const uint8_t *start;
  size_t bytes;
};
static __thread struct buffer own;

#define READ(NAME, FEATURES, TYPE, WIDTH, LOAD, XOR, HOLD)                             \
  __attribute__((target(FEATURES), noinline)) static double NAME(long n) {             \
    TYPE c0 = {0}, c1 = {0}, c2 = {0}, c3 = {0};                                       \
    for (long k = 0; k < n; k++) {                                                     \
      for (size_t i = 0; i < own.bytes; i += 4 * (WIDTH)) {                            \
        const uint8_t *p = own.start + i;                                              \
        c0 = XOR(c0, LOAD((const void *)p));                                           \
        c1 = XOR(c1, LOAD((const void *)(p + (WIDTH))));                               \
        c2 = XOR(c2, LOAD((const void *)(p + 2 * (WIDTH))));                           \
        c3 = XOR(c3, LOAD((const void *)(p + 3 * (WIDTH))));                           \
      }                                                                                \
      HOLD(0) HOLD(1) HOLD(2) HOLD(3)                                                  \
    }                                                                                  \
    return (double)n * (double)own.bytes;                                              \
  }
READ(read128, "sse4.1", __m128i, 16, _mm_load_si128, _mm_xor_si128, KEEP_XMM)
READ(read256, "avx2", __m256i, 32, _mm256_load_si256, _mm256_xor_si256, KEEP_XMM)
READ(read512, "avx512f", __m512i, 64, _mm512_load_si512, _mm512_xor_si512, KEEP)

typedef double loop(long);
static const struct {
  const char *name;
  loop *run;
} LOOPS[] = {
    {"fp32.sse4", fp32_sse4},       {"fp32.avx2", fp32_avx2},
    {"fp32.avx512", fp32_avx512},   {"int8.sse4", int8_sse4},
    {"int8.avx2", int8_avx2},       {"int8.avxvnni", int8_avxvnni},
    {"int8.avx512", int8_avx512},   {"int8.avx512vnni", int8_avx512vnni},
    {"int8.amx", int8_amx},         {"bf16.avx512", bf16_avx512},
    {"bf16.amx", bf16_amx},         {"read128", read128},
    {"read256", read256},           {"read512", read512},
};

struct worker {
  pthread_t thread;
  loop *run;
  int cpu;
  struct buffer own;
  double seconds, work[WINDOWS], start[WINDOWS], end[WINDOWS];
};
static pthread_barrier_t together;

/* Work of at least `seconds`, in pieces that double until they take a twentieth of it. */
static void *work(void *argument) {
  struct worker *w = argument;
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(w->cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
  own = w->own;
  long piece = 1;
  for (double t = 0; t < w->seconds / 20; piece *= 2) {
    double start = now();
    w->run(piece);
    t = now() - start;
  }
  for (int i = 0; i < WINDOWS; i++) {
    pthread_barrier_wait(&together);
    double start = now(), end = start, done = 0;
    while (end - start < w->seconds) done += w->run(piece), end = now();
    w->work[i] = done, w->start[i] = start, w->end[i] = end;
  }
  return NULL;
}

static double rate(loop *run, int threads, const int *cpus, double seconds, size_t bytes) {
  static struct worker workers[MAX_THREADS];
  size_t each = bytes / (size_t)threads / 256 * 256;
  uint8_t *memory = NULL;
  if (each > 0) {
    memory = mmap(NULL, each * (size_t)threads + 4096, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 0;
    madvise(memory, each * (size_t)threads, MADV_HUGEPAGE);
    memset(memory, 1, each * (size_t)threads);
  }
  pthread_barrier_init(&together, NULL, (unsigned)threads);
  for (int i = 0; i < threads; i++) {
    struct worker *w = &workers[i];
    *w = (struct worker){.run = run, .cpu = cpus[i], .seconds = seconds};
    w->own = (struct buffer){memory + each * (size_t)i, each};
    if (pthread_create(&w->thread, NULL, work, w) != 0) return 0;
  }
  for (int i = 0; i < threads; i++) pthread_join(workers[i].thread, NULL);
  pthread_barrier_destroy(&together);
  if (memory != NULL) munmap(memory, each * (size_t)threads + 4096);
  double best = 0;
  for (int i = 0; i < WINDOWS; i++) {
    double start = workers[0].start[i], end = workers[0].end[i], sum = 0;
    for (int j = 0; j < threads; j++) {
      if (workers[j].start[i] < start) start = workers[j].start[i];
      if (workers[j].end[i] > end) end = workers[j].end[i];
      sum += workers[j].work[i];
    }
    if (sum / (end - start) > best) best = sum / (end - start);
  }
  return best;
}

int main(int argc, char **argv) {
  static int cpus[MAX_THREADS];
  int threads = 0;
  if (argc < 4) return 1;
  for (char *cpu = strtok(argv[1], ","); cpu != NULL && threads < MAX_THREADS;
       cpu = strtok(NULL, ","))
    cpus[threads++] = atoi(cpu);
  double seconds = atof(argv[2]);
  syscall(SYS_arch_prctl, REQUEST_PERMISSION, XTILEDATA); /* AMX is asked for only where it is */
  for (int i = 3; i < argc; i++) {
    const char *colon = strchr(argv[i], ':');
    size_t length = colon == NULL ? strlen(argv[i]) : (size_t)(colon - argv[i]);
    size_t bytes = colon == NULL ? 0 : strtoull(colon + 1, NULL, 10);
    loop *run = NULL;
    for (size_t j = 0; j < sizeof LOOPS / sizeof *LOOPS; j++)
      if (strlen(LOOPS[j].name) == length && strncmp(LOOPS[j].name, argv[i], length) == 0)
        run = LOOPS[j].run;
    if (run == NULL) {
      fprintf(stderr, "no loop named %s\n", argv[i]);
      return 2;
    }
    printf("%s %.6g\n", argv[i], rate(run, threads, cpus, seconds, bytes));
    fflush(stdout);
  }
  return 0;
}
