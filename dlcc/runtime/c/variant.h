/* Which of the library's variants an instance runs. Fewer features never change the bytes of a
 * network on integer codes, so neither does the choice. A machine's files define before this
 *
 *   dlcc_machine                                  what has the features
 *   dlcc_machine_runs(machine, features)          whether it has them all
 *   dlcc_machine_refuse(machine, what, features)  the error for `what`, which it does not run */
#ifndef DLCC_VARIANT_H
#define DLCC_VARIANT_H

/* The number of the best variant that the machine runs. */
static dlcc_status dlcc_variant_best(const dlcc_machine *machine, uint32_t *number) {
  for (uint32_t i = dlcc_model_info.variant_count; i-- > 0;) {
    *number = i;
    if (dlcc_machine_runs(machine, dlcc_model_info.variants[i].features)) return DLCC_CODE(OK);
  }
  return dlcc_machine_refuse(machine, "the library", dlcc_model_info.features);
}

/* The number of the variant called `name`. */
static dlcc_status dlcc_variant_named(const dlcc_machine *machine, const char *name,
                                      uint32_t *number) {
  const dlcc_info *info = &dlcc_model_info;
  char names[256] = "", what[64];
  size_t used = 0;
  for (uint32_t i = 0; i < info->variant_count; i++) {
    *number = i;
    if (strcmp(info->variants[i].name, name) == 0) {
      if (dlcc_machine_runs(machine, info->variants[i].features)) return DLCC_CODE(OK);
      snprintf(what, sizeof what, "variant %s", name);
      return dlcc_machine_refuse(machine, what, info->variants[i].features);
    }
    const int written = snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "",
                                 info->variants[i].name);
    if (written > 0 && (size_t)written < sizeof names - used) used += (size_t)written;
  }
  return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "there is no variant \"%s\", the library holds %s",
                   name, names);
}

/* `name` NULL: the best. */
static dlcc_status dlcc_variant_choose(const dlcc_machine *machine, const char *name,
                                       uint32_t *number) {
  return name != NULL ? dlcc_variant_named(machine, name, number)
                      : dlcc_variant_best(machine, number);
}

#endif
