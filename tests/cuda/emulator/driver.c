/* A CUDA driver whose devices are the CPU: libcuda.so.1 for tests. It has the functions that dlcc's
 * runtime calls, with the driver's numbers, and is stricter than a driver where that finds faults:
 *
 *  - work is done when somebody waits for it, and no sooner; other streams' work as late as their
 *    events allow. Who reads too early finds 0xff in every byte.
 *  - device memory lies between pages that nobody may touch, and is 0xff until it is written.
 *  - parameters of kernels have to point into device memory.
 *  - launches have to keep the limits of the device and of the kernel.
 *  - nodes of a graph run in an order that their edges allow, and as far from the one in which they
 *    were added as may be.
 *
 * Settings, from the environment when cuInit is called:
 *
 *   DLCC_CUDA_EMULATION          folder of modules: <sha256 of the cubin>.so
 *   DLCC_CUDA_EMULATION_DEVICES  capabilities: "8.0,9.0"; "" for none. Default 8.0
 *   DLCC_CUDA_EMULATION_VERSION  of the driver: 12040
 *   DLCC_CUDA_EMULATION_ORDER    "reverse": threads of a block run from the last to the first
 *
 * and for a program that has loaded it, the functions emulator_*. */
#include "driver.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"
#include "streams.h"

#define API __attribute__((visibility("default")))
#define MOST_CALLS 64

enum { MOST_DEVICES = 8, CONTEXTS_DEEP = 16, NAME_ROOM = 64 };

typedef struct device {
  int major, minor, retained;
} device;

typedef struct counter {
  const char *name;
  uint64_t calls;
  uint64_t fail_at; /* the call with that number, from 1; 0: none */
  int code;
} counter;

static device devices[MOST_DEVICES];
static int device_count = -1, version = 12040;
static char folder[1024], last_fault[512];
static counter counters[MOST_CALLS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local device *contexts[CONTEXTS_DEEP];
static _Thread_local int depth;
int emulator_reversed;

int emulator_fault(int code, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(last_fault, sizeof last_fault, format, arguments);
  va_end(arguments);
  if (getenv("DLCC_CUDA_EMULATION_VERBOSE")) fprintf(stderr, "emulator: %s\n", last_fault);
  return code;
}

static counter *counter_of(const char *name) {
  int i = 0;
  while (counters[i].name != NULL && strcmp(counters[i].name, name) != 0) i++;
  if (counters[i].name == NULL) counters[i].name = strdup(name);
  return &counters[i];
}

/* Counts a call; its error if one is to be injected. */
static int enter(const char *name) {
  pthread_mutex_lock(&lock);
  counter *c = counter_of(name);
  c->calls++;
  return c->fail_at == c->calls ? c->code : 0;
}

static int leave(int code) {
  pthread_mutex_unlock(&lock);
  return code;
}

#define BEGIN(name)                                          \
  do {                                                       \
    const int injected = enter(name);                        \
    if (injected != 0) return leave(injected);               \
    if (device_count < 0) return leave(NOT_INITIALIZED);     \
  } while (0)

#define BEGIN_IN_CONTEXT(name)                               \
  do {                                                       \
    BEGIN(name);                                             \
    if (depth == 0) return leave(INVALID_CONTEXT);           \
  } while (0)

static int ordinal_here(void) { return (int)(contexts[depth - 1] - devices); }

/* ---- of the emulator itself */

API uint64_t emulator_calls(const char *name) {
  pthread_mutex_lock(&lock);
  const uint64_t calls = counter_of(name)->calls;
  pthread_mutex_unlock(&lock);
  return calls;
}

/* The next call but `after` of a function fails with `code`; 0: none does. */
API void emulator_fail(const char *name, uint64_t after, int code) {
  pthread_mutex_lock(&lock);
  counter *c = counter_of(name);
  c->fail_at = code == 0 ? 0 : c->calls + 1 + after;
  c->code = code;
  pthread_mutex_unlock(&lock);
}

API const char *emulator_last_fault(void) { return last_fault; }

API uint64_t emulator_allocations(void) { return memory_count(); }

API void emulator_reverse(int reversed) { emulator_reversed = reversed; }

/* What the environment says anew, for all later calls. */
API void emulator_configure(void) {
  const char *text = getenv("DLCC_CUDA_EMULATION_DEVICES");
  text = text ? text : "8.0";
  for (device_count = 0; *text && device_count < MOST_DEVICES; device_count++) {
    device *d = &devices[device_count];
    int used = 0;
    if (sscanf(text, "%d.%d%n", &d->major, &d->minor, &used) != 2) break;
    text += used;
    if (*text == ',') text++;
  }
  const char *value = getenv("DLCC_CUDA_EMULATION_VERSION");
  version = value ? atoi(value) : 12040;
  value = getenv("DLCC_CUDA_EMULATION");
  snprintf(folder, sizeof folder, "%s", value ? value : ".");
  value = getenv("DLCC_CUDA_EMULATION_ORDER");
  emulator_reversed = value && strcmp(value, "reverse") == 0;
}

/* ---- the driver */

API int cuInit(unsigned flags) {
  const int injected = enter("cuInit");
  if (injected != 0) return leave(injected);
  if (flags != 0) return leave(INVALID_VALUE);
  if (device_count < 0) emulator_configure();
  return leave(device_count > 0 ? 0 : NO_DEVICE);
}

API int cuDriverGetVersion(int *out) {
  *out = version;
  return 0;
}

static const struct {
  int code;
  const char *name, *text;
} errors[] = {
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {200, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES", "too many resources requested for launch"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
};

static int find_error(int code, const char **out, int text) {
  *out = NULL;
  for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].code == code) *out = text ? errors[i].text : errors[i].name;
  return *out ? 0 : INVALID_VALUE;
}

