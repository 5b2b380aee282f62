/* Runs on a GPU, with tensors in the host's memory or in the device's. */
#ifndef DLCC_CUDA_RUN_H
#define DLCC_CUDA_RUN_H

/* The calling thread is alone with the instance, in its context, until dlcc_leave. */
static dlcc_status dlcc_enter(dlcc_instance *instance) {
  pthread_mutex_lock(&instance->lock);
  const dlcc_status status = dlcc_context_enter(instance->resident->context);
  if (status != DLCC_CODE(OK)) pthread_mutex_unlock(&instance->lock);
  return status;
}

static void dlcc_leave(dlcc_instance *instance) {
  dlcc_context_leave();
  pthread_mutex_unlock(&instance->lock);
}

/* Makes `stream` wait for a run on device memory: it uses the arena, the staged tensors. */
static dlcc_status dlcc_wait(dlcc_instance *instance, dlcc_handle stream) {
  if (!instance->pending) return DLCC_CODE(OK);
  return DLCC_CU(cuStreamWaitEvent, stream, instance->event, 0);
}

static dlcc_status dlcc_check_host_call(const dlcc_instance *instance, const void *const *inputs,
                                        void *const *outputs) {
  if (instance == NULL) return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the instance is NULL");
  return dlcc_check_tensors(instance->shapes, inputs, outputs);
}

static dlcc_status dlcc_copy_in(dlcc_instance *instance, const void *const *inputs) {
  dlcc_status status = dlcc_wait(instance, instance->stream);
  for (uint32_t i = 0; i < dlcc_model_info.input_count; i++) {
    const size_t bytes = (size_t)instance->shapes->inputs[i].bytes;
    if (bytes > 0)
      DLCC_CU_THEN(status, cuMemcpyHtoDAsync_v2, instance->staged[i], inputs[i], bytes,
                   instance->stream);
  }
  return status;
}

/* Waits for everything, also where something has failed: a copy into the caller's memory may be
 * under way. */
static dlcc_status dlcc_copy_out(dlcc_instance *instance, void *const *outputs,
                                 dlcc_status status) {
  const dlcc_address *staged = instance->staged + dlcc_model_info.input_count;
  for (uint32_t i = 0; i < dlcc_model_info.output_count; i++) {
    const size_t bytes = (size_t)instance->shapes->outputs[i].bytes;
    if (bytes > 0)
      DLCC_CU_THEN(status, cuMemcpyDtoHAsync_v2, outputs[i], staged[i], bytes, instance->stream);
  }
  if (status == DLCC_CODE(OK)) {
    status = DLCC_CU(cuStreamSynchronize, instance->stream);
    if (status == DLCC_CODE(OK)) instance->pending = 0;
  } else {
    dlcc_driver.cuStreamSynchronize(instance->stream);
  }
  return status;
}

DLCC_API dlcc_status DLCC_NAME(run)(dlcc_instance *instance, const void *const *inputs,
                                    void *const *outputs) {
  dlcc_status status = dlcc_check_host_call(instance, inputs, outputs);
  if (status == DLCC_CODE(OK)) status = dlcc_enter(instance);
  if (status != DLCC_CODE(OK)) return status;
  status = dlcc_copy_in(instance, inputs);
  if (status == DLCC_CODE(OK)) status = dlcc_graph_bind(&instance->graph, instance->staged);
  DLCC_CU_THEN(status, cuGraphLaunch, instance->graph.executable, instance->stream);
  status = dlcc_copy_out(instance, outputs, status);
  dlcc_leave(instance);
  return status;
}

/* Steps one by one, with an event before the first and after each. */
static dlcc_status dlcc_profile_steps(dlcc_instance *instance, dlcc_handle *events) {
  dlcc_status status = DLCC_CODE(OK);
  for (uint32_t i = 0; i <= instance->variant->step_count && status == DLCC_CODE(OK); i++) {
    if (i > 0)
      status = dlcc_graph_step(&instance->graph, i - 1, instance->staged, instance->stream);
    DLCC_CU_THEN(status, cuEventCreate, &events[i], 0);
    DLCC_CU_THEN(status, cuEventRecord, events[i], instance->stream);
  }
  return status;
}

static dlcc_status dlcc_profile_read(const dlcc_instance *instance, const dlcc_handle *events,
                                     uint64_t *ns_per_step) {
  dlcc_status status = DLCC_CODE(OK);
  for (uint32_t i = 0; i < instance->variant->step_count && status == DLCC_CODE(OK); i++) {
    float milliseconds = 0;
    status = DLCC_CU(cuEventElapsedTime, &milliseconds, events[i], events[i + 1]);
    ns_per_step[i] = (uint64_t)((double)milliseconds * 1e6);
  }
  return status;
}

