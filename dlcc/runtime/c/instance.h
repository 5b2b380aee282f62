/* The public functions. */
#ifndef DLCC_INSTANCE_H
#define DLCC_INSTANCE_H

#define DLCC_API __attribute__((visibility("default")))

struct DLCC_NAME(instance) {
  dlcc_pool pool;
  pthread_mutex_t lock; /* one run at a time */
  dlcc_weights weights;
  void *own_arena; /* NULL if the caller gave one */
  char *arena;
  const dlcc_variant *variant;
  const dlcc_step *steps; /* the variant's */
  const char *varying;    /* a feature that it needs of the thread that runs it, or NULL */
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
  const uint64_t needed = dlcc_model_info.arena_bytes;
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

static dlcc_status dlcc_instance_open(dlcc_instance *instance, const char *weights_path,
                                      int threads, void *arena, size_t arena_bytes) {
  dlcc_status status = dlcc_weights_open(&instance->weights, weights_path);
  if (status == DLCC_CODE(OK)) status = dlcc_arena_open(instance, arena, arena_bytes);
  if (status != DLCC_CODE(OK)) return status;
  if (threads == 0) {
    const int cpus = dlcc_cpu_count(), most = dlcc_most_threads();
    threads = cpus < most ? cpus : most;
  }
  return dlcc_pool_start(&instance->pool, threads);
}

/* `variant` NULL: the best. */
static dlcc_status dlcc_create(const char *weights_path, int threads, const char *variant,
                               void *arena, size_t arena_bytes, dlcc_instance **out) {
  if (out == NULL) return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "out is NULL");
  *out = NULL;
  dlcc_status status = dlcc_check_threads(threads);
  uint32_t number = 0;
  if (status == DLCC_CODE(OK))
    status = variant != NULL ? dlcc_variant_named(variant, &number) : dlcc_variant_best(&number);
  if (status != DLCC_CODE(OK)) return status;
  void *memory;
  if (posix_memalign(&memory, _Alignof(dlcc_instance), sizeof(dlcc_instance)) != 0)
    return dlcc_fail(DLCC_CODE(OUT_OF_MEMORY), "no memory for an instance");
  memset(memory, 0, sizeof(dlcc_instance));
  dlcc_instance *instance = memory;
  instance->variant = &dlcc_model_info.variants[number];
  instance->steps = dlcc_variant_steps[number];
  instance->varying = dlcc_cpu_varying(instance->variant->features);
  instance->weights.variant = number;
  pthread_mutex_init(&instance->lock, NULL);
  status = dlcc_instance_open(instance, weights_path, threads, arena, arena_bytes);
  if (status != DLCC_CODE(OK)) {
    DLCC_NAME(destroy)(instance);
    return status;
  }
  *out = instance;
  return DLCC_CODE(OK);
}

static dlcc_status dlcc_check_tensor(const dlcc_tensor *tensor, const void *address,
                                     const char *role) {
  if (tensor->bytes == 0) return DLCC_CODE(OK);
  if (address == NULL)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "%s \"%s\" is NULL", role, tensor->name);
  if ((uintptr_t)address % tensor->alignment != 0)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "%s \"%s\" must be aligned to %u bytes for %s",
                     role, tensor->name, tensor->alignment, tensor->dtype);
  return DLCC_CODE(OK);
}

static int dlcc_overlap(const void *a, uint64_t a_bytes, const void *b, uint64_t b_bytes) {
  const uintptr_t first = (uintptr_t)a, second = (uintptr_t)b;
  return first < second + b_bytes && second < first + a_bytes;
}

static dlcc_status dlcc_check_overlap(const dlcc_info *info, uint32_t output,
                                      const void *const *inputs, void *const *outputs) {
  const dlcc_tensor *tensor = &info->outputs[output];
  for (uint32_t i = 0; i < info->input_count; i++) {
    if (dlcc_overlap(outputs[output], tensor->bytes, inputs[i], info->inputs[i].bytes))
      return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "output \"%s\" overlaps input \"%s\"",
                       tensor->name, info->inputs[i].name);
  }
  for (uint32_t i = 0; i < output; i++) {
    if (dlcc_overlap(outputs[output], tensor->bytes, outputs[i], info->outputs[i].bytes))
      return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "output \"%s\" overlaps output \"%s\"",
                       tensor->name, info->outputs[i].name);
  }
  return DLCC_CODE(OK);
}

