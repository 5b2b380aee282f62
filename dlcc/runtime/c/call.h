/* What a caller asks for, and the checks of the addresses that it gives. */
#ifndef DLCC_CALL_H
#define DLCC_CALL_H

/* An instance that is to be made. */
typedef struct dlcc_request {
  const char *weights_path; /* NULL: the usual place */
  int threads;
  const char *variant; /* NULL: the best */
  void *arena;         /* NULL: the instance's own */
  size_t arena_bytes;
  uint32_t profile; /* number of the shape profile */
  int device;       /* its number, where there may be several */
} dlcc_request;

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

static dlcc_status dlcc_check_overlap(const dlcc_shapes *shapes, uint32_t output,
                                      const void *const *inputs, void *const *outputs) {
  const dlcc_tensor *tensor = &shapes->outputs[output];
  for (uint32_t i = 0; i < dlcc_model_info.input_count; i++) {
    if (dlcc_overlap(outputs[output], tensor->bytes, inputs[i], shapes->inputs[i].bytes))
      return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "output \"%s\" overlaps input \"%s\"",
                       tensor->name, shapes->inputs[i].name);
  }
  for (uint32_t i = 0; i < output; i++) {
    if (dlcc_overlap(outputs[output], tensor->bytes, outputs[i], shapes->outputs[i].bytes))
      return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "output \"%s\" overlaps output \"%s\"",
                       tensor->name, shapes->outputs[i].name);
  }
  return DLCC_CODE(OK);
}

static dlcc_status dlcc_check_tensors(const dlcc_shapes *shapes, const void *const *inputs,
                                      void *const *outputs) {
  const dlcc_info *info = &dlcc_model_info;
  if (inputs == NULL && info->input_count > 0)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "inputs is NULL");
  if (outputs == NULL && info->output_count > 0)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "outputs is NULL");
  dlcc_status status = DLCC_CODE(OK);
  for (uint32_t i = 0; i < info->input_count && status == DLCC_CODE(OK); i++)
    status = dlcc_check_tensor(&shapes->inputs[i], inputs[i], "input");
  for (uint32_t i = 0; i < info->output_count && status == DLCC_CODE(OK); i++)
    status = dlcc_check_tensor(&shapes->outputs[i], outputs[i], "output");
  for (uint32_t i = 0; i < info->output_count && status == DLCC_CODE(OK); i++)
    status = dlcc_check_overlap(shapes, i, inputs, outputs);
  return status;
}

#endif
