/* An instance that runs on the CPU. */
#ifndef DLCC_INSTANCE_H
#define DLCC_INSTANCE_H

struct DLCC_NAME(instance) {
  dlcc_pool pool;
  pthread_mutex_t lock; /* one run at a time */
  dlcc_weights weights;
  void *own_arena; /* NULL if the caller gave one */
  char *arena;
  const dlcc_shapes *shapes;
  const dlcc_variant *variant; /* of these shapes */
  const dlcc_step *steps;      /* the variant's */
  const char *varying;         /* a feature that it needs of the thread that runs it, or NULL */
};

static int dlcc_most_threads(void) {
  return DLCC_SINGLE ? 1 : (int)dlcc_model_info.max_threads;
}

static dlcc_status dlcc_check_threads(int threads) {
  const int most = dlcc_most_threads();
  if (threads >= 0 && threads <= most) return DLCC_CODE(OK);
  return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT),
                   "threads is %d, this library runs on 1 to %d (0: choose); "
                   "compile with --threads %d for more",
                   threads, most, threads > most ? threads : most + 1);
}

static dlcc_status dlcc_arena_open(dlcc_instance *instance, void *arena, size_t arena_bytes) {
  const uint64_t needed = instance->shapes->arena_bytes;
  if (arena != NULL) {
    if ((uintptr_t)arena % DLCC_ALIGNMENT != 0)
      return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the arena must be aligned to %d bytes",
                       DLCC_ALIGNMENT);
    if (arena_bytes < needed)
      return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the arena has %llu bytes, %llu are needed",
                       (unsigned long long)arena_bytes, (unsigned long long)needed);
    instance->arena = arena;
    return DLCC_CODE(OK);
  }
  const dlcc_status status = dlcc_allocate(&instance->own_arena, needed, "the arena");
  instance->arena = instance->own_arena;
  return status;
}

static dlcc_status dlcc_instance_open(dlcc_instance *instance, const dlcc_request *request) {
  int threads = request->threads;
  dlcc_status status = dlcc_check_threads(threads);
  uint32_t number = 0;
  if (status == DLCC_CODE(OK)) status = dlcc_variant_choose(NULL, request->variant, &number);
  if (status != DLCC_CODE(OK)) return status;
  instance->variant = &instance->shapes->variants[number];
  instance->varying = dlcc_cpu_varying(instance->variant->features);
  number += request->profile * dlcc_model_info.variant_count;
  instance->steps = dlcc_schedules[number];
  instance->weights.schedule = number;
  status = dlcc_weights_open(&instance->weights, request->weights_path);
  if (status == DLCC_CODE(OK))
    status = dlcc_arena_open(instance, request->arena, request->arena_bytes);
  if (status != DLCC_CODE(OK)) return status;
  if (threads == 0) {
    const int cpus = dlcc_cpu_count(), most = dlcc_most_threads();
    threads = cpus < most ? cpus : most;
  }
  return dlcc_pool_start(&instance->pool, threads);
}

static void dlcc_instance_close(dlcc_instance *instance) {
  dlcc_pool_stop(&instance->pool);
  free(instance->own_arena);
  dlcc_weights_close(&instance->weights);
}

static dlcc_status dlcc_check_call(const dlcc_instance *instance, const void *const *inputs,
                                   void *const *outputs) {
  if (instance == NULL) return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the instance is NULL");
  if (instance->varying != NULL && dlcc_cpu_has(instance->varying) != 1)
    return dlcc_fail(DLCC_CODE(UNSUPPORTED_CPU),
                     "variant %s needs %s, which this thread no longer has; run it in a thread "
                     "whose vectors are as long as when the instance was made",
                     instance->variant->name, instance->varying);
  return dlcc_check_tensors(instance->shapes, inputs, outputs);
}

static dlcc_status dlcc_step_failed(const dlcc_variant *variant, uint32_t step, int32_t code) {
  return dlcc_fail(DLCC_CODE(KERNEL_FAILED), "the kernel of step %u (%s) returned %d", step,
                   variant->steps[step], code);
}

DLCC_API int DLCC_NAME(threads)(const dlcc_instance *instance) {
  return instance == NULL ? 0 : (int)instance->pool.threads;
}

DLCC_API dlcc_status DLCC_NAME(pin)(dlcc_instance *instance, const int *cpus) {
  if (instance == NULL) return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the instance is NULL");
  return dlcc_pool_pin(&instance->pool, cpus);
}

DLCC_API dlcc_status DLCC_NAME(run)(dlcc_instance *instance, const void *const *inputs,
                                    void *const *outputs) {
  dlcc_status status = dlcc_check_call(instance, inputs, outputs);
  if (status != DLCC_CODE(OK)) return status;
  const dlcc_frame frame = {inputs, outputs, instance->arena, instance->weights.content};
  pthread_mutex_lock(&instance->lock);
  const uint32_t float_state = dlcc_cpu_float_enter();
  uint32_t i = 0;
  while (i < instance->variant->step_count && status == DLCC_CODE(OK)) {
    const dlcc_step *step = &instance->steps[i];
    const int32_t code = dlcc_pool_run(&instance->pool, step, &frame);
    if (code != 0) status = dlcc_step_failed(instance->variant, i, code);
    i = step->next == NULL ? i + 1 : step->next(&frame);
  }
  dlcc_cpu_float_leave(float_state);
  pthread_mutex_unlock(&instance->lock);
  return status;
}

DLCC_API dlcc_status DLCC_NAME(profile)(dlcc_instance *instance, const void *const *inputs,
                                        void *const *outputs, uint64_t *ns_per_step) {
  dlcc_status status = dlcc_check_call(instance, inputs, outputs);
  if (status != DLCC_CODE(OK)) return status;
  if (ns_per_step == NULL && instance->variant->step_count > 0)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "ns_per_step is NULL");
  const dlcc_frame frame = {inputs, outputs, instance->arena, instance->weights.content};
  pthread_mutex_lock(&instance->lock);
  const uint32_t float_state = dlcc_cpu_float_enter();
  for (uint32_t i = 0; i < instance->variant->step_count; i++) ns_per_step[i] = 0;
  uint64_t before = dlcc_now();
  uint32_t i = 0;
  while (i < instance->variant->step_count && status == DLCC_CODE(OK)) {
    const dlcc_step *step = &instance->steps[i];
    const int32_t code = dlcc_pool_run(&instance->pool, step, &frame);
    if (code != 0) status = dlcc_step_failed(instance->variant, i, code);
    const uint64_t after = dlcc_now();
    ns_per_step[i] += after - before; /* of all its runs, where it is in a loop */
    before = after;
    i = step->next == NULL ? i + 1 : step->next(&frame);
  }
  dlcc_cpu_float_leave(float_state);
  pthread_mutex_unlock(&instance->lock);
  return status;
}

#endif