API int cuGetErrorString(int code, const char **out) { return find_error(code, out, 1); }

API int cuGetErrorName(int code, const char **out) { return find_error(code, out, 0); }

API int cuDeviceGetCount(int *count) {
  BEGIN("cuDeviceGetCount");
  *count = device_count;
  return leave(0);
}

API int cuDeviceGet(int *out, int ordinal) {
  BEGIN("cuDeviceGet");
  if (ordinal < 0 || ordinal >= device_count) return leave(INVALID_DEVICE);
  *out = ordinal;
  return leave(0);
}

API int cuDeviceGetName(char *name, int room, int number) {
  BEGIN("cuDeviceGetName");
  snprintf(name, (size_t)room, "Emulated GPU %d", number);
  return leave(0);
}

API int cuDeviceGetAttribute(int *value, int attribute, int number) {
  BEGIN("cuDeviceGetAttribute");
  if (number < 0 || number >= device_count) return leave(INVALID_DEVICE);
  if (attribute == 75)
    *value = devices[number].major;
  else if (attribute == 76)
    *value = devices[number].minor;
  else if (attribute == 16)
    *value = 2; /* multiprocessors */
  else
    return leave(INVALID_VALUE);
  return leave(0);
}

API int cuDevicePrimaryCtxRetain(void **context, int number) {
  BEGIN("cuDevicePrimaryCtxRetain");
  if (number < 0 || number >= device_count) return leave(INVALID_DEVICE);
  devices[number].retained++;
  *context = &devices[number];
  return leave(0);
}

API int cuDevicePrimaryCtxRelease_v2(int number) {
  BEGIN("cuDevicePrimaryCtxRelease_v2");
  if (number < 0 || number >= device_count || devices[number].retained == 0)
    return leave(INVALID_CONTEXT);
  devices[number].retained--;
  return leave(0);
}

API int cuCtxPushCurrent_v2(void *context) {
  BEGIN("cuCtxPushCurrent_v2");
  device *d = context;
  if (d < devices || d >= devices + device_count || d->retained == 0 || depth == CONTEXTS_DEEP)
    return leave(INVALID_CONTEXT);
  contexts[depth++] = d;
  return leave(0);
}

API int cuCtxPopCurrent_v2(void **context) {
  BEGIN_IN_CONTEXT("cuCtxPopCurrent_v2");
  *context = contexts[--depth];
  return leave(0);
}

API int cuCtxGetCurrent(void **context) {
  BEGIN("cuCtxGetCurrent");
  *context = depth > 0 ? contexts[depth - 1] : NULL;
  return leave(0);
}

API int cuModuleLoadData(void **module, const void *image) {
  BEGIN_IN_CONTEXT("cuModuleLoadData");
  const device *d = contexts[depth - 1];
  return leave(module_load(module, image, folder, d->major, d->minor));
}

API int cuModuleUnload(void *module) {
  BEGIN_IN_CONTEXT("cuModuleUnload");
  return leave(module_unload(module));
}

API int cuModuleGetFunction(void **out, void *module, const char *name) {
  BEGIN_IN_CONTEXT("cuModuleGetFunction");
  return leave(module_function(out, module, name));
}

API int cuFuncSetAttribute(void *function, int attribute, int value) {
  BEGIN_IN_CONTEXT("cuFuncSetAttribute");
  return leave(attribute == 8 ? function_allow_shared(function, value) : INVALID_VALUE);
}

API int cuMemAlloc_v2(uint64_t *memory, size_t bytes) {
  BEGIN_IN_CONTEXT("cuMemAlloc_v2");
  return leave(memory_allocate(memory, bytes, ordinal_here()));
}

/* Waits for all work, as the driver does. */
API int cuMemFree_v2(uint64_t memory) {
  BEGIN_IN_CONTEXT("cuMemFree_v2");
  const int code = streams_finish();
  return leave(code != 0 ? code : memory_free(memory));
}

API int cuPointerGetAttribute(void *value, int attribute, uint64_t address) {
  BEGIN_IN_CONTEXT("cuPointerGetAttribute");
  const int ordinal = memory_device(address, 0);
  if (ordinal < 0) return leave(INVALID_VALUE);
  if (attribute != 2 && attribute != 8 && attribute != 9) return leave(INVALID_VALUE);
  *(int *)value = attribute == 2 ? 2 : attribute == 8 ? 0 : ordinal;
  return leave(0);
}