DLCC_API dlcc_status DLCC_NAME(profile)(dlcc_instance *instance, const void *const *inputs,
                                        void *const *outputs, uint64_t *ns_per_step) {
  dlcc_status status = dlcc_check_host_call(instance, inputs, outputs);
  if (status != DLCC_CODE(OK)) return status;
  const uint32_t steps = instance->variant->step_count;
  if (ns_per_step == NULL && steps > 0)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "ns_per_step is NULL");
  dlcc_handle *events = calloc(steps + 1, sizeof *events);
  if (events == NULL) return dlcc_fail(DLCC_CODE(OUT_OF_MEMORY), "no memory for %u events", steps);
  status = dlcc_enter(instance);
  if (status == DLCC_CODE(OK)) {
    status = dlcc_copy_in(instance, inputs);
    if (status == DLCC_CODE(OK)) status = dlcc_profile_steps(instance, events);
    status = dlcc_copy_out(instance, outputs, status);
    if (status == DLCC_CODE(OK)) status = dlcc_profile_read(instance, events, ns_per_step);
    for (uint32_t i = 0; i <= steps; i++)
      if (events[i] != NULL) dlcc_driver.cuEventDestroy_v2(events[i]);
    dlcc_leave(instance);
  }
  free(events);
  return status;
}

/* Where a run finds a tensor of the caller's: there, or staged if kernels could not read it there.
 * Addresses that the last run had have been checked. */
static dlcc_status dlcc_place_of(const dlcc_instance *instance, uint32_t number,
                                 const void *address, dlcc_address *place) {
  const dlcc_tensor *tensor = dlcc_border_tensor(instance, number);
  *place = (uintptr_t)address;
  if (tensor->bytes > 0 && *place != instance->graph.bound[number] &&
      dlcc_device_of(*place) != instance->machine.ordinal)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "%s \"%s\" is not in the memory of device %d",
                     number < dlcc_model_info.input_count ? "input" : "output", tensor->name,
                     instance->machine.ordinal);
  if (tensor->bytes == 0 || *place % DLCC_TENSOR_ALIGNMENT != 0) *place = instance->staged[number];
  return DLCC_CODE(OK);
}

static dlcc_status dlcc_places(dlcc_instance *instance, const void *const *inputs,
                               void *const *outputs) {
  const uint32_t input_count = dlcc_model_info.input_count;
  dlcc_status status = DLCC_CODE(OK);
  for (uint32_t i = 0; i < dlcc_border() && status == DLCC_CODE(OK); i++)
    status = dlcc_place_of(instance, i, i < input_count ? inputs[i] : outputs[i - input_count],
                           &instance->tensors[i]);
  return status;
}

/* Whether a tensor of a run on device memory is staged, and has to be copied. */
static int dlcc_copied(const dlcc_instance *instance, uint32_t number) {
  return instance->tensors[number] == instance->staged[number] &&
         dlcc_border_tensor(instance, number)->bytes > 0;
}

static dlcc_status dlcc_launch(dlcc_instance *instance, const void *const *inputs,
                               void *const *outputs, dlcc_handle stream) {
  const uint32_t input_count = dlcc_model_info.input_count;
  dlcc_status status = dlcc_places(instance, inputs, outputs);
  if (status == DLCC_CODE(OK)) status = dlcc_wait(instance, stream);
  for (uint32_t i = 0; i < input_count; i++)
    if (dlcc_copied(instance, i))
      DLCC_CU_THEN(status, cuMemcpyDtoDAsync_v2, instance->staged[i], (uintptr_t)inputs[i],
                   (size_t)instance->shapes->inputs[i].bytes, stream);
  if (status == DLCC_CODE(OK)) status = dlcc_graph_bind(&instance->graph, instance->tensors);
  DLCC_CU_THEN(status, cuGraphLaunch, instance->graph.executable, stream);
  for (uint32_t i = 0; i < dlcc_model_info.output_count; i++)
    if (dlcc_copied(instance, input_count + i))
      DLCC_CU_THEN(status, cuMemcpyDtoDAsync_v2, (uintptr_t)outputs[i],
                   instance->staged[input_count + i], (size_t)instance->shapes->outputs[i].bytes,
                   stream);
  const int code = dlcc_driver.cuEventRecord(instance->event, stream); /* also after a failure */
  if (code == 0) instance->pending = 1;
  return status == DLCC_CODE(OK) ? dlcc_driver_checked(code, "cuEventRecord") : status;
}

DLCC_API dlcc_status DLCC_NAME(run_device)(dlcc_instance *instance, const void *const *inputs,
                                           void *const *outputs, void *stream) {
  dlcc_status status = dlcc_check_host_call(instance, inputs, outputs);
  if (status == DLCC_CODE(OK)) status = dlcc_enter(instance);
  if (status != DLCC_CODE(OK)) return status;
  status = dlcc_launch(instance, inputs, outputs, stream);
  dlcc_leave(instance);
  return status;
}

DLCC_API int DLCC_NAME(device)(const dlcc_instance *instance) {
  return instance == NULL ? -1 : instance->machine.ordinal;
}

DLCC_API int DLCC_NAME(threads)(const dlcc_instance *instance) { return instance != NULL; }

DLCC_API dlcc_status DLCC_NAME(pin)(dlcc_instance *instance, const int *cpus) {
  (void)cpus; /* there are no worker threads */
  if (instance == NULL) return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the instance is NULL");
  return DLCC_CODE(OK);
}

DLCC_API dlcc_status DLCC_NAME(create_on)(const char *weights_path, int device, uint32_t profile,
                                          const char *variant, void *arena, size_t arena_bytes,
                                          dlcc_instance **out) {
  const dlcc_request request = {.weights_path = weights_path,
                                .device = device,
                                .profile = profile,
                                .variant = variant,
                                .arena = arena,
                                .arena_bytes = arena_bytes};
  return dlcc_create(&request, out);
}

#endif
