/* Small kernels with the ABI of dlcc/program.py, for tests of the runtime. */
#include <stdint.h>

/* y[i, :] = x[i, :] + w, rows of 16. */
int32_t add_row(const float *x, const float *w, float *y, int32_t begin, int32_t end) {
  for (int32_t i = begin; i < end; i++)
    for (int32_t j = 0; j < 16; j++) y[i * 16 + j] = x[i * 16 + j] + w[j];
  return 0;
}

int32_t relu(const float *x, float *y, int32_t begin, int32_t end) {
  for (int32_t i = begin; i < end; i++) y[i] = x[i] > 0 ? x[i] : 0;
  return 0;
}

int32_t add(const float *a, const float *b, float *y, int32_t begin, int32_t end) {
  for (int32_t i = begin; i < end; i++) y[i] = a[i] + b[i];
  return 0;
}

/* y[i] = the sum over a scratch area it fills first: wrong if two threads share one. */
int32_t through_scratch(const float *x, float *scratch, float *y, int32_t begin, int32_t end) {
  for (int32_t i = begin; i < end; i++) {
    for (int32_t j = 0; j < 64; j++) scratch[j] = x[i] * (float)j;
    float sum = 0;
    for (int32_t j = 0; j < 64; j++) sum += scratch[j];
    y[i] = sum;
  }
  return 0;
}

/* y[i] = how often item i was computed, on top of what it held. */
int32_t count(const int32_t *x, int32_t *y, int32_t begin, int32_t end) {
  for (int32_t i = begin; i < end; i++) y[i] = x[i] + 1;
  return 0;
}

/* y[i] = how many items the part of item i has. */
int32_t span(int32_t *y, int32_t begin, int32_t end) {
  for (int32_t i = begin; i < end; i++) y[i] = end - begin;
  return 0;
}

int32_t fail(float *y, int32_t begin, int32_t end) {
  (void)y;
  (void)begin;
  return end > 3 ? 7 : 0;
}

/* y = x, byte by byte. */
int32_t copy(const uint8_t *x, uint8_t *y, int32_t begin, int32_t end) {
  for (int32_t i = begin; i < end; i++) y[i] = x[i];
  return 0;
}