static dlcc_status dlcc_check_call(const dlcc_instance *instance, const void *const *inputs,
                                   void *const *outputs) {
  const dlcc_info *info = &dlcc_model_info;
  if (instance == NULL) return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the instance is NULL");
  if (instance->varying != NULL && dlcc_cpu_has(instance->varying) != 1)
    return dlcc_fail(DLCC_CODE(UNSUPPORTED_CPU),
                     "variant %s needs %s, which this thread no longer has; run it in a thread "
                     "whose vectors are as long as when the instance was made",
                     instance->variant->name, instance->varying);
  if (inputs == NULL && info->input_count > 0)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "inputs is NULL");
  if (outputs == NULL && info->output_count > 0)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "outputs is NULL");
  dlcc_status status = DLCC_CODE(OK);
  for (uint32_t i = 0; i < info->input_count && status == DLCC_CODE(OK); i++)
    status = dlcc_check_tensor(&info->inputs[i], inputs[i], "input");
  for (uint32_t i = 0; i < info->output_count && status == DLCC_CODE(OK); i++)
    status = dlcc_check_tensor(&info->outputs[i], outputs[i], "output");
  for (uint32_t i = 0; i < info->output_count && status == DLCC_CODE(OK); i++)
    status = dlcc_check_overlap(info, i, inputs, outputs);
  return status;
}

static dlcc_status dlcc_step_failed(const dlcc_variant *variant, uint32_t step, int32_t code) {
  return dlcc_fail(DLCC_CODE(KERNEL_FAILED), "the kernel of step %u (%s) returned %d", step,
                   variant->steps[step], code);
}

DLCC_API const dlcc_info *DLCC_NAME(info)(void) { return &dlcc_model_info; }

DLCC_API const char *DLCC_NAME(error)(void) { return dlcc_error_text; }

DLCC_API dlcc_status DLCC_NAME(create)(const char *weights_path, int threads, dlcc_instance **out) {
  return dlcc_create(weights_path, threads, NULL, NULL, 0, out);
}

DLCC_API dlcc_status DLCC_NAME(create_in)(const char *weights_path, int threads, void *arena,
                                          size_t arena_bytes, dlcc_instance **out) {
  if (arena == NULL) {
    if (out != NULL) *out = NULL;
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the arena is NULL");
  }
  return dlcc_create(weights_path, threads, NULL, arena, arena_bytes, out);
}

DLCC_API dlcc_status DLCC_NAME(create_variant)(const char *weights_path, int threads,
                                               const char *variant, dlcc_instance **out) {
  if (variant == NULL) {
    if (out != NULL) *out = NULL;
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the variant is NULL");
  }
  return dlcc_create(weights_path, threads, variant, NULL, 0, out);
}

DLCC_API int DLCC_NAME(threads)(const dlcc_instance *instance) {
  return instance == NULL ? 0 : (int)instance->pool.threads;
}

DLCC_API const dlcc_variant *DLCC_NAME(variant)(const dlcc_instance *instance) {
  return instance == NULL ? NULL : instance->variant;
}

DLCC_API dlcc_status DLCC_NAME(pin)(dlcc_instance *instance, const int *cpus) {
  if (instance == NULL) return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the instance is NULL");
  return dlcc_pool_pin(&instance->pool, cpus);
}

DLCC_API void DLCC_NAME(destroy)(dlcc_instance *instance) {
  if (instance == NULL) return;
  dlcc_pool_stop(&instance->pool);
  free(instance->own_arena);
  dlcc_weights_close(&instance->weights);
  pthread_mutex_destroy(&instance->lock);
  free(instance);
}

DLCC_API dlcc_status DLCC_NAME(run)(dlcc_instance *instance, const void *const *inputs,
                                    void *const *outputs) {
  dlcc_status status = dlcc_check_call(instance, inputs, outputs);
  if (status != DLCC_CODE(OK)) return status;
  const dlcc_frame frame = {inputs, outputs, instance->arena, instance->weights.content};
  pthread_mutex_lock(&instance->lock);
  const uint32_t float_state = dlcc_cpu_float_enter();
  for (uint32_t i = 0; i < instance->variant->step_count && status == DLCC_CODE(OK); i++) {
    const int32_t code = dlcc_pool_run(&instance->pool, &instance->steps[i], &frame);
    if (code != 0) status = dlcc_step_failed(instance->variant, i, code);
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
  uint64_t before = dlcc_now();
  for (uint32_t i = 0; i < instance->variant->step_count && status == DLCC_CODE(OK); i++) {
    const int32_t code = dlcc_pool_run(&instance->pool, &instance->steps[i], &frame);
    if (code != 0) status = dlcc_step_failed(instance->variant, i, code);
    const uint64_t after = dlcc_now();
    ns_per_step[i] = after - before;
    before = after;
  }
  dlcc_cpu_float_leave(float_state);
  pthread_mutex_unlock(&instance->lock);
  return status;
}

#endif
