/* CPU features as the Linux kernel tells them at start-up, under the names of /proc/cpuinfo.
 *
 * The including file defines dlcc_cpu_features and dlcc_cpu_levels, whose last row has no name, and
 * dlcc_cpu_vector_bytes, if there are features that ask for vectors of a length. */
#ifndef DLCC_CPU_HWCAP_H
#define DLCC_CPU_HWCAP_H

static const dlcc_cpu_feature *dlcc_cpu_row(const char *feature) {
  const dlcc_cpu_feature *row = dlcc_cpu_features;
  while (row->name != NULL && strcmp(row->name, feature) != 0) row++;
  return row->name != NULL ? row : NULL;
}

static int dlcc_cpu_has(const char *feature) {
  const dlcc_cpu_feature *row = dlcc_cpu_row(feature);
  if (row == NULL) return -1;
  if (row->word == 0) return dlcc_cpu_vector_bytes() >= row->bit;
  return (int)(getauxval(row->word == 1 ? AT_HWCAP : AT_HWCAP2) >> row->bit & 1);
}

static inline int dlcc_cpu_varies(const char *feature) {
  const dlcc_cpu_feature *row = dlcc_cpu_row(feature);
  return row != NULL && row->word == 0;
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
