/* Runs a network on zeros, for the plugin of executed.c: once, then once, then twice, with a mark
 * after each. NET_HEADER is the network's header, NET(x) its name of x, NET_VARIANT the variant of
 * its kernels.
 * Argument: the weights file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include NET_HEADER

enum { MARK = -77777, ALIGNMENT = 64 };

static void *zeros(const NET(tensor_t) *tensor) {
  void *memory = NULL;
  if (posix_memalign(&memory, ALIGNMENT, tensor->bytes + ALIGNMENT) != 0) abort();
  return memset(memory, 0, tensor->bytes + ALIGNMENT);
}

int main(int argc, char **argv) {
  NET(t) * net;
  if (NET(create_variant)(argc > 1 ? argv[1] : NULL, 1, NET_VARIANT, &net) != 0) {
    fprintf(stderr, "%s\n", NET(error)());
    return 1;
  }
  const NET(info_t) *info = NET(info)();
  const void **inputs = calloc(info->input_count + 1, sizeof *inputs);
  void **outputs = calloc(info->output_count + 1, sizeof *outputs);
  if (inputs == NULL || outputs == NULL) abort();
  for (uint32_t i = 0; i < info->input_count; i++) inputs[i] = zeros(&info->inputs[i]);
  for (uint32_t i = 0; i < info->output_count; i++) outputs[i] = zeros(&info->outputs[i]);
  static const int runs[] = {1, 1, 2};
  for (size_t phase = 0; phase < sizeof runs / sizeof *runs; phase++) {
    for (int i = 0; i < runs[phase]; i++) {
      if (NET(run)(net, inputs, outputs) == 0) continue;
      fprintf(stderr, "%s\n", NET(error)());
      return 1;
    }
    close(MARK);
  }
  return 0;
}
