/* What the model file gives the runtime: two objects, of which only the model file's differs from
 * network to network. Included after the network's header, with
 *
 *   DLCC_NAME(x), DLCC_CODE(x)  the public names: resnet_##x and RESNET_##x
 *
 * All names that the linker sees begin as the public ones do, so that two models with different
 * names link into one program. */
#ifndef DLCC_TABLES_H
#define DLCC_TABLES_H

#include <stddef.h>
#include <stdint.h>

#define DLCC_HIDDEN __attribute__((visibility("hidden")))

typedef DLCC_NAME(status_t) dlcc_status;
typedef DLCC_NAME(tensor_t) dlcc_tensor;
typedef DLCC_NAME(info_t) dlcc_info;
typedef DLCC_NAME(variant_t) dlcc_variant;
typedef DLCC_NAME(shape_profile_t) dlcc_shapes;
typedef DLCC_NAME(t) dlcc_instance;

/* From and to which byte of the content; the last row is {0, 0}. */
typedef struct dlcc_part_of {
  uint64_t from, to;
} dlcc_part_of;

/* A schedule is a variant of a shape profile; tables have that of number
 * `profile * variant_count + variant` there. What it reads of the content, and the hash of that. */
typedef struct dlcc_reading {
  const dlcc_part_of *parts;
  uint64_t hash;
} dlcc_reading;

/* Of a packed weights file. */
typedef struct dlcc_packed_sizes {
  uint64_t content; /* bytes that come out */
  uint64_t work;    /* bytes of memory that unpacking takes beside it */
} dlcc_packed_sizes;

#define dlcc_model_info DLCC_NAME(model_info)
#define dlcc_readings DLCC_NAME(readings)
#define dlcc_packed DLCC_NAME(packed)

extern DLCC_HIDDEN const dlcc_info dlcc_model_info;
extern DLCC_HIDDEN const dlcc_reading dlcc_readings[]; /* if schedules read parts of the weights */
extern DLCC_HIDDEN const dlcc_packed_sizes dlcc_packed; /* if the weights file is packed */
extern DLCC_HIDDEN const char DLCC_NAME(weights_image)[]; /* if it is part of the library */

#endif
