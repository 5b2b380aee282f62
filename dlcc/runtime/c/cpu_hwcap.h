/* CPU features as the Linux kernel tells them at start-up, under the names of /proc/cpuinfo.
 *
 * The including file defines dlcc_cpu_features and dlcc_cpu_levels, whose last row has no name. */
#ifndef DLCC_CPU_HWCAP_H
#define DLCC_CPU_HWCAP_H

static int dlcc_cpu_has(const char *feature) {
  for (const dlcc_cpu_feature *row = dlcc_cpu_features; row->name != NULL; row++) {
    if (strcmp(row->name, feature) != 0) continue;
    return (int)(getauxval(row->word == 1 ? AT_HWCAP : AT_HWCAP2) >> row->bit & 1);
  }
  return -1;
}

static int dlcc_cpu_permit(const char *feature) {
  (void)feature; /* nothing has to be asked for */
  return 0;
}

static const char *dlcc_cpu_level(void) {
  size_t i = 0;
  while (dlcc_cpu_levels[i][1] != NULL && dlcc_cpu_has(dlcc_cpu_levels[i][1]) != 1) i++;
  return dlcc_cpu_levels[i][0];
}

#endif
