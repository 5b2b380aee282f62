/* Functions that take stack in different ways, and a program that measures what each takes. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <ucontext.h>

#define KEEP __attribute__((noinline))

volatile int zero;
static volatile char sink;

static KEEP void use(volatile char *bytes, int count) {
  for (int i = 0; i < count; i++) bytes[i] = (char)i;
  sink = bytes[zero];
}

KEEP void frame_none(void) {}

KEEP void frame_large(void) {
  volatile char bytes[70001];
  use(bytes, sizeof bytes);
}

KEEP void frame_aligned(void) {
  _Alignas(256) volatile char bytes[500];
  use(bytes, sizeof bytes);
}

/* The compiler may make its frame behind the branch. */
KEEP void frame_late(void) {
  if (zero != 0) return;
  volatile char bytes[2000];
  use(bytes, sizeof bytes);
}

KEEP void frame_deep(void) {
  volatile char bytes[300];
  frame_late();
  use(bytes, sizeof bytes);
  frame_aligned();
  sink = bytes[1];
}

static KEEP double ten(int a, int b, int c, int d, int e, int f, int g, int h, int i, double x) {
  volatile char bytes[100];
  use(bytes, sizeof bytes);
  return x + a + b + c + d + e + f + g + h + i;
}

KEEP void frame_arguments(void) { sink = (char)ten(1, 2, 3, 4, 5, 6, 7, 8, 9, zero); }

/* Values that live across a call, in registers that have to be saved. */
KEEP void frame_saved(void) {
  double numbers[24];
  for (int i = 0; i < 24; i++) numbers[i] = zero + i;
  frame_late();
  double sum = 0;
  for (int i = 0; i < 24; i++) sum += numbers[i] * numbers[23 - i];
  sink = (char)sum;
}

KEEP void frame_switch(void) {
  volatile char bytes[64];
  switch (zero) {
    case 0: use(bytes, 60); break;
    case 1: frame_late(); break;
    case 2: sink = 5; break;
    case 3: frame_aligned(); break;
    case 4: sink = 7; use(bytes, 9); break;
    case 5: frame_none(); break;
    default: return;
  }
  sink = bytes[0];
}

void callee_small(void) { frame_none(); }
void callee_large(void) { frame_late(); }
static void (*volatile pointer)(void) = callee_large;

KEEP void frame_pointer(void) {
  volatile char bytes[40];
  use(bytes, sizeof bytes);
  pointer();
  sink = bytes[0];
}

KEEP void frame_copied(void) {
  char bytes[1000];
  memset(bytes, zero, sizeof bytes);
  use(bytes, zero);
}

/* What cannot be told. */
KEEP void unknown_size(void) {
  volatile char bytes[zero + 100];
  use(bytes, 50);
}

KEEP int unknown_depth(int n) {
  volatile char bytes[16];
  use(bytes, 16);
  return n < 1 ? 0 : unknown_depth(n - 1) + bytes[1];
}

#ifdef MEASURE
static ucontext_t home, other;
_Alignas(64) static unsigned char stack[1 << 18];

static long used(void (*function)(void)) {
  long untouched = 0;
  memset(stack, 0xA5, sizeof stack);
  getcontext(&other);
  other.uc_stack.ss_sp = stack;
  other.uc_stack.ss_size = sizeof stack;
  other.uc_link = &home;
  makecontext(&other, function, 0);
  swapcontext(&home, &other);
  while (stack[untouched] == 0xA5) untouched++;
  return (long)sizeof stack - untouched;
}

#define PRINT(name) printf(#name " %ld\n", used(name))

int main(void) {
  PRINT(frame_none);
  PRINT(frame_large);
  PRINT(frame_aligned);
  PRINT(frame_late);
  PRINT(frame_deep);
  PRINT(frame_arguments);
  PRINT(frame_saved);
  PRINT(frame_switch);
  PRINT(frame_pointer);
  PRINT(frame_copied);
  return 0;
}
#endif
