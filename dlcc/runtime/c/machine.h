/* The CPU, as the choice of a variant sees it: see variant.h. */
#ifndef DLCC_MACHINE_H
#define DLCC_MACHINE_H

typedef void dlcc_machine; /* there is one CPU, and nothing to tell of it */

/* Whether the CPU has all features and the system lets this process use them. */
static int dlcc_machine_runs(const dlcc_machine *machine, const char *const *features) {
  (void)machine;
  for (size_t i = 0; features[i] != NULL; i++)
    if (dlcc_cpu_has(features[i]) != 1) return 0;
  for (size_t i = 0; features[i] != NULL; i++)
    if (dlcc_cpu_permit(features[i]) != 0) return 0;
  return 1;
}

/* One of the features in which threads may differ; NULL if there is none. */
static const char *dlcc_cpu_varying(const char *const *features) {
  while (*features != NULL && !dlcc_cpu_varies(*features)) features++;
  return *features;
}

/* Why the CPU does not run `what`, which needs the features. */
static dlcc_status dlcc_machine_refuse(const dlcc_machine *machine, const char *what,
                                       const char *const *features) {
  (void)machine;
  char missing[256];
  size_t used = 0;
  missing[0] = '\0';
  for (size_t i = 0; features[i] != NULL; i++) {
    if (dlcc_cpu_has(features[i]) == 1) continue;
    int written = snprintf(missing + used, sizeof missing - used, "%s%s", used ? ", " : "",
                           features[i]);
    if (written < 0 || (size_t)written >= sizeof missing - used) break;
    used += (size_t)written;
  }
  if (used > 0)
    return dlcc_fail(DLCC_CODE(UNSUPPORTED_CPU),
                     "%s needs %s, which this CPU lacks; compile with --target %s", what, missing,
                     dlcc_cpu_level());
  while (*features != NULL && dlcc_cpu_permit(*features) == 0) features++;
  return dlcc_fail(DLCC_CODE(UNSUPPORTED_CPU),
                   "%s needs %s, which the system does not permit; compile with --target %s", what,
                   *features != NULL ? *features : "a feature", dlcc_cpu_level());
}

#endif
