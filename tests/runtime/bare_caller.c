/* Calls the network of programs.row_program through the interface without an operating system. */
#include <stdio.h>
#include <string.h>

#include "rows.h"

#define CHECK(x)                                                \
  do {                                                          \
    if (!(x)) {                                                 \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #x);   \
      return 1;                                                 \
    }                                                           \
  } while (0)

static rows_arena_t arena, other;
static float x[ROWS_INPUT_0_BYTES / 4], y[ROWS_OUTPUT_0_BYTES / 4], again[ROWS_OUTPUT_0_BYTES / 4];

static int refuses(void *memory, const void *const *inputs, void *const *outputs) {
  return rows_run(memory, inputs, outputs) == ROWS_INVALID_ARGUMENT &&
         rows_step(0, memory, inputs, outputs) == ROWS_INVALID_ARGUMENT;
}

static int check_pointers(void) {
  const void *inputs[ROWS_INPUTS] = {x};
  void *outputs[ROWS_OUTPUTS] = {y};
  const void *no_input[ROWS_INPUTS] = {NULL};
  void *no_output[ROWS_OUTPUTS] = {NULL};
  const void *crooked[ROWS_INPUTS] = {(const char *)x + 2};
  void *on_input[ROWS_OUTPUTS] = {x + 1};
  void *in_arena[ROWS_OUTPUTS] = {&arena};
  CHECK(refuses(NULL, inputs, outputs));
  CHECK(refuses(arena.bytes + 4, inputs, outputs));
  CHECK(refuses(&arena, NULL, outputs));
  CHECK(refuses(&arena, inputs, NULL));
  CHECK(refuses(&arena, no_input, outputs));
  CHECK(refuses(&arena, inputs, no_output));
  CHECK(refuses(&arena, crooked, outputs));
  CHECK(refuses(&arena, inputs, on_input));
  CHECK(refuses(&arena, inputs, in_arena));
  CHECK(rows_step(ROWS_STEPS, &arena, inputs, outputs) == ROWS_INVALID_ARGUMENT);
  return 0;
}

int main(void) {
  const void *inputs[ROWS_INPUTS] = {x};
  void *outputs[ROWS_OUTPUTS] = {y}, *outputs_again[ROWS_OUTPUTS] = {again};
  uint32_t step;
  CHECK(fread(x, 1, sizeof x, stdin) == sizeof x);
  CHECK(rows_run(&arena, inputs, outputs) == ROWS_OK);
  for (step = 0; step < ROWS_STEPS; step++)
    CHECK(rows_step(step, &other, inputs, outputs_again) == ROWS_OK);
  CHECK(memcmp(y, again, sizeof y) == 0);
  CHECK(strcmp(rows_layer(0), "bias") == 0 && strcmp(rows_layer(1), "activation") == 0);
  CHECK(rows_layer(2) == NULL);
  CHECK(check_pointers() == 0);
  CHECK(fwrite(y, 1, sizeof y, stdout) == sizeof y);
  return 0;
}
