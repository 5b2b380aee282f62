/* As run.c, for a network that needs no operating system: in a user-mode emulator of Cortex-M, which
 * has Linux's system calls all the same. NET_HEADER is the network's header, NET(x) its name of x,
 * INPUT_COUNT and OUTPUT_COUNT how many tensors there are, TENSOR_SIZES the bytes of
 * each, TENSOR_WORDS the words of 8 bytes of all. */
#include <stddef.h>
#include <stdint.h>

#include NET_HEADER

enum { MARK = -77777, EXIT = 1, CLOSE = 6, ALIGNMENT = 8 };

static NET(arena_t) arena;
static const uint32_t sizes[] = {TENSOR_SIZES};
static uint64_t tensors[TENSOR_WORDS];

static void call_system(int number, int argument) {
  register int r0 __asm__("r0") = argument;
  /* r7 may be the frame pointer */
  __asm__ volatile("mov r12, r7\n mov r7, %1\n svc 0\n mov r7, r12"
                   : "+r"(r0)
                   : "r"(number)
                   : "r12", "memory");
}

/* Word by word, as C libraries for these cores do. */
void *memset(void *to, int value, size_t bytes) {
  unsigned char *at = to;
  const uint32_t word = 0x01010101u * (unsigned char)value;
  for (; bytes >= 4; bytes -= 4, at += 4) {
    __builtin_memcpy(at, &word, 4);
    __asm__ volatile("" ::: "memory"); /* or this loop becomes a call of itself */
  }
  for (; bytes > 0; bytes--) {
    *at++ = (unsigned char)value;
    __asm__ volatile("" ::: "memory");
  }
  return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
  unsigned char *at = to;
  const unsigned char *source = from;
  for (; bytes >= 4; bytes -= 4, at += 4, source += 4) {
    __builtin_memcpy(at, source, 4);
    __asm__ volatile("" ::: "memory");
  }
  for (; bytes > 0; bytes--) {
    *at++ = *source++;
    __asm__ volatile("" ::: "memory");
  }
  return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
  unsigned char *at = to;
  const unsigned char *source = from;
  if (at <= source) return memcpy(to, from, bytes);
  while (bytes-- > 0) {
    at[bytes] = source[bytes];
    __asm__ volatile("" ::: "memory");
  }
  return to;
}

__attribute__((noreturn)) void _start(void) {
  static const int runs[] = {1, 1, 2};
  const void *inputs[INPUT_COUNT + 1];
  void *outputs[OUTPUT_COUNT + 1];
  unsigned char *next = (unsigned char *)tensors;
  for (size_t i = 0; i < INPUT_COUNT + OUTPUT_COUNT; i++) {
    if (i < INPUT_COUNT)
      inputs[i] = next;
    else
      outputs[i - INPUT_COUNT] = next;
    next += (sizes[i] + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
  }
  for (size_t phase = 0; phase < sizeof runs / sizeof *runs; phase++) {
    for (int i = 0; i < runs[phase]; i++)
      if (NET(run)(&arena, inputs, outputs) != 0) call_system(EXIT, 1);
    call_system(CLOSE, MARK);
  }
  for (;;) call_system(EXIT, 0);
}
