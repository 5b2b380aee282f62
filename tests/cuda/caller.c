/* A C program with two networks for GPUs, linked statically; its own context stays current. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "other.h"
#include "rows.h"

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) {                                                        \
      printf("line %d: %s; %s; %s\n", __LINE__, #condition, rows_error(), other_error()); \
      return 1;                                                                \
    }                                                                          \
  } while (0)

enum { ELEMENTS = 4 * 128, BYTES = 4 * ELEMENTS };

static float x[ELEMENTS], y[ELEMENTS], z[ELEMENTS];

typedef int (*call1)(void *);
typedef int (*call2)(void *, size_t);

static int check_memory(const char *weights, void *driver) {
  call2 retain = (call2)dlsym(driver, "cuDevicePrimaryCtxRetain");
  call1 push = (call1)dlsym(driver, "cuCtxPushCurrent_v2");
  call1 current = (call1)dlsym(driver, "cuCtxGetCurrent");
  call2 allocate = (call2)dlsym(driver, "cuMemAlloc_v2");
  int (*copy_in)(uint64_t, const void *, size_t, void *) = dlsym(driver, "cuMemcpyHtoDAsync_v2");
  int (*copy_out)(void *, uint64_t, size_t, void *) = dlsym(driver, "cuMemcpyDtoHAsync_v2");
  call1 finish = (call1)dlsym(driver, "cuStreamSynchronize");
  void *context = NULL, *now = NULL;
  uint64_t arena, a, b;
  rows_t *net;
  CHECK(retain(&context, 0) == 0 && push(context) == 0);
  CHECK(allocate(&arena, ROWS_ARENA_BYTES) == 0);
  CHECK(allocate(&a, BYTES) == 0 && allocate(&b, BYTES) == 0);
  CHECK(rows_create_in(weights, 0, z, ROWS_ARENA_BYTES, &net) == ROWS_INVALID_ARGUMENT);
  CHECK(rows_create_in(weights, 0, (void *)arena, 64, &net) == ROWS_INVALID_ARGUMENT);
  CHECK(strstr(rows_error(), "the arena has 64 bytes") != NULL);
  CHECK(rows_create_in(weights, 0, (void *)arena, ROWS_ARENA_BYTES, &net) == ROWS_OK);
  CHECK(rows_device(net) == 0 && rows_device(NULL) == -1);
  const void *inputs[] = {(void *)a};
  void *outputs[] = {(void *)b};
  CHECK(copy_in(a, x, BYTES, NULL) == 0);
  CHECK(rows_run_device(net, inputs, outputs, NULL) == ROWS_OK);
  CHECK(copy_out(z, b, BYTES, NULL) == 0 && finish(NULL) == 0);
  CHECK(memcmp(y, z, BYTES) == 0);
  outputs[0] = z;
  CHECK(rows_run_device(net, inputs, outputs, NULL) == ROWS_INVALID_ARGUMENT);
  CHECK(strstr(rows_error(), "output \"y\" is not in the memory of device 0") != NULL);
  rows_destroy(net);
  CHECK(current(&now) == 0 && now == context);
  return 0;
}

/* Arguments: the two weights files. With a third: there is no driver. */
int main(int count, char **arguments) {
  rows_t *first = NULL, *second = NULL;
  other_t *other = NULL;
  if (count > 3) {
    CHECK(rows_create(arguments[1], 0, &first) == ROWS_NO_DEVICE && first == NULL);
    puts(rows_error());
    return 0;
  }
  const void *inputs[] = {x};
  void *outputs[] = {y};
  for (int i = 0; i < ELEMENTS; i++) x[i] = (float)(i % 31);
  CHECK(rows_create(arguments[1], 2, &first) == ROWS_INVALID_ARGUMENT);
  CHECK(strstr(rows_error(), "threads is 2") != NULL);
  CHECK(rows_create(arguments[1], 0, &first) == ROWS_OK);
  CHECK(rows_create(arguments[1], 1, &second) == ROWS_OK);
  CHECK(other_create(arguments[2], 0, &other) == OTHER_OK);
  CHECK(rows_run(first, inputs, outputs) == ROWS_OK && y[0] != 0);
  outputs[0] = z;
  CHECK(rows_run(second, inputs, outputs) == ROWS_OK && memcmp(y, z, BYTES) == 0);
  memset(z, 0, BYTES);
  CHECK(other_run(other, inputs, outputs) == OTHER_OK && memcmp(y, z, BYTES) == 0);
  CHECK(rows_run(first, NULL, outputs) == ROWS_INVALID_ARGUMENT);
  if (check_memory(arguments[1], dlopen("libcuda.so.1", RTLD_NOW))) return 1;
  rows_destroy(first);
  rows_destroy(second);
  other_destroy(other);
  puts("ok");
  return 0;
}
