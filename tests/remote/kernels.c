/* Kernels that do what no kernel may do. Each behaves well where its input starts with 0. */
#include <stdint.h>

int32_t illegal(const int32_t *x, int32_t *y, int32_t begin, int32_t end) {
  if (x[0] != 0) __builtin_trap();
  for (int32_t i = begin; i < end; i++) y[i] = x[i];
  return 0;
}

int32_t endless(const int32_t *x, int32_t *y, int32_t begin, int32_t end) {
  for (volatile int32_t on = x[0]; on != 0;) continue;
  for (int32_t i = begin; i < end; i++) y[i] = x[i];
  return 0;
}

int32_t refusing(const int32_t *x, int32_t *y, int32_t begin, int32_t end) {
  for (int32_t i = begin; i < end; i++) y[i] = x[i];
  return x[0];
}
