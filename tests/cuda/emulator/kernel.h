/* What the emulated driver and a module, kernels compiled for the CPU, have to know of each other.
 * Without <stdint.h>: kernels name these types themselves. */
#ifndef DLCC_EMULATOR_KERNEL_H
#define DLCC_EMULATOR_KERNEL_H

/* One kernel of a module, which is found by the name dlcc_emulated_<kernel>. */
typedef struct emulated_kernel {
  unsigned parameters; /* all of 8 bytes */
  unsigned registers;
  unsigned shared_bytes; /* that it declares */
  unsigned max_threads;  /* 0: no bound */
  /* Runs one block. Returns NULL, or what went wrong. */
  const char *(*run)(void **arguments, const unsigned grid[3], const unsigned block[3],
                     const unsigned place[3], unsigned shared_bytes, int reversed);
} emulated_kernel;

#endif
