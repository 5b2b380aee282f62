/* CPU features of Apple silicon as macOS tells them, under the names of Linux. */
#ifndef DLCC_CPU_APPLE_H
#define DLCC_CPU_APPLE_H

typedef struct dlcc_cpu_feature {
  const char *name, *asked;
} dlcc_cpu_feature;

static const dlcc_cpu_feature dlcc_cpu_features[] = {
    {"fp", "hw.optional.floatingpoint"},
    {"asimd", "hw.optional.AdvSIMD"},
    {"atomics", "hw.optional.arm.FEAT_LSE"},
    {"fphp", "hw.optional.arm.FEAT_FP16"},
    {"asimdhp", "hw.optional.arm.FEAT_FP16"},
    {"asimdrdm", "hw.optional.arm.FEAT_RDM"},
    {"asimddp", "hw.optional.arm.FEAT_DotProd"},
    {"asimdfhm", "hw.optional.arm.FEAT_FHM"},
    {"i8mm", "hw.optional.arm.FEAT_I8MM"},
    {"bf16", "hw.optional.arm.FEAT_BF16"},
    {NULL, NULL},
};

static int dlcc_cpu_has(const char *feature) {
  for (const dlcc_cpu_feature *row = dlcc_cpu_features; row->name != NULL; row++)
    if (strcmp(row->name, feature) == 0) return dlcc_system_number(row->asked) != 0;
  return -1;
}

static inline int dlcc_cpu_varies(const char *feature) {
  (void)feature;
  return 0;
}

static int dlcc_cpu_permit(const char *feature) {
  (void)feature; /* nothing has to be asked for */
  return 0;
}

static const char *dlcc_cpu_level(void) {
  return dlcc_cpu_has("i8mm") == 1 ? "arm:apple-m2" : "arm:apple-m1";
}

#endif
