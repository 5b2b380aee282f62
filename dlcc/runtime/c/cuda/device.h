/* A GPU, as the choice of a variant sees it (see ../variant.h), and its context. */
#ifndef DLCC_CUDA_DEVICE_H
#define DLCC_CUDA_DEVICE_H

typedef struct dlcc_machine {
  int ordinal; /* of those that CUDA_VISIBLE_DEVICES leaves */
  int device;  /* the driver's handle */
  int major, minor;
  char name[96];
} dlcc_machine;

static dlcc_status dlcc_machine_open(dlcc_machine *machine, int ordinal) {
  int count = 0;
  dlcc_status status = dlcc_driver_open();
  if (status != DLCC_CODE(OK)) return status;
  status = DLCC_CU(cuDeviceGetCount, &count);
  if (status != DLCC_CODE(OK)) return status;
  if (count == 0) return dlcc_fail(DLCC_CODE(NO_DEVICE), "the NVIDIA driver finds no GPU");
  if (ordinal < 0 || ordinal >= count)
    return dlcc_fail(DLCC_CODE(INVALID_ARGUMENT), "device is %d, the driver has 0 to %d", ordinal,
                     count - 1);
  machine->ordinal = ordinal;
  status = DLCC_CU(cuDeviceGet, &machine->device, ordinal);
  DLCC_CU_THEN(status, cuDeviceGetName, machine->name, (int)sizeof machine->name, machine->device);
  DLCC_CU_THEN(status, cuDeviceGetAttribute, &machine->major, DLCC_CU_MAJOR, machine->device);
  DLCC_CU_THEN(status, cuDeviceGetAttribute, &machine->minor, DLCC_CU_MINOR, machine->device);
  return status;
}

/* Whether the device runs code for an architecture, "sm_86" or "sm_90a": a cubin runs on devices of
 * the same major capability and at least the same minor one; with an "a", on that capability only
 * (CUDA C++ Programming Guide, section 3.1.2). */
static int dlcc_machine_has(const dlcc_machine *machine, const char *architecture) {
  char *end;
  const long number = strncmp(architecture, "sm_", 3) == 0 ? strtol(architecture + 3, &end, 10) : 0;
  if (number < 10 || number / 10 != machine->major) return 0;
  return *end == 'a' ? number % 10 == machine->minor : number % 10 <= machine->minor;
}

#ifdef __aarch64__
#define DLCC_TARGET_FAMILY "cuda-arm"
#else
#define DLCC_TARGET_FAMILY "cuda"
#endif

static int dlcc_machine_runs(const dlcc_machine *machine, const char *const *features) {
  for (size_t i = 0; features[i] != NULL; i++)
    if (!dlcc_machine_has(machine, features[i])) return 0;
  return 1;
}

/* The features of the library stand for those of all variants: any of them would do. */
static dlcc_status dlcc_machine_refuse(const dlcc_machine *machine, const char *what,
                                       const char *const *features) {
  char names[256] = "";
  size_t used = 0;
  for (uint32_t i = 0; i < dlcc_model_info.variant_count; i++) {
    const dlcc_variant *variant = &dlcc_model_info.variants[i];
    const char *name = variant->features[0];
    if (name == NULL || (features != dlcc_model_info.features && features != variant->features))
      continue;
    const int written =
        snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", name);
    if (written > 0 && (size_t)written < sizeof names - used) used += (size_t)written;
  }
  return dlcc_fail(DLCC_CODE(NO_DEVICE),
                   "%s is for %s, and device %d (%s) is sm_%d%d; compile with --target "
                   DLCC_TARGET_FAMILY ":sm_%d%d",
                   what, names, machine->ordinal, machine->name, machine->major, machine->minor,
                   machine->major, machine->minor);
}

/* The calling thread works in `context` until dlcc_context_leave, which gives it back its own. */
static dlcc_status dlcc_context_enter(dlcc_handle context) {
  return DLCC_CU(cuCtxPushCurrent_v2, context);
}

static void dlcc_context_leave(void) {
  dlcc_handle context;
  dlcc_driver.cuCtxPopCurrent_v2(&context);
}

#endif
