/* What the CPU must have. An architecture's file defines
 *
 *   int dlcc_cpu_has(const char *feature)    1 or 0; -1 if the name is unknown
 *   int dlcc_cpu_varies(const char *feature) 1 if threads may differ in having it
 *   int dlcc_cpu_permit(const char *feature) 0 once the system lets this process use it
 *   const char *dlcc_cpu_level(void)         the best --target without permits this CPU runs
 *   void dlcc_cpu_relax(void)                the hint for a spinning loop
 *   uint32_t dlcc_cpu_float_enter(void)      sets the default float environment of this thread
 *   void dlcc_cpu_float_leave(uint32_t)      restores what dlcc_cpu_float_enter returned */
#ifndef DLCC_CPU_H
#define DLCC_CPU_H

#if defined(__x86_64__)
#include "cpu_x86_64.h"
#elif defined(__aarch64__)
#include "cpu_aarch64.h"
#elif defined(__arm__)
#include "cpu_armv7.h"
#else
#error "dlcc's runtime knows no CPU feature check for this architecture"
#endif

/* Whether the CPU has all features and the system lets this process use them. */
static int dlcc_cpu_runs(const char *const *features) {
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
static dlcc_status dlcc_cpu_refuse(const char *what, const char *const *features) {
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
