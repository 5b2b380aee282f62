/* An instance that runs on a GPU. */
#ifndef DLCC_CUDA_INSTANCE_H
#define DLCC_CUDA_INSTANCE_H

#define DLCC_DEVICE_ALIGNMENT 256 /* of memory that the driver allocates */
#define DLCC_TENSOR_ALIGNMENT 16  /* that kernels rely on */

struct DLCC_NAME(instance) {
  pthread_mutex_t lock; /* one run at a time */
  const dlcc_shapes *shapes;
  const dlcc_variant *variant;
  dlcc_machine machine;
  dlcc_resident *resident;
  dlcc_graph graph;
  dlcc_handle stream; /* of runs on host memory */
  dlcc_handle event;  /* after the last run on device memory */
  int pending;        /* such a run may be under way */
  dlcc_address own_arena; /* 0 if the caller gave one */
  dlcc_address stage;     /* inputs and outputs, for callers that have them elsewhere */
  dlcc_address *staged;   /* where each of them is there */
  dlcc_address *tensors;  /* where they are in the present run */
};

/* The device that memory belongs to; -1: it is no memory of a device. */
static int dlcc_device_of(dlcc_address address) {
  int type = 0, managed = 0, ordinal = -1;
  if (dlcc_driver.cuPointerGetAttribute(&type, DLCC_CU_MEMORY_TYPE, address) != 0) return -1;
  if (dlcc_driver.cuPointerGetAttribute(&managed, DLCC_CU_IS_MANAGED, address) != 0) managed = 0;
  if (type != DLCC_CU_DEVICE_MEMORY && managed == 0) return -1;
  if (dlcc_driver.cuPointerGetAttribute(&ordinal, DLCC_CU_DEVICE_ORDINAL, address) != 0) return -1;
  return ordinal;
}

static dlcc_status dlcc_arena_check(const dlcc_instance *instance, const dlcc_request *request) {
  const uint64_t needed = instance->shapes->arena_bytes;
  const dlcc_machine *machine = &instance->machine;
  if ((uintptr_t)request->arena % DLCC_DEVICE_ALIGNMENT != 0)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the arena must be aligned to %d bytes",
                     DLCC_DEVICE_ALIGNMENT);
  if (request->arena_bytes < needed)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the arena has %llu bytes, %llu are needed",
                     (unsigned long long)request->arena_bytes, (unsigned long long)needed);
  if (dlcc_device_of((uintptr_t)request->arena) != machine->ordinal)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the arena must be memory of device %d",
                     machine->ordinal);
  return DLCC_CODE(OK);
}

static dlcc_status dlcc_arena_open(dlcc_instance *instance, const dlcc_request *request) {
  dlcc_status status;
  if (request->arena != NULL) {
    status = dlcc_arena_check(instance, request);
    instance->graph.arena = (uintptr_t)request->arena;
    return status;
  }
  status = dlcc_device_allocate(&instance->own_arena, instance->shapes->arena_bytes, "the arena");
  instance->graph.arena = instance->own_arena;
  return status;
}

static const dlcc_tensor *dlcc_border_tensor(const dlcc_instance *instance, uint32_t number) {
  const uint32_t inputs = dlcc_model_info.input_count;
  return number < inputs ? &instance->shapes->inputs[number]
                         : &instance->shapes->outputs[number - inputs];
}

static dlcc_status dlcc_stage_open(dlcc_instance *instance) {
  const uint32_t count = dlcc_border();
  uint64_t bytes = 0;
  instance->staged = calloc(count + 1, sizeof *instance->staged);
  instance->tensors = calloc(count + 1, sizeof *instance->tensors);
  if (instance->staged == NULL || instance->tensors == NULL)
    return dlcc_fail(DLCC_CODE(OUT_OF_MEMORY), "no memory for an instance");
  for (uint32_t i = 0; i < count; i++) {
    instance->staged[i] = bytes;
    bytes += (dlcc_border_tensor(instance, i)->bytes + DLCC_DEVICE_ALIGNMENT - 1) / DLCC_DEVICE_ALIGNMENT *
             DLCC_DEVICE_ALIGNMENT;
  }
  const dlcc_status status = dlcc_device_allocate(&instance->stage, bytes, "inputs and outputs");
  for (uint32_t i = 0; i < count; i++) instance->staged[i] += instance->stage;
  return status;
}

/* In the context of the device. */
static dlcc_status dlcc_instance_fill(dlcc_instance *instance, const dlcc_request *request) {
  dlcc_status status = dlcc_arena_open(instance, request);
  if (status == DLCC_CODE(OK)) status = dlcc_stage_open(instance);
  DLCC_CU_THEN(status, cuStreamCreate, &instance->stream, DLCC_CU_NON_BLOCKING);
  DLCC_CU_THEN(status, cuEventCreate, &instance->event, DLCC_CU_NO_TIMING);
  if (status == DLCC_CODE(OK)) status = dlcc_graph_open(&instance->graph, instance->staged);
  return status;
}

/* The file is checked for every instance, and read into the device's memory for the first. */
static dlcc_status dlcc_instance_load(dlcc_instance *instance, const char *path, uint32_t number) {
  dlcc_weights weights = {.schedule = number};
  dlcc_status status = dlcc_weights_open(&weights, path);
  if (status == DLCC_CODE(OK))
    status = dlcc_resident_open(&instance->machine, number, weights.content, &instance->resident);
  dlcc_weights_close(&weights);
  return status;
}

static dlcc_status dlcc_instance_open(dlcc_instance *instance, const dlcc_request *request) {
  if (request->threads < 0 || request->threads > 1)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT),
                     "threads is %d, a library for a GPU takes 0 or 1: it starts none",
                     request->threads);
  dlcc_status status = dlcc_machine_open(&instance->machine, request->device);
  uint32_t number = 0;
  if (status == DLCC_CODE(OK))
    status = dlcc_variant_choose(&instance->machine, request->variant, &number);
  if (status != DLCC_CODE(OK)) return status;
  instance->variant = &instance->shapes->variants[number];
  status = dlcc_instance_load(instance, request->weights_path, number);
  if (status != DLCC_CODE(OK)) return status;
  instance->graph.steps = dlcc_schedules[request->profile * dlcc_model_info.variant_count + number];
  instance->graph.step_count = instance->variant->step_count;
  instance->graph.functions = instance->resident->functions;
  instance->graph.weights = instance->resident->weights;
  status = dlcc_context_enter(instance->resident->context);
  if (status != DLCC_CODE(OK)) return status;
  status = dlcc_instance_fill(instance, request);
  dlcc_context_leave();
  return status;
}

/* Errors are left alone as in dlcc_resident_free. */
static void dlcc_instance_close(dlcc_instance *instance) {
  if (instance->resident == NULL) return;
  if (dlcc_context_enter(instance->resident->context) == DLCC_CODE(OK)) {
    if (instance->pending) dlcc_driver.cuEventSynchronize(instance->event);
    dlcc_graph_close(&instance->graph);
    if (instance->event != NULL) dlcc_driver.cuEventDestroy_v2(instance->event);
    if (instance->stream != NULL) dlcc_driver.cuStreamDestroy_v2(instance->stream);
    if (instance->stage != 0) dlcc_driver.cuMemFree_v2(instance->stage);
    if (instance->own_arena != 0) dlcc_driver.cuMemFree_v2(instance->own_arena);
    dlcc_context_leave();
  }
  free(instance->staged);
  free(instance->tensors);
  dlcc_resident_close(instance->resident);
}

#endif
