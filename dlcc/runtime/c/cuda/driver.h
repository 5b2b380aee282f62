/* The driver's library, found when it is first needed: a program that links the network starts on
 * machines without a GPU, too. Names with _v2 are what cuda.h calls by the names without. */
#ifndef DLCC_CUDA_DRIVER_H
#define DLCC_CUDA_DRIVER_H

#define DLCC_DRIVER_LIBRARY "libcuda.so.1"
#define DLCC_OLDEST_DRIVER 12000 /* 1000 * major + 10 * minor: what loads our cubins */

/* Handles (CUcontext, CUmodule, ...) are pointers to what only the driver knows. */
typedef void *dlcc_handle;
typedef uint64_t dlcc_address; /* in a device's memory */

/* CUDA_KERNEL_NODE_PARAMS, version 2. */
typedef struct dlcc_node_parameters {
  dlcc_handle function;
  unsigned grid[3], block[3], shared_bytes;
  void **arguments;
  void **extra;
  dlcc_handle kernel;  /* instead of the function */
  dlcc_handle context; /* NULL: the current one */
} dlcc_node_parameters;

enum {
  DLCC_CU_OUT_OF_MEMORY = 2,
  DLCC_CU_NO_DEVICE = 100,
  DLCC_CU_MAJOR = 75, /* device attributes: of the compute capability */
  DLCC_CU_MINOR = 76,
  DLCC_CU_DYNAMIC_SHARED = 8, /* function attribute */
  DLCC_CU_MEMORY_TYPE = 2,    /* pointer attributes */
  DLCC_CU_IS_MANAGED = 8,
  DLCC_CU_DEVICE_ORDINAL = 9,
  DLCC_CU_DEVICE_MEMORY = 2, /* a memory type */
  DLCC_CU_NON_BLOCKING = 1,  /* of a stream: it does not wait for the default one */
  DLCC_CU_NO_TIMING = 2      /* of an event */
};

#define DLCC_DRIVER(F)                                                                             \
  F(cuInit, (unsigned flags))                                                                      \
  F(cuDriverGetVersion, (int *version))                                                            \
  F(cuGetErrorString, (int code, const char **text))                                               \
  F(cuGetErrorName, (int code, const char **name))                                                 \
  F(cuDeviceGetCount, (int *count))                                                                \
  F(cuDeviceGet, (int *device, int ordinal))                                                       \
  F(cuDeviceGetName, (char *name, int room, int device))                                           \
  F(cuDeviceGetAttribute, (int *value, int attribute, int device))                                 \
  F(cuDevicePrimaryCtxRetain, (dlcc_handle *context, int device))                                  \
  F(cuDevicePrimaryCtxRelease_v2, (int device))                                                    \
  F(cuCtxPushCurrent_v2, (dlcc_handle context))                                                    \
  F(cuCtxPopCurrent_v2, (dlcc_handle *context))                                                    \
  F(cuModuleLoadData, (dlcc_handle *module, const void *image))                                    \
  F(cuModuleUnload, (dlcc_handle module))                                                          \
  F(cuModuleGetFunction, (dlcc_handle *function, dlcc_handle module, const char *name))            \
  F(cuFuncSetAttribute, (dlcc_handle function, int attribute, int value))                          \
  F(cuMemAlloc_v2, (dlcc_address *memory, size_t bytes))                                           \
  F(cuMemFree_v2, (dlcc_address memory))                                                           \
  F(cuMemcpyHtoDAsync_v2,                                                                          \
    (dlcc_address to, const void *from, size_t bytes, dlcc_handle stream))                         \
  F(cuMemcpyDtoHAsync_v2, (void *to, dlcc_address from, size_t bytes, dlcc_handle stream))         \
  F(cuMemcpyDtoDAsync_v2,                                                                          \
    (dlcc_address to, dlcc_address from, size_t bytes, dlcc_handle stream))                        \
  F(cuPointerGetAttribute, (void *value, int attribute, dlcc_address address))                     \
  F(cuStreamCreate, (dlcc_handle *stream, unsigned flags))                                         \
  F(cuStreamDestroy_v2, (dlcc_handle stream))                                                      \
  F(cuStreamSynchronize, (dlcc_handle stream))                                                     \
  F(cuStreamWaitEvent, (dlcc_handle stream, dlcc_handle event, unsigned flags))                    \
  F(cuEventCreate, (dlcc_handle *event, unsigned flags))                                           \
  F(cuEventDestroy_v2, (dlcc_handle event))                                                        \
  F(cuEventRecord, (dlcc_handle event, dlcc_handle stream))                                        \
  F(cuEventSynchronize, (dlcc_handle event))                                                       \
  F(cuEventElapsedTime, (float *milliseconds, dlcc_handle start, dlcc_handle end))                 \
  F(cuLaunchKernel,                                                                                \
    (dlcc_handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,    \
     unsigned block_y, unsigned block_z, unsigned shared_bytes, dlcc_handle stream,                \
     void **arguments, void **extra))                                                              \
  F(cuGraphCreate, (dlcc_handle *graph, unsigned flags))                                           \
  F(cuGraphDestroy, (dlcc_handle graph))                                                           \
  F(cuGraphAddKernelNode_v2,                                                                       \
    (dlcc_handle *node, dlcc_handle graph, const dlcc_handle *before, size_t count,                \
     const dlcc_node_parameters *parameters))                                                      \
  F(cuGraphInstantiateWithFlags,                                                                   \
    (dlcc_handle *executable, dlcc_handle graph, unsigned long long flags))                        \
  F(cuGraphExecDestroy, (dlcc_handle executable))                                                  \
  F(cuGraphExecKernelNodeSetParams_v2,                                                             \
    (dlcc_handle executable, dlcc_handle node, const dlcc_node_parameters *parameters))            \
  F(cuGraphLaunch, (dlcc_handle executable, dlcc_handle stream))

