/* Start of a Cortex-M program under qemu: vector table, FPU, semihosting, memory functions. */
#include "start.h"

extern char stack_top[];
void reset(void);
int main(void);

static void fault(void) {
  say("fault\n");
  leave(3);
}

__attribute__((section(".vectors"), used)) static const struct {
  void *stack;
  void (*handlers[15])(void);
} vectors = {stack_top,
             {reset, fault, fault, fault, fault, fault, fault, 0, 0, 0, fault, fault, 0, fault, fault}};

/* Everything is loaded or set by the program itself: there is no .data to copy, no .bss to clear. */
void reset(void) {
  volatile uint32_t *const access = (volatile uint32_t *)0xE000ED88;
  *access |= 0xFu << 20; /* coprocessors 10 and 11: FPU and vectors */
  __asm__ volatile("dsb\n isb" ::: "memory");
  leave(main());
}

static uint32_t semihost(uint32_t operation, const void *argument) {
  register uint32_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

void leave(int status) {
  const uint32_t exit[2] = {0x20026, (uint32_t)status}; /* ADP_Stopped_ApplicationExit */
  for (;;) semihost(0x20, exit);
}

void say(const char *text) { semihost(0x04, text); }

void say_number(const char *name, uint32_t value) {
  char digits[12], *at = digits + sizeof digits;
  *--at = 0;
  *--at = '\n';
  do *--at = (char)('0' + value % 10);
  while ((value /= 10) != 0);
  say(name);
  say(" ");
  say(at);
}

uint32_t create(const char *name, uint32_t length) {
  const uint32_t open[3] = {(uint32_t)name, 5, length}; /* "wb" */
  return semihost(0x01, open);
}

void write(uint32_t file, const void *data, uint32_t bytes) {
  const uint32_t request[3] = {file, (uint32_t)data, bytes};
  if (semihost(0x05, request) != 0) leave(4);
}

/* SysTick counts processor clocks down; under -icount they follow the executed instructions. */
#define SYSTICK ((volatile uint32_t *)0xE000E010)

void clock_start(void) {
  SYSTICK[1] = 0xFFFFFF;
  SYSTICK[2] = 0;
  SYSTICK[0] = 5;
}

uint32_t clock_ticks(void) { return (0u - SYSTICK[2]) & 0xFFFFFF; }

void *memset(void *to, int value, size_t bytes) {
  unsigned char *p = to;
  while (bytes-- != 0) {
    *p++ = (unsigned char)value;
    __asm__ volatile("" ::: "memory"); /* or this loop becomes a call of itself */
  }
  return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t bytes) {
  unsigned char *p = to;
  const unsigned char *q = from;
  while (bytes-- != 0) {
    *p++ = *q++;
    __asm__ volatile("" ::: "memory");
  }
  return to;
}

void *memmove(void *to, const void *from, size_t bytes) {
  unsigned char *p = to;
  const unsigned char *q = from;
  if (p <= q) return memcpy(to, from, bytes);
  while (bytes-- != 0) {
    p[bytes] = q[bytes];
    __asm__ volatile("" ::: "memory");
  }
  return to;
}
