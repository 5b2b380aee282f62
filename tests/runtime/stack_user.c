/* Prints how much stack a run takes: NAME is the network's C name, argv its weights and threads. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#define GLUE2(a, b) a##_##b
#define GLUE(a, b) GLUE2(a, b)
#define NET(x) GLUE(NAME, x)

#include HEADER

static ucontext_t home, other;
_Alignas(64) static unsigned char stack[1 << 20];
static NET(t) * net;
static const void *inputs[64];
static void *outputs[64];
static int status;

static void run(void) { status = NET(run)(net, inputs, outputs); }

int main(int argc, char **argv) {
  long untouched = 0;
  if (argc != 3 || NET(create)(argv[1], atoi(argv[2]), &net) != 0) return 1;
  for (uint32_t i = 0; i < NET(info)()->input_count; i++)
    inputs[i] = aligned_alloc(64, (NET(info)()->inputs[i].bytes + 63) / 64 * 64);
  for (uint32_t i = 0; i < NET(info)()->output_count; i++)
    outputs[i] = aligned_alloc(64, (NET(info)()->outputs[i].bytes + 63) / 64 * 64);
  memset(stack, 0xA5, sizeof stack);
  getcontext(&other);
  other.uc_stack.ss_sp = stack;
  other.uc_stack.ss_size = sizeof stack;
  other.uc_link = &home;
  makecontext(&other, run, 0);
  swapcontext(&home, &other);
  while (stack[untouched] == 0xA5) untouched++;
  printf("%ld\n", (long)sizeof stack - untouched);
  return status;
}
