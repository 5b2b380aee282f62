/* CUDA C++ for a CPU, before the prelude: its words, and the threads of a block.
 *
 * Threads run one at a time, each until it waits for others or ends, from the first to the last or
 * the other way round. Where a barrier is missing the two orders give different results. */
#ifndef DLCC_EMULATOR_THREADS_H
#define DLCC_EMULATOR_THREADS_H

#include <stddef.h>
#include <sys/mman.h>

#include "kernel.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static const
#define __shared__ static /* blocks run one after the other */

namespace emulator {

enum State { READY, AT_BARRIER, AT_WARP, DONE };
enum { MOST_THREADS = 1024, WARP = 32, STACK = 256 << 10, SHARED = 256 << 10, SLOT = 64 };

struct Place {
  unsigned x, y, z;
};

struct Thread {
  void *stack_pointer;
  State state;
  bool begun;
  unsigned turn; /* warp operations so far */
  Place place;
};

static Place grid_size, block_size, block_place;
static Thread threads[MOST_THREADS];
static unsigned thread_count, current;
static unsigned long long block_number; /* of all blocks that this module has run */
static int in_reverse;
static void *scheduler;
static char *stacks;
static void (*body)(void **);
static void **body_arguments;
static const char *fault;
alignas(1024) static unsigned char shared[SHARED];
alignas(64) static unsigned char slots[MOST_THREADS / WARP][2][WARP][SLOT];

/* Saves this stack's place in *from, and goes on with another. */
__attribute__((naked, noinline)) static void change(void **from, void *to) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

static void wait(State state) {
  threads[current].state = state;
  change(&threads[current].stack_pointer, scheduler);
}

static void begin() {
  body(body_arguments);
  wait(DONE);
  __builtin_trap();
}

static void resume(unsigned number) {
  Thread &thread = threads[number];
  current = number;
  if (!thread.begun) {
    void **top = reinterpret_cast<void **>(stacks + (number + 1) * static_cast<size_t>(STACK));
    *--top = nullptr; /* the stack is 16-byte aligned where a function is called */
    *--top = reinterpret_cast<void *>(begin);
    thread.stack_pointer = top - 6;
    thread.begun = true;
  }
  change(&scheduler, thread.stack_pointer);
}

static bool any(State state) {
  for (unsigned i = 0; i < thread_count; i++)
    if (threads[i].state == state) return true;
  return false;
}

static void release(unsigned first, unsigned end, State state) {
  for (unsigned i = first; i < end; i++)
    if (threads[i].state == state) threads[i].state = READY;
}

/* Lets the warps go on all of whose threads have arrived. */
static void release_warps() {
  for (unsigned first = 0; first < thread_count; first += WARP) {
    const unsigned end = first + WARP < thread_count ? first + WARP : thread_count;
    unsigned arrived = 0;
    for (unsigned i = first; i < end; i++) arrived += threads[i].state == AT_WARP;
    if (arrived == end - first)
      release(first, end, AT_WARP);
    else if (arrived > 0)
      fault = "some threads of a warp wait for others, which have ended or are at a barrier";
  }
}

static void run_threads() {
  while (fault == nullptr) {
    for (unsigned i = 0; i < thread_count; i++) {
      const unsigned number = in_reverse ? thread_count - 1 - i : i;
      if (threads[number].state == READY) resume(number);
    }
    release_warps();
    if (any(READY)) continue;
    if (!any(AT_BARRIER)) return;
    release(0, thread_count, AT_BARRIER);
  }
}

static const char *run_block(void (*kernel)(void **), void **arguments, const unsigned *grid,
                             const unsigned *block, const unsigned *place, unsigned shared_bytes,
                             int reversed) {
  if (stacks == nullptr)
    stacks = static_cast<char *>(mmap(nullptr, static_cast<size_t>(STACK) * MOST_THREADS,
                                      PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  grid_size = {grid[0], grid[1], grid[2]};
  block_size = {block[0], block[1], block[2]};
  block_place = {place[0], place[1], place[2]};
  body = kernel;
  body_arguments = arguments;
  fault = nullptr;
  block_number++;
  in_reverse = reversed;
  thread_count = block[0] * block[1] * block[2];
  for (unsigned i = 0; i < thread_count; i++)
    threads[i] = {nullptr, READY, false, 0,
                  {i % block[0], i / block[0] % block[1], i / (block[0] * block[1])}};
  __builtin_memset(shared, 0xff, shared_bytes + 256);
  run_threads();
  for (unsigned i = shared_bytes; i < shared_bytes + 256; i++)
    if (shared[i] != 0xff) return "shared memory was written behind its end";
  return fault;
}

/* Gives `mine` to the warp's other threads. Returns what each of them gave, SLOT bytes apart; it
 * stands there until the operation after the next. */
template <class T>
static const unsigned char *exchange(const T &mine) {
  static_assert(sizeof(T) <= SLOT, "an exchange of more than a slot");
  const unsigned turn = threads[current].turn++ & 1;
  unsigned char(*row)[SLOT] = slots[current / WARP][turn];
  __builtin_memcpy(row[current % WARP], &mine, sizeof(T));
  wait(AT_WARP);
  return row[0];
}

template <class T>
static T given(const unsigned char *all, unsigned lane) {
  T value;
  __builtin_memcpy(&value, all + lane * SLOT, sizeof(T));
  return value;
}

template <size_t... I>
struct Indices {};
template <size_t N, size_t... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <size_t... I>
struct Count<0, I...> {
  using All = Indices<I...>;
};

template <class Type, Type kernel>
struct Kernel;
template <class... A, void (*kernel)(A...)>
struct Kernel<void (*)(A...), kernel> {
  static constexpr unsigned parameters = sizeof...(A);

  template <size_t... I>
  static void call(void **arguments, Indices<I...>) {
    kernel(*static_cast<A *>(arguments[I])...);
  }

  static void thread(void **arguments) {
    call(arguments, typename Count<sizeof...(A)>::All());
  }

  static const char *run(void **arguments, const unsigned grid[3], const unsigned block[3],
                         const unsigned place[3], unsigned shared_bytes, int reversed) {
    return run_block(thread, arguments, grid, block, place, shared_bytes, reversed);
  }
};

}  // namespace emulator

/* Addresses of shared memory begin behind what the system keeps there (sm_90). */
enum { RESERVED = 1024 };

static inline size_t __cvta_generic_to_shared(const void *pointer) {
  return static_cast<size_t>(static_cast<const unsigned char *>(pointer) - emulator::shared) +
         RESERVED;
}

#define threadIdx (emulator::threads[emulator::current].place)
#define blockIdx (emulator::block_place)
#define blockDim (emulator::block_size)
#define gridDim (emulator::grid_size)

static inline void __syncthreads() { emulator::wait(emulator::AT_BARRIER); }

static inline void __syncwarp(unsigned = ~0u) { emulator::wait(emulator::AT_WARP); }

template <class T>
static inline T __shfl_sync(unsigned, T value, int lane, int = 32) {
  return emulator::given<T>(emulator::exchange(value), static_cast<unsigned>(lane) % 32);
}

template <class T>
static inline T __shfl_xor_sync(unsigned mask, T value, int with, int = 32) {
  return __shfl_sync(mask, value, static_cast<int>(emulator::current % 32) ^ with);
}

static inline unsigned __ballot_sync(unsigned, int mine) {
  const unsigned char *all = emulator::exchange(mine);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < 32; lane++)
    bits |= (emulator::given<int>(all, lane) != 0 ? 1u : 0u) << lane;
  return bits;
}

template <class T>
static inline T __shfl_down_sync(unsigned, T value, unsigned by, int = 32) {
  const unsigned char *all = emulator::exchange(value);
  const unsigned lane = emulator::current % 32 + by;
  return lane < 32 ? emulator::given<T>(all, lane) : value;
}

#define DLCC_EMULATE(name, registers, shared_bytes, max_threads)                     \
  extern "C" __attribute__((visibility("default"))) const emulated_kernel             \
      dlcc_emulated_##name = {emulator::Kernel<decltype(&name), name>::parameters,    \
                              registers, shared_bytes, max_threads,                   \
                              emulator::Kernel<decltype(&name), name>::run};

#endif