typedef struct dlcc_driver_functions {
#define DLCC_MEMBER(name, parameters) int(*name) parameters;
  DLCC_DRIVER(DLCC_MEMBER)
#undef DLCC_MEMBER
} dlcc_driver_functions;

static dlcc_driver_functions dlcc_driver; /* complete once dlcc_driver_open has succeeded */
static pthread_mutex_t dlcc_driver_lock = PTHREAD_MUTEX_INITIALIZER;
static int dlcc_driver_ready;

/* The error that a driver's function has returned. */
static dlcc_status dlcc_driver_failed(int code, const char *function) {
  const char *text = NULL, *name = NULL;
  dlcc_driver.cuGetErrorString(code, &text);
  dlcc_driver.cuGetErrorName(code, &name);
  return dlcc_fail(code == DLCC_CU_OUT_OF_MEMORY ? DLCC_CODE(OUT_OF_MEMORY)
                                                 : DLCC_CODE(KERNEL_FAILED),
                   "%s failed: %s (%s, %d)", function, text ? text : "unknown error",
                   name ? name : "an error of a newer driver", code);
}

static dlcc_status dlcc_driver_checked(int code, const char *function) {
  return code == 0 ? DLCC_CODE(OK) : dlcc_driver_failed(code, function);
}

/* A call of the driver, as a status. */
#define DLCC_CU(name, ...) dlcc_driver_checked(dlcc_driver.name(__VA_ARGS__), #name)

/* The same if `status` is OK so far. */
#define DLCC_CU_THEN(status, name, ...)                                                            \
  do {                                                                                             \
    if ((status) == DLCC_CODE(OK)) (status) = DLCC_CU(name, __VA_ARGS__);                          \
  } while (0)

static dlcc_status dlcc_driver_find(void *library) {
#define DLCC_FIND(name, parameters)                                                                \
  *(void **)&dlcc_driver.name = dlsym(library, #name);                                             \
  if (dlcc_driver.name == NULL)                                                                    \
    return dlcc_fail(DLCC_CODE(NO_DEVICE),                                                         \
                     "the NVIDIA driver is too old: it lacks %s; install one for CUDA %d.%d or "   \
                     "newer",                                                                      \
                     #name, DLCC_OLDEST_DRIVER / 1000, DLCC_OLDEST_DRIVER % 1000 / 10);
  DLCC_DRIVER(DLCC_FIND)
#undef DLCC_FIND
  return DLCC_CODE(OK);
}

static dlcc_status dlcc_driver_start(void) {
  const int code = dlcc_driver.cuInit(0);
  const char *text = NULL;
  if (code == DLCC_CU_NO_DEVICE)
    return dlcc_fail(DLCC_CODE(NO_DEVICE), "the NVIDIA driver finds no GPU");
  if (code != 0) {
    dlcc_driver.cuGetErrorString(code, &text);
    return dlcc_fail(DLCC_CODE(NO_DEVICE), "the NVIDIA driver cannot be used: %s (%d)",
                     text ? text : "unknown error", code);
  }
  int version = 0;
  const dlcc_status status = DLCC_CU(cuDriverGetVersion, &version);
  if (status != DLCC_CODE(OK) || version >= DLCC_OLDEST_DRIVER) return status;
  return dlcc_fail(DLCC_CODE(NO_DEVICE),
                   "the NVIDIA driver is too old: it is for CUDA %d.%d, %d.%d or newer is needed",
                   version / 1000, version % 1000 / 10, DLCC_OLDEST_DRIVER / 1000,
                   DLCC_OLDEST_DRIVER % 1000 / 10);
}

/* Where the driver is once open it stays so: the library is never unloaded. */
static dlcc_status dlcc_driver_open(void) {
  dlcc_status status = DLCC_CODE(OK);
  pthread_mutex_lock(&dlcc_driver_lock);
  if (!dlcc_driver_ready) {
    void *library = dlopen(DLCC_DRIVER_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
      const char *reason = dlerror();
      status = dlcc_fail(DLCC_CODE(NO_DEVICE), "there is no NVIDIA driver: %s",
                         reason ? reason : DLCC_DRIVER_LIBRARY " cannot be loaded");
    } else {
      status = dlcc_driver_find(library);
      if (status == DLCC_CODE(OK)) status = dlcc_driver_start();
      if (status != DLCC_CODE(OK)) dlclose(library);
    }
    dlcc_driver_ready = status == DLCC_CODE(OK);
  }
  pthread_mutex_unlock(&dlcc_driver_lock);
  return status;
}

#endif
