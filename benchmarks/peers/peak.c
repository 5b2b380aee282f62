/* Opens an artifact, runs it, and prints the peak of its resident memory (VmHWM) in kB.
 *
 *   peak LIBRARY SYMBOL WEIGHTS THREADS RUNS
 *
 * What a product would do: one instance, inputs and outputs of its own, nothing else.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The leading fields of <symbol>_tensor_t and <symbol>_info_t in the artifact's header. */
struct tensor {
  const char *name, *dtype;
  uint32_t rank;
  const int64_t *shape;
  uint64_t bytes;
  uint32_t alignment;
};
struct info {
  uint32_t abi, input_count, output_count, step_count, max_threads, weights_embedded;
  uint64_t arena_bytes, weights_bytes, fingerprint;
  const char *name, *compiler, *triple, *weights_file;
  const struct tensor *inputs, *outputs;
};

static void *function(void *library, const char *symbol, const char *name) {
  char full[512];
  snprintf(full, sizeof full, "%s_%s", symbol, name);
  void *found = dlsym(library, full);
  if (found == NULL) {
    fprintf(stderr, "no function %s\n", full);
    exit(2);
  }
  return found;
}

static void **buffers(const struct tensor *tensors, uint32_t count) {
  void **list = calloc(count ? count : 1, sizeof *list);
  for (uint32_t i = 0; i < count; i++) {
    size_t bytes = (tensors[i].bytes + 63) / 64 * 64;
    list[i] = aligned_alloc(64, bytes);
    if (list[i] == NULL) exit(3);
    memset(list[i], 0, bytes);
  }
  return list;
}

int main(int argc, char **argv) {
  if (argc != 6) return 1;
  void *library = dlopen(argv[1], RTLD_NOW);
  if (library == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 2;
  }
  const struct info *(*info)(void) = (const struct info *(*)(void))function(library, argv[2], "info");
  int (*create)(const char *, int, void **) =
      (int (*)(const char *, int, void **))function(library, argv[2], "create");
  int (*run)(void *, const void *const *, void *const *) =
      (int (*)(void *, const void *const *, void *const *))function(library, argv[2], "run");
  const char *(*error)(void) = (const char *(*)(void))function(library, argv[2], "error");

  void *instance = NULL;
  void **inputs = buffers(info()->inputs, info()->input_count);
  void **outputs = buffers(info()->outputs, info()->output_count);
  int status = create(argv[3], atoi(argv[4]), &instance);
  for (int i = atoi(argv[5]); status == 0 && i > 0; i--)
    status = run(instance, (const void *const *)inputs, outputs);
  if (status != 0) {
    fprintf(stderr, "%s\n", error());
    return 4;
  }

  char line[256];
  FILE *file = fopen("/proc/self/status", "r");
  while (file != NULL && fgets(line, sizeof line, file) != NULL)
    if (strncmp(line, "VmHWM:", 6) == 0) {
      printf("%ld\n", atol(line + 6));
      return 0;
    }
  fprintf(stderr, "no VmHWM in /proc/self/status\n");
  return 5;
}
