/* Which of the library's variants an instance runs. Fewer features never change the bytes of a
 * network on integer codes, so neither does the choice. */
#ifndef DLCC_VARIANT_H
#define DLCC_VARIANT_H

/* The number of the best variant that this CPU runs. */
static dlcc_status dlcc_variant_best(uint32_t *number) {
  for (uint32_t i = dlcc_model_info.variant_count; i-- > 0;) {
    *number = i;
    if (dlcc_cpu_runs(dlcc_model_info.variants[i].features)) return DLCC_CODE(OK);
  }
  return dlcc_cpu_refuse("the library", dlcc_model_info.features);
}

/* The number of the variant called `name`. */
static dlcc_status dlcc_variant_named(const char *name, uint32_t *number) {
  const dlcc_info *info = &dlcc_model_info;
  char names[256] = "", what[64];
  size_t used = 0;
  for (uint32_t i = 0; i < info->variant_count; i++) {
    *number = i;
    if (strcmp(info->variants[i].name, name) == 0) {
      if (dlcc_cpu_runs(info->variants[i].features)) return DLCC_CODE(OK);
      snprintf(what, sizeof what, "variant %s", name);
      return dlcc_cpu_refuse(what, info->variants[i].features);
    }
    const int written = snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "",
                                 info->variants[i].name);
    if (written > 0 && (size_t)written < sizeof names - used) used += (size_t)written;
  }
  return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "there is no variant \"%s\", the library holds %s",
                   name, names);
}

#endif
