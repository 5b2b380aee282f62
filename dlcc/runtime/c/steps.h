/* What the model file gives the runtime beside tables.h: the steps of the network. */
#ifndef DLCC_STEPS_H
#define DLCC_STEPS_H

#include "tables.h"

/* The four memories that a step's arguments point into. */
typedef struct dlcc_frame {
  const void *const *inputs;
  void *const *outputs;
  char *arena;
  const char *weights;
} dlcc_frame;

/* One kernel call. `call` computes the items [begin, end) with the scratch areas of `part`. `next`
 * gives the number of the step to go on at where a loop's trips begin or end; NULL: the one behind
 * it. How often a loop runs is the model's own: nothing here bounds it. */
typedef struct dlcc_step {
  int32_t (*call)(const dlcc_frame *frame, int64_t part, int32_t begin, int32_t end);
  int32_t work_items;
  uint32_t max_threads; /* 0: no bound */
  uint32_t (*next)(const dlcc_frame *frame);
} dlcc_step;

#define dlcc_schedules DLCC_NAME(schedules)

/* Of each schedule. */
extern DLCC_HIDDEN const dlcc_step *const dlcc_schedules[];

#endif
