/* Classifies images by the compiled network; needs digits.h, libdigits.so and libc.
 *
 *   digits WEIGHTS IMAGES LOGITS [REPEATS]
 *
 * IMAGES holds float32 images of the network's input size one after the other; LOGITS gets the
 * network's output of each. Prints the number of images and the median time of a run, in ns. */
#define _POSIX_C_SOURCE 199309L
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "digits.h"

static int fail(const char *what, const char *why) {
  fprintf(stderr, "%s: %s\n", what, why);
  return 1;
}

static int64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static int by_value(const void *a, const void *b) {
  int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
  return (x > y) - (x < y);
}

/* Runs one image `repeats` times; returns 0, or 1 after a message. */
static int run(digits_t *net, const void *image, void *logits, int repeats, int64_t *times) {
  const void *inputs[DIGITS_INPUTS] = {image};
  void *outputs[DIGITS_OUTPUTS] = {logits};
  for (int i = 0; i < repeats; i++) {
    int64_t start = now_ns();
    if (digits_run(net, inputs, outputs) != DIGITS_OK) return fail("run", digits_error());
    times[i] = now_ns() - start;
  }
  return 0;
}

static int classify(digits_t *net, FILE *images, FILE *logits, int repeats) {
  static float image[1 << 16], result[1 << 16];
  static int64_t times[1 << 20];
  const digits_info_t *info = digits_info();
  size_t size = info->inputs[0].bytes, result_size = info->outputs[0].bytes;
  size_t room = sizeof times / sizeof *times, count = 0;
  if (size > sizeof image || result_size > sizeof result) return fail("network", "too large");

  while (fread(image, 1, size, images) == size) {
    if (count + repeats > room) return fail("images", "too many");
    if (run(net, image, result, repeats, times + count) != 0) return 1;
    if (fwrite(result, 1, result_size, logits) != result_size) return fail("logits", "cannot write");
    count += repeats;
  }
  if (count == 0) return fail("images", "there are none");
  qsort(times, count, sizeof *times, by_value);
  printf("%zu %lld\n", count / repeats, (long long)times[count / 2]);
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 4 || argc > 5) return fail("usage", "digits WEIGHTS IMAGES LOGITS [REPEATS]");
  int repeats = argc == 5 ? atoi(argv[4]) : 1;
  if (repeats < 1) return fail("usage", "REPEATS must be a positive number");
  FILE *images = fopen(argv[2], "rb");
  if (images == NULL) return fail(argv[2], "cannot be read");
  FILE *logits = fopen(argv[3], "wb");
  if (logits == NULL) return fail(argv[3], "cannot be written");

  digits_t *net;
  if (digits_create(argv[1], 1, &net) != DIGITS_OK) return fail("create", digits_error());
  int failed = classify(net, images, logits, repeats);
  digits_destroy(net);
  if (fclose(logits) != 0) failed = fail(argv[3], "cannot be written");
  fclose(images);
  return failed;
}
