/* Runs the library of a compiled network on samples from standard input, all inputs of a sample one
 * after the other, and writes their outputs to standard output.
 * Arguments: library, C name of the network, weights file ("": in the library), threads, perhaps a
 * variant, and perhaps the bytes that vectors of SVE shall have once the instance is made. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "net.h"

static void *library;
static const char *symbol;

static void *find(const char *suffix) {
  char name[256];
  snprintf(name, sizeof name, "%s_%s", symbol, suffix);
  void *found = dlsym(library, name);
  if (found == NULL) {
    fprintf(stderr, "no %s\n", name);
    exit(2);
  }
  return found;
}

static void *room(const net_tensor_t *tensor) {
  void *memory = NULL;
  if (posix_memalign(&memory, 64, tensor->bytes + 64) != 0) exit(2);
  return memory;
}

int main(int argc, char **argv) {
  if (argc < 5 || argc > 7) return 2;
  library = dlopen(argv[1], RTLD_NOW);
  if (library == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  symbol = argv[2];
  const net_info_t *(*info_of)(void) = (const net_info_t *(*)(void))find("info");
  const char *(*error)(void) = (const char *(*)(void))find("error");
  net_status_t (*create)(const char *, int, net_t **) =
      (net_status_t(*)(const char *, int, net_t **))find("create");
  net_status_t (*create_variant)(const char *, int, const char *, net_t **) =
      (net_status_t(*)(const char *, int, const char *, net_t **))find("create_variant");
  const net_variant_t *(*variant)(const net_t *) =
      (const net_variant_t *(*)(const net_t *))find("variant");
  net_status_t (*run)(net_t *, const void *const *, void *const *) =
      (net_status_t(*)(net_t *, const void *const *, void *const *))find("run");
  void (*destroy)(net_t *) = (void (*)(net_t *))find("destroy");

  const net_info_t *info = info_of();
  net_t *net;
  const int threads = atoi(argv[4]);
  const char *weights = argv[3][0] != '\0' ? argv[3] : NULL;
  const net_status_t made = argc > 5 ? create_variant(weights, threads, argv[5], &net)
                                      : create(weights, threads, &net);
  if (made != NET_OK) {
    fprintf(stderr, "%s\n", error());
    return 3;
  }
  fprintf(stderr, "variant %s\n", variant(net)->name);
  if (argc > 6 && prctl(50 /* PR_SVE_SET_VL */, atol(argv[6]), 0, 0, 0) < 0) return 2;
  const void *inputs[16];
  void *outputs[16];
  for (uint32_t i = 0; i < info->input_count; i++) inputs[i] = room(&info->inputs[i]);
  for (uint32_t i = 0; i < info->output_count; i++) outputs[i] = room(&info->outputs[i]);
  for (;;) {
    for (uint32_t i = 0; i < info->input_count; i++) {
      const size_t bytes = info->inputs[i].bytes;
      if (fread((void *)inputs[i], 1, bytes, stdin) != bytes) {
        destroy(net);
        return i == 0 ? 0 : 2;
      }
    }
    if (run(net, inputs, outputs) != NET_OK) {
      fprintf(stderr, "%s\n", error());
      return 4;
    }
    for (uint32_t i = 0; i < info->output_count; i++)
      fwrite(outputs[i], 1, info->outputs[i].bytes, stdout);
  }
}
