/* Windows of fused steps (see FusedStep in dlcc/program.py). */
#ifndef DLCC_BANDS_H
#define DLCC_BANDS_H

#include <string.h>

/* Makes a window hold the value's bytes from start[band] on. `first` is the first band of this
 * thread's range, for which the window is empty. Returns where the value's first byte would lie. */
static uintptr_t dlcc_window(char *memory, const int32_t *start, const int32_t *kept, int32_t band,
                             int32_t first) {
  if (band > first && kept[band] > 0)
    memmove(memory, memory + (start[band] - start[band - 1]), (size_t)kept[band]);
  return (uintptr_t)memory - (uintptr_t)start[band];
}

#endif
