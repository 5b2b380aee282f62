/* A C program that uses the row network by its header alone; run with an empty environment.
 * Prints "ok" or the line that found a fault. Arguments: weights file or "-". */
#include <stdio.h>
#include <string.h>

#include "rows.h"

#define CHECK(condition)                                             \
  do {                                                               \
    if (!(condition)) {                                              \
      printf("line %d: %s; %s\n", __LINE__, #condition, rows_error()); \
      return 1;                                                      \
    }                                                                \
  } while (0)

static float x[24 * 16], y[24 * 16], again[24 * 16];
static char arena[ROWS_ARENA_BYTES + 64];

static int check_info(void) {
  const rows_info_t *info = rows_info();
  CHECK(info->abi == ROWS_ABI);
  CHECK(info->input_count == ROWS_INPUTS && info->output_count == ROWS_OUTPUTS);
  CHECK(info->step_count == ROWS_STEPS && info->max_threads == ROWS_MAX_THREADS);
  CHECK(info->arena_bytes == ROWS_ARENA_BYTES);
  CHECK(strcmp(info->name, "rows") == 0 && strcmp(info->weights_file, "rows.weights") == 0);
  CHECK(strncmp(info->compiler, "dlcc ", 5) == 0);
  CHECK(info->inputs[0].rank == 2 && info->inputs[0].shape[0] == 24);
  CHECK(info->inputs[0].shape[1] == 16 && info->inputs[0].bytes == sizeof x);
  CHECK(strcmp(info->inputs[0].name, "x") == 0 && strcmp(info->outputs[0].name, "y") == 0);
  CHECK(strcmp(info->inputs[0].dtype, "float32") == 0 && info->inputs[0].alignment == 4);
  CHECK(strcmp(info->steps[0], "bias") == 0 && info->steps[ROWS_STEPS] == NULL);
  CHECK(strcmp(info->features[0], "sse2") == 0 && info->features[1] == NULL);
  return 0;
}

static int check_refusals(rows_t *net, const char *weights) {
  const void *inputs[] = {x};
  void *outputs[] = {y};
  rows_t *none = net;
  CHECK(rows_create(weights, 1, NULL) == ROWS_INVALID_ARGUMENT);
  CHECK(rows_create(weights, ROWS_MAX_THREADS + 1, &none) == ROWS_INVALID_ARGUMENT && !none);
  CHECK(strstr(rows_error(), "1 to 4") != NULL);
  CHECK(rows_create("absent.weights", 1, &none) == ROWS_BAD_WEIGHTS);
  CHECK(strstr(rows_error(), "absent.weights: no such file") != NULL);
  CHECK(rows_create("/", 1, &none) == ROWS_BAD_WEIGHTS);
  CHECK(strstr(rows_error(), "not a regular file") != NULL);
  CHECK(rows_create_in(weights, 1, NULL, 0, &none) == ROWS_INVALID_ARGUMENT);
  CHECK(rows_create_in(weights, 1, arena + 1, sizeof arena, &none) == ROWS_INVALID_ARGUMENT ||
        rows_create_in(weights, 1, arena + 2, sizeof arena, &none) == ROWS_INVALID_ARGUMENT);
  CHECK(rows_run(NULL, inputs, outputs) == ROWS_INVALID_ARGUMENT);
  CHECK(rows_run(net, NULL, outputs) == ROWS_INVALID_ARGUMENT);
  CHECK(rows_run(net, inputs, NULL) == ROWS_INVALID_ARGUMENT);
  CHECK(rows_profile(net, inputs, outputs, NULL) == ROWS_INVALID_ARGUMENT);
  inputs[0] = NULL;
  CHECK(rows_run(net, inputs, outputs) == ROWS_INVALID_ARGUMENT);
  CHECK(strstr(rows_error(), "input \"x\" is NULL") != NULL);
  inputs[0] = (const char *)x + 1;
  CHECK(rows_run(net, inputs, outputs) == ROWS_INVALID_ARGUMENT);
  CHECK(strstr(rows_error(), "aligned to 4 bytes for float32") != NULL);
  inputs[0] = y + 24 * 16 - 1;
  CHECK(rows_run(net, inputs, outputs) == ROWS_INVALID_ARGUMENT);
  CHECK(strstr(rows_error(), "output \"y\" overlaps input \"x\"") != NULL);
  CHECK(rows_threads(NULL) == 0);
  rows_destroy(NULL);
  return 0;
}

/* The caller's float environment (here: round up, flush denormals) does not change the result, and
 * run does not change that environment. */
enum { DEFAULT_MXCSR = 0x1f80, ODD_MXCSR = 0x1f80 | 0x4000 | 0x8000 };

static int check_rounding(const char *weights) {
  const void *inputs[] = {x};
  void *outputs[] = {y};
  for (int threads = 1; threads <= ROWS_MAX_THREADS; threads += 3) {
    rows_t *net;
    for (int i = 0; i < 24 * 16; i++) x[i] = 1e-39f + (float)i * 1.1f;
    __builtin_ia32_ldmxcsr(ODD_MXCSR);
    CHECK(rows_create(weights, threads, &net) == ROWS_OK);
    CHECK(rows_run(net, inputs, outputs) == ROWS_OK);
    memcpy(again, y, sizeof y);
    CHECK(__builtin_ia32_stmxcsr() == ODD_MXCSR);
    __builtin_ia32_ldmxcsr(DEFAULT_MXCSR);
    CHECK(rows_run(net, inputs, outputs) == ROWS_OK);
    CHECK(memcmp(y, again, sizeof y) == 0);
    rows_destroy(net);
  }
  return 0;
}

int main(int count, char **arguments) {
  const char *weights = count > 1 && strcmp(arguments[1], "-") != 0 ? arguments[1] : NULL;
  CHECK(rows_error()[0] == '\0');
  if (check_info()) return 1;
  for (int i = 0; i < 24 * 16; i++) x[i] = (float)(i % 7) - 3;
  const void *inputs[] = {x};
  void *outputs[] = {y};
  rows_t *net;
  CHECK(rows_create(weights, 1, &net) == ROWS_OK && net != NULL);
  CHECK(rows_threads(net) == 1);
  CHECK(rows_run(net, inputs, outputs) == ROWS_OK);
  CHECK(y[3] == 0 && y[15] == x[15] + 2);
  if (check_refusals(net, weights)) return 1;
  rows_destroy(net);
  for (int threads = 0; threads <= ROWS_MAX_THREADS; threads++) {
    char *aligned = arena + (64 - (size_t)arena % 64) % 64;
    CHECK(rows_create_in(weights, threads, aligned, ROWS_ARENA_BYTES, &net) == ROWS_OK);
    CHECK(threads == 0 || rows_threads(net) == threads);
    uint64_t times[ROWS_STEPS] = {0};
    outputs[0] = again;
    memset(again, 0xff, sizeof again);
    CHECK(rows_profile(net, inputs, outputs, times) == ROWS_OK);
    CHECK(memcmp(y, again, sizeof y) == 0 && times[0] > 0 && times[1] > 0);
    rows_destroy(net);
  }
  if (check_rounding(weights)) return 1;
  puts("ok");
  return 0;
}
