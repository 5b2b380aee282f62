/* Shape profiles: the shapes for which the network was compiled. */
#ifndef DLCC_SHAPES_H
#define DLCC_SHAPES_H

/* Whether there is a profile of that number. */
static dlcc_status dlcc_shapes_check(uint32_t profile) {
  const uint32_t count = dlcc_model_info.shape_profile_count;
  if (profile < count) return DLCC_CODE(OK);
  return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "there is no shape profile %u, the library holds %u",
                   (unsigned)profile, (unsigned)count);
}

/* Whether the inputs of a profile have these shapes. */
static int dlcc_shapes_fit(const dlcc_shapes *profile, const int64_t *const *shapes) {
  for (uint32_t i = 0; i < dlcc_model_info.input_count; i++) {
    const dlcc_tensor *tensor = &profile->inputs[i];
    for (uint32_t axis = 0; axis < tensor->rank; axis++)
      if (shapes[i][axis] != tensor->shape[axis]) return 0;
  }
  return 1;
}

/* Writes the shapes of the inputs as "[1, 3], [8]"; what does not fit is cut off. */
static void dlcc_shapes_write(char *text, size_t room, const int64_t *const *shapes) {
  size_t used = 0;
  text[0] = '\0';
  for (uint32_t i = 0; i < dlcc_model_info.input_count; i++) {
    const uint32_t rank = dlcc_model_info.inputs[i].rank;
    for (uint32_t axis = 0; axis < rank || axis == 0; axis++) {
      const char *before = axis > 0 ? ", " : i > 0 ? ", [" : "[";
      const char *after = axis + 1 >= rank ? "]" : "";
      const int written =
          rank == 0 ? snprintf(text + used, room - used, "%s]", before)
                    : snprintf(text + used, room - used, "%s%lld%s", before,
                               (long long)shapes[i][axis], after);
      if (written < 0 || (size_t)written >= room - used) return;
      used += (size_t)written;
    }
  }
}

/* The first profile whose inputs have these shapes. */
static dlcc_status dlcc_shapes_find(const int64_t *const *shapes, uint32_t *profile) {
  const dlcc_info *info = &dlcc_model_info;
  if (profile == NULL) return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "profile is NULL");
  if (shapes == NULL && info->input_count > 0)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "shapes is NULL");
  for (uint32_t i = 0; i < info->input_count; i++)
    if (shapes[i] == NULL && info->inputs[i].rank > 0)
      return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "the shape of input \"%s\" is NULL",
                       info->inputs[i].name);
  for (uint32_t i = 0; i < info->shape_profile_count; i++) {
    *profile = i;
    if (dlcc_shapes_fit(&info->shape_profiles[i], shapes)) return DLCC_CODE(OK);
  }
  char given[160];
  dlcc_shapes_write(given, sizeof given, shapes);
  return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT),
                   "no shape profile is for inputs of shapes %s; compile with --shape for them",
                   given);
}

#endif