API int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t bytes, void *stream) {
  BEGIN_IN_CONTEXT("cuMemcpyHtoDAsync_v2");
  if (memory_device(to, bytes) < 0) return leave(emulator_fault(INVALID_VALUE, "copy to no device"));
  return leave(streams_copy(stream, (void *)to, from, bytes, 1));
}

API int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t bytes, void *stream) {
  BEGIN_IN_CONTEXT("cuMemcpyDtoHAsync_v2");
  if (memory_device(from, bytes) < 0)
    return leave(emulator_fault(INVALID_VALUE, "copy from no device"));
  return leave(streams_copy(stream, to, (void *)from, bytes, 0));
}

API int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void *stream) {
  BEGIN_IN_CONTEXT("cuMemcpyDtoDAsync_v2");
  if (memory_device(from, bytes) < 0 || memory_device(to, bytes) < 0)
    return leave(emulator_fault(INVALID_VALUE, "copy between no devices"));
  return leave(streams_copy(stream, (void *)to, (void *)from, bytes, 0));
}

API int cuStreamCreate(void **stream, unsigned flags) {
  BEGIN_IN_CONTEXT("cuStreamCreate");
  return leave(flags > 1 ? INVALID_VALUE : stream_create(stream));
}

API int cuStreamDestroy_v2(void *stream) {
  BEGIN_IN_CONTEXT("cuStreamDestroy_v2");
  return leave(stream_destroy(stream));
}

API int cuStreamSynchronize(void *stream) {
  BEGIN_IN_CONTEXT("cuStreamSynchronize");
  return leave(stream_finish(stream));
}

API int cuCtxSynchronize(void) {
  BEGIN_IN_CONTEXT("cuCtxSynchronize");
  return leave(streams_finish());
}

API int cuStreamWaitEvent(void *stream, void *event, unsigned flags) {
  BEGIN_IN_CONTEXT("cuStreamWaitEvent");
  return leave(flags != 0 ? INVALID_VALUE : stream_wait(stream, event));
}

API int cuEventCreate(void **event, unsigned flags) {
  BEGIN_IN_CONTEXT("cuEventCreate");
  return leave(event_create(event, flags));
}

API int cuEventDestroy_v2(void *event) {
  BEGIN_IN_CONTEXT("cuEventDestroy_v2");
  return leave(event_destroy(event));
}

API int cuEventRecord(void *event, void *stream) {
  BEGIN_IN_CONTEXT("cuEventRecord");
  return leave(event_record(event, stream));
}

API int cuEventQuery(void *event) {
  BEGIN_IN_CONTEXT("cuEventQuery");
  return leave(event_done(event) ? 0 : NOT_READY);
}

API int cuEventSynchronize(void *event) {
  BEGIN_IN_CONTEXT("cuEventSynchronize");
  return leave(event_finish(event));
}

API int cuEventElapsedTime(float *milliseconds, void *start, void *end) {
  BEGIN_IN_CONTEXT("cuEventElapsedTime");
  return leave(event_between(start, end, milliseconds));
}

API int cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                       unsigned by, unsigned bz, unsigned shared, void *stream, void **arguments,
                       void **extra) {
  BEGIN_IN_CONTEXT("cuLaunchKernel");
  const node_parameters p = {function,  {gx, gy, gz}, {bx, by, bz}, shared, arguments,
                             extra,     NULL,         NULL};
  launch made;
  int code = launch_make(&made, &p, ordinal_here());
  return leave(code != 0 ? code : streams_launch(stream, &made));
}

API int cuGraphCreate(void **graph, unsigned flags) {
  BEGIN("cuGraphCreate");
  return leave(flags != 0 ? INVALID_VALUE : graph_create(graph));
}

API int cuGraphDestroy(void *graph) {
  BEGIN("cuGraphDestroy");
  return leave(graph_destroy(graph));
}

API int cuGraphAddKernelNode_v2(void **node, void *graph, void *const *before, size_t count,
                                const node_parameters *parameters) {
  BEGIN_IN_CONTEXT("cuGraphAddKernelNode_v2");
  return leave(graph_add(node, graph, before, count, parameters, ordinal_here()));
}

API int cuGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
  BEGIN_IN_CONTEXT("cuGraphInstantiateWithFlags");
  return leave(flags != 0 ? INVALID_VALUE : graph_instantiate(executable, graph));
}

API int cuGraphExecDestroy(void *executable) {
  BEGIN("cuGraphExecDestroy");
  return leave(executable_destroy(executable));
}

API int cuGraphExecKernelNodeSetParams_v2(void *executable, void *node,
                                          const node_parameters *parameters) {
  BEGIN_IN_CONTEXT("cuGraphExecKernelNodeSetParams_v2");
  return leave(executable_set(executable, node, parameters, ordinal_here()));
}

API int cuGraphLaunch(void *executable, void *stream) {
  BEGIN_IN_CONTEXT("cuGraphLaunch");
  return leave(executable_launch(executable, stream));
}

/* NVIDIA's compiler asks for this, and goes on without. */
API int cuGetExportTable(const void **table, const void *id) {
  (void)id;
  *table = NULL;
  return INVALID_VALUE;
}
