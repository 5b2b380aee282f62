/* The public functions that all machines have in common. A machine's instance.h defines before this
 *
 *   struct DLCC_NAME(instance)             with a `lock`, and the `shapes` and `variant` it runs
 *   dlcc_instance_open(instance, request)  fills one that is zero but for the lock and the shapes
 *   dlcc_instance_close(instance)          undoes that, wherever it ended
 *
 * and, before or after it, the functions threads, pin, run and profile */
#ifndef DLCC_PUBLIC_H
#define DLCC_PUBLIC_H

DLCC_API void DLCC_NAME(destroy)(dlcc_instance *instance) {
  if (instance == NULL) return;
  dlcc_instance_close(instance);
  pthread_mutex_destroy(&instance->lock);
  free(instance);
}

static dlcc_status dlcc_create(const dlcc_request *request, dlcc_instance **out) {
  if (out == NULL) return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "out is NULL");
  *out = NULL;
  dlcc_status status = dlcc_shapes_check(request->profile);
  if (status != DLCC_CODE(OK)) return status;
  void *memory;
  if (posix_memalign(&memory, _Alignof(dlcc_instance), sizeof(dlcc_instance)) != 0)
    return dlcc_fail(DLCC_CODE(OUT_OF_MEMORY), "no memory for an instance");
  memset(memory, 0, sizeof(dlcc_instance));
  dlcc_instance *instance = memory;
  pthread_mutex_init(&instance->lock, NULL);
  instance->shapes = &dlcc_model_info.shape_profiles[request->profile];
  status = dlcc_instance_open(instance, request);
  if (status == DLCC_CODE(OK))
    *out = instance;
  else
    DLCC_NAME(destroy)(instance);
  return status;
}

DLCC_API const dlcc_info *DLCC_NAME(info)(void) { return &dlcc_model_info; }

DLCC_API const char *DLCC_NAME(error)(void) { return dlcc_error_text; }

DLCC_API dlcc_status DLCC_NAME(create)(const char *weights_path, int threads, dlcc_instance **out) {
  const dlcc_request request = {.weights_path = weights_path, .threads = threads};
  return dlcc_create(&request, out);
}

DLCC_API dlcc_status DLCC_NAME(create_in)(const char *weights_path, int threads, void *arena,
                                          size_t arena_bytes, dlcc_instance **out) {
  if (arena == NULL) {
    if (out != NULL) *out = NULL;
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the arena is NULL");
  }
  const dlcc_request request = {.weights_path = weights_path,
                                .threads = threads,
                                .arena = arena,
                                .arena_bytes = arena_bytes};
  return dlcc_create(&request, out);
}

DLCC_API dlcc_status DLCC_NAME(create_variant)(const char *weights_path, int threads,
                                               const char *variant, dlcc_instance **out) {
  if (variant == NULL) {
    if (out != NULL) *out = NULL;
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the variant is NULL");
  }
  const dlcc_request request = {
      .weights_path = weights_path, .threads = threads, .variant = variant};
  return dlcc_create(&request, out);
}

DLCC_API dlcc_status DLCC_NAME(create_shape_profile)(const char *weights_path, int threads,
                                                     uint32_t profile, const char *variant,
                                                     void *arena, size_t arena_bytes,
                                                     dlcc_instance **out) {
  const dlcc_request request = {.weights_path = weights_path,
                                .threads = threads,
                                .profile = profile,
                                .variant = variant,
                                .arena = arena,
                                .arena_bytes = arena_bytes};
  return dlcc_create(&request, out);
}

DLCC_API dlcc_status DLCC_NAME(find_shape_profile)(const int64_t *const *shapes,
                                                   uint32_t *profile) {
  return dlcc_shapes_find(shapes, profile);
}

DLCC_API const dlcc_shapes *DLCC_NAME(shape_profile)(const dlcc_instance *instance) {
  return instance == NULL ? NULL : instance->shapes;
}

DLCC_API const dlcc_variant *DLCC_NAME(variant)(const dlcc_instance *instance) {
  return instance == NULL ? NULL : instance->variant;
}

#endif
