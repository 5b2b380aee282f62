/* The runtime of a compiled network, included by the generated model file, which defines
 *
 *   DLCC_NAME(x), DLCC_CODE(x)  the public names: resnet_##x and RESNET_##x
 *   DLCC_EMBEDDED               1 if the weights file is part of the library
 *   DLCC_PARTS                  1 if variants read parts of the weights file
 *   DLCC_PACKED                 1 if the weights file is packed; then also
 *   DLCC_CONTENT_BYTES          of the unpacked content
 *   DLCC_WORK_BYTES             of memory that unpacking takes beside it
 *
 * and, after this file, the tables declared under "generated" below. Everything but the public
 * functions is static, so two models with different names link into one program. */
#ifndef DLCC_RUNTIME_H
#define DLCC_RUNTIME_H

#ifndef _GNU_SOURCE
#error "the model file must be compiled with -D_GNU_SOURCE"
#endif

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define DLCC_ALIGNMENT 64

typedef DLCC_NAME(status_t) dlcc_status;
typedef DLCC_NAME(tensor_t) dlcc_tensor;
typedef DLCC_NAME(info_t) dlcc_info;
typedef DLCC_NAME(variant_t) dlcc_variant;
typedef DLCC_NAME(t) dlcc_instance;

/* The four memories that a step's arguments point into. */
typedef struct dlcc_frame {
  const void *const *inputs;
  void *const *outputs;
  char *arena;
  const char *weights;
} dlcc_frame;

/* One kernel call. `call` computes the items [begin, end) with the scratch areas of `part`. */
typedef struct dlcc_step {
  int32_t (*call)(const dlcc_frame *frame, int64_t part, int32_t begin, int32_t end);
  int32_t work_items;
  uint32_t max_threads; /* 0: no bound */
} dlcc_step;

/* Generated. */
static const dlcc_info dlcc_model_info;
static const dlcc_step *const dlcc_variant_steps[]; /* of each row of dlcc_model_info.variants */
#if DLCC_PARTS
/* From and to which byte of the content; the last row is {0, 0}. */
typedef struct dlcc_part_of {
  uint64_t from, to;
} dlcc_part_of;

/* What a variant reads of the content, and the hash of that. */
typedef struct dlcc_reading {
  const dlcc_part_of *parts;
  uint64_t hash;
} dlcc_reading;

static const dlcc_reading dlcc_readings[]; /* of each row of dlcc_model_info.variants */
#endif
#if DLCC_EMBEDDED
extern const char DLCC_NAME(weights_image)[] __attribute__((visibility("hidden")));
#endif

#include "error.h"

#include "os.h"

#include "cpu.h"

#include "variant.h"

#include "memory.h"

#include "weights.h"

#include "pool.h"

#include "instance.h"

#endif
