/* What all instances of a variant on one device share: the loaded cubin and the weights in the
 * device's memory. It is there while an instance is. */
#ifndef DLCC_CUDA_RESIDENT_H
#define DLCC_CUDA_RESIDENT_H

typedef struct dlcc_resident {
  struct dlcc_resident *next;
  int ordinal;
  int device;
  uint32_t variant;
  uint32_t users;
  dlcc_handle context; /* the device's primary one, which CUDA's runtime and frameworks use */
  dlcc_handle module;
  dlcc_handle *functions; /* of each kernel of the cubin */
  dlcc_address weights;
} dlcc_resident;

static dlcc_resident *dlcc_residents;
static pthread_mutex_t dlcc_residents_lock = PTHREAD_MUTEX_INITIALIZER;

/* Bytes of the content of the weights file. */
static uint64_t dlcc_content_bytes(void) {
#if DLCC_PACKED
  return dlcc_packed.content;
#else
  return dlcc_model_info.weights_bytes - sizeof(dlcc_weights_header);
#endif
}

static dlcc_status dlcc_device_allocate(dlcc_address *memory, uint64_t bytes, const char *what) {
  const int code = dlcc_driver.cuMemAlloc_v2(memory, bytes > 0 ? (size_t)bytes : 1);
  if (code != DLCC_CU_OUT_OF_MEMORY) return dlcc_driver_checked(code, "cuMemAlloc_v2");
  return dlcc_fail(DLCC_CODE(OUT_OF_MEMORY), "no device memory for %s of %llu bytes", what,
                   (unsigned long long)bytes);
}

static dlcc_status dlcc_resident_load(dlcc_resident *resident) {
  const dlcc_cubin *cubin = &dlcc_cubins[resident->variant];
  if (cubin->image == NULL) return DLCC_CODE(OK);
  resident->functions = calloc(cubin->kernel_count, sizeof *resident->functions);
  if (resident->functions == NULL)
    return dlcc_fail(DLCC_CODE(OUT_OF_MEMORY), "no memory for %u kernels", cubin->kernel_count);
  dlcc_status status = DLCC_CU(cuModuleLoadData, &resident->module, cubin->image);
  for (uint32_t i = 0; i < cubin->kernel_count && status == DLCC_CODE(OK); i++) {
    const dlcc_kernel *kernel = &cubin->kernels[i];
    dlcc_handle *function = &resident->functions[i];
    status = DLCC_CU(cuModuleGetFunction, function, resident->module, kernel->name);
    if (kernel->shared_bytes > 0)
      DLCC_CU_THEN(status, cuFuncSetAttribute, *function, DLCC_CU_DYNAMIC_SHARED,
                   (int)kernel->shared_bytes);
  }
  return status;
}

/* On a stream, and waited for: after a plain copy the data may still be on their way, and the
 * streams of instances do not wait for that. */
static dlcc_status dlcc_resident_upload(dlcc_resident *resident, const char *content) {
  const uint64_t bytes = dlcc_content_bytes();
  dlcc_handle stream = NULL;
  dlcc_status status = dlcc_device_allocate(&resident->weights, bytes, "the weights");
  if (bytes == 0 || status != DLCC_CODE(OK)) return status;
  status = DLCC_CU(cuStreamCreate, &stream, DLCC_CU_NON_BLOCKING);
  if (status != DLCC_CODE(OK)) return status;
  status = DLCC_CU(cuMemcpyHtoDAsync_v2, resident->weights, content, (size_t)bytes, stream);
  DLCC_CU_THEN(status, cuStreamSynchronize, stream);
  dlcc_driver.cuStreamDestroy_v2(stream);
  return status;
}

static dlcc_status dlcc_resident_fill(dlcc_resident *resident, const char *content) {
  dlcc_status status = DLCC_CU(cuDevicePrimaryCtxRetain, &resident->context, resident->device);
  if (status == DLCC_CODE(OK)) status = dlcc_context_enter(resident->context);
  if (status != DLCC_CODE(OK)) return status;
  status = dlcc_resident_load(resident);
  if (status == DLCC_CODE(OK)) status = dlcc_resident_upload(resident, content);
  dlcc_context_leave();
  return status;
}

/* Errors are of no use to anybody here, and may be those of a driver that has shut down before. */
static void dlcc_resident_free(dlcc_resident *resident) {
  if (resident->context != NULL) {
    if (dlcc_context_enter(resident->context) == DLCC_CODE(OK)) {
      if (resident->weights != 0) dlcc_driver.cuMemFree_v2(resident->weights);
      if (resident->module != NULL) dlcc_driver.cuModuleUnload(resident->module);
      dlcc_context_leave();
    }
    dlcc_driver.cuDevicePrimaryCtxRelease_v2(resident->device);
  }
  free(resident->functions);
  free(resident);
}

static dlcc_status dlcc_resident_make(const dlcc_machine *machine, uint32_t variant,
                                      const char *content, dlcc_resident **out) {
  dlcc_resident *resident = calloc(1, sizeof *resident);
  if (resident == NULL) return dlcc_fail(DLCC_CODE(OUT_OF_MEMORY), "no memory for an instance");
  resident->ordinal = machine->ordinal;
  resident->device = machine->device;
  resident->variant = variant;
  const dlcc_status status = dlcc_resident_fill(resident, content);
  if (status != DLCC_CODE(OK)) {
    dlcc_resident_free(resident);
    return status;
  }
  resident->next = dlcc_residents;
  dlcc_residents = *out = resident;
  return status;
}

/* `content` is the checked one of the weights file, and the same for every call. */
static dlcc_status dlcc_resident_open(const dlcc_machine *machine, uint32_t variant,
                                      const char *content, dlcc_resident **out) {
  dlcc_status status = DLCC_CODE(OK);
  pthread_mutex_lock(&dlcc_residents_lock);
  *out = dlcc_residents;
  while (*out != NULL && ((*out)->ordinal != machine->ordinal || (*out)->variant != variant))
    *out = (*out)->next;
  if (*out == NULL) status = dlcc_resident_make(machine, variant, content, out);
  if (status == DLCC_CODE(OK)) (*out)->users++;
  pthread_mutex_unlock(&dlcc_residents_lock);
  return status;
}

static void dlcc_resident_close(dlcc_resident *resident) {
  pthread_mutex_lock(&dlcc_residents_lock);
  if (--resident->users == 0) {
    dlcc_resident **link = &dlcc_residents;
    while (*link != resident) link = &(*link)->next;
    *link = resident->next;
    dlcc_resident_free(resident);
  }
  pthread_mutex_unlock(&dlcc_residents_lock);
}

#endif
