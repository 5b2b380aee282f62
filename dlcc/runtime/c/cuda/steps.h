/* What the model file gives the runtime beside tables.h: cubins, their kernels, and the steps. */
#ifndef DLCC_CUDA_STEPS_H
#define DLCC_CUDA_STEPS_H

#include "../tables.h"

enum { DLCC_INPUT, DLCC_OUTPUT, DLCC_ARENA, DLCC_WEIGHTS };

/* A place in one of the memories that a step's arguments point into. */
typedef struct dlcc_place {
  uint16_t memory;
  uint16_t index; /* of the input or output */
  uint64_t offset;
} dlcc_place;

typedef struct dlcc_kernel {
  const char *name;
  uint32_t shared_bytes; /* that its launches ask for at most */
} dlcc_kernel;

/* One launch of a kernel. */
typedef struct dlcc_step {
  uint32_t kernel; /* of the cubin */
  uint32_t grid[3], block[3], shared_bytes;
  uint32_t count;
  const dlcc_place *arguments; /* [count] */
  uint32_t after_count;
  const uint32_t *after; /* [after_count] earlier steps that have to be done before */
} dlcc_step;

/* The kernels of a variant. */
typedef struct dlcc_cubin {
  const void *image; /* NULL: there are no steps */
  uint32_t kernel_count;
  const dlcc_kernel *kernels;
} dlcc_cubin;

#define DLCC_MOST_ARGUMENTS 64 /* of a step */

#define dlcc_cubins DLCC_NAME(cubins)
#define dlcc_schedules DLCC_NAME(schedules)

extern DLCC_HIDDEN const dlcc_cubin dlcc_cubins[]; /* of each row of dlcc_model_info.variants */
extern DLCC_HIDDEN const dlcc_step *const dlcc_schedules[]; /* of each schedule */

#endif
