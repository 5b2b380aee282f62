#include <dlfcn.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../../../dlcc/runtime/c/server/sha256.h"
#include "driver.h"
#include "memory.h"

enum {
  MODULE_MARK = 0x30d01e,
  STATIC_LIMIT = 48 << 10,
  REGISTERS = 65536,
  MOST_FUNCTIONS = 4096,
};

typedef struct function {
  const emulated_kernel *kernel;
  char *name;
  int dynamic_limit, shared_limit;
} function;

typedef struct module {
  uint32_t mark;
  void *library;
  int shared_limit;
  int count;
  function *functions[MOST_FUNCTIONS];
} module;

static uint64_t number(const unsigned char *at, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; i++) value |= (uint64_t)at[i] << 8 * i;
  return value;
}

/* Bytes of an ELF file, as its headers and sections have it. */
static size_t elf_bytes(const unsigned char *image) {
  const uint64_t segments = number(image + 32, 8), sections = number(image + 40, 8);
  size_t end = sections + number(image + 58, 2) * number(image + 60, 2);
  const size_t other = segments + number(image + 54, 2) * number(image + 56, 2);
  if (other > end) end = other;
  for (uint64_t i = 0; i < number(image + 60, 2); i++) {
    const unsigned char *row = image + sections + i * number(image + 58, 2);
    const int stored = number(row + 4, 4) != 8; /* SHT_NOBITS */
    const size_t last = number(row + 24, 8) + (stored ? number(row + 32, 8) : 0);
    if (last > end) end = last;
  }
  return end;
}

/* Ten times the capability that a cubin is for. */
static int elf_capability(const unsigned char *image) {
  const uint64_t flags = number(image + 48, 4);
  return (int)(image[8] <= 7 ? flags & 0xff : flags >> 8 & 0xff);
}

/* Shared memory that a block can have: CUDA C++ Programming Guide, section 20.2. */
static int shared_limit(int major, int minor) {
  const int kilobytes = major < 7 ? 48 : major == 7   ? (minor == 5 ? 64 : 96)
                        : major == 8 ? (minor == 0 || minor == 7 ? 163 : 99)
                        : major < 12 ? 227
                                     : 99;
  return kilobytes << 10;
}

int module_load(void **out, const void *image, const char *folder, int major, int minor) {
  const unsigned char *bytes = image;
  if (memcmp(bytes, "\177ELF", 4) != 0 || number(bytes + 18, 2) != 190)
    return emulator_fault(INVALID_IMAGE, "the image is no cubin");
  const int capability = elf_capability(bytes);
  if (capability / 10 != major || capability % 10 > minor)
    return emulator_fault(NO_BINARY, "a cubin for %d on a device of %d.%d", capability, major,
                          minor);
  sha256 hash;
  uint8_t digest[SHA256_BYTES];
  char path[2048], *end = path + snprintf(path, sizeof path - 80, "%s/", folder);
  sha256_open(&hash);
  sha256_add(&hash, bytes, elf_bytes(bytes));
  sha256_close(&hash, digest);
  for (int i = 0; i < SHA256_BYTES; i++) end += sprintf(end, "%02x", digest[i]);
  strcpy(end, ".so");
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) return emulator_fault(INVALID_IMAGE, "no module: %s", dlerror());
  module *made = calloc(1, sizeof *made);
  made->mark = MODULE_MARK;
  made->library = library;
  made->shared_limit = shared_limit(major, minor);
  *out = made;
  return 0;
}

int module_unload(void *handle) {
  module *m = handle;
  if (m == NULL || m->mark != MODULE_MARK) return INVALID_HANDLE;
  m->mark = 0;
  for (int i = 0; i < m->count; i++) {
    free(m->functions[i]->name);
    free(m->functions[i]);
  }
  dlclose(m->library);
  free(m);
  return 0;
}

int module_function(void **out, void *handle, const char *name) {
  module *m = handle;
  char symbol[512];
  if (m == NULL || m->mark != MODULE_MARK) return INVALID_HANDLE;
  snprintf(symbol, sizeof symbol, "dlcc_emulated_%s", name);
  const emulated_kernel *kernel = dlsym(m->library, symbol);
  if (kernel == NULL || m->count == MOST_FUNCTIONS) return NOT_FOUND;
  function *made = calloc(1, sizeof *made);
  made->kernel = kernel;
  made->name = strdup(name);
  made->dynamic_limit = STATIC_LIMIT - (int)kernel->shared_bytes;
  made->shared_limit = m->shared_limit;
  *out = m->functions[m->count++] = made;
  return 0;
}

int function_allow_shared(void *handle, int bytes) {
  function *f = handle;
  if (bytes < 0 || bytes + (int)f->kernel->shared_bytes > f->shared_limit) return INVALID_VALUE;
  if (bytes > f->dynamic_limit) f->dynamic_limit = bytes;
  return 0;
}

static int launch_check(const launch *made, const function *f) {
  const uint32_t *g = made->grid, *b = made->block;
  const uint64_t threads = (uint64_t)b[0] * b[1] * b[2];
  if (g[0] == 0 || g[1] == 0 || g[2] == 0 || threads == 0 || g[0] > INT32_MAX || g[1] > 65535 ||
      g[2] > 65535 || b[0] > 1024 || b[1] > 1024 || b[2] > 64 || threads > 1024)
    return emulator_fault(INVALID_VALUE, "%s: grid %u %u %u, block %u %u %u", f->name, g[0], g[1],
                          g[2], b[0], b[1], b[2]);
  const uint32_t bound = f->kernel->max_threads;
  const uint64_t warps = (threads + 31) / 32, registers = (f->kernel->registers + 7) / 8 * 8;
  if ((bound > 0 && threads > bound) || warps * 32 * registers > REGISTERS)
    return emulator_fault(OUT_OF_RESOURCES, "%s: %llu threads of %u registers", f->name,
                          (unsigned long long)threads, f->kernel->registers);
  if ((int)made->shared_bytes > f->dynamic_limit)
    return emulator_fault(INVALID_VALUE, "%s: %u bytes of shared memory, %d allowed", f->name,
                          made->shared_bytes, f->dynamic_limit);
  return 0;
}

int launch_make(launch *made, const node_parameters *p, int device) {
  const function *f = p->function;
  if (f == NULL || p->kernel != NULL || p->context != NULL || p->extra != NULL) return INVALID_VALUE;
  made->kernel = f->kernel;
  made->name = f->name;
  made->shared_bytes = p->shared_bytes;
  memcpy(made->grid, p->grid, sizeof made->grid);
  memcpy(made->block, p->block, sizeof made->block);
  for (uint32_t i = 0; i < f->kernel->parameters && i < MOST_PARAMETERS; i++) {
    memcpy(&made->arguments[i], p->arguments[i], 8);
    if (memory_device(made->arguments[i], 0) != device)
      return emulator_fault(INVALID_VALUE, "%s: parameter %u is no memory of device %d", f->name, i,
                            device);
  }
  return launch_check(made, f);
}

/* Signals of a kernel become errors: it touched what is no memory, or not aligned as it should. */
static sigjmp_buf kernel_exit;

static void kernel_signal(int number) { siglongjmp(kernel_exit, number); }

static const int kernel_signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE};
enum { SIGNALS = sizeof kernel_signals / sizeof *kernel_signals };

static int grid_run(const launch *made);

int launch_run(const launch *made) {
  struct sigaction before[SIGNALS], caught = {.sa_handler = kernel_signal, .sa_flags = SA_NODEFER};
  for (int i = 0; i < SIGNALS; i++) sigaction(kernel_signals[i], &caught, &before[i]);
  const int number = sigsetjmp(kernel_exit, 1);
  const int code = number == 0 ? grid_run(made)
                               : emulator_fault(ILLEGAL_ADDRESS, "%s: signal %d (%s)", made->name,
                                                number, strsignal(number));
  for (int i = 0; i < SIGNALS; i++) sigaction(kernel_signals[i], &before[i], NULL);
  return code;
}

static int grid_run(const launch *made) {
  void *arguments[MOST_PARAMETERS];
  uint64_t values[MOST_PARAMETERS];
  memcpy(values, made->arguments, sizeof values);
  for (uint32_t i = 0; i < made->kernel->parameters; i++) arguments[i] = &values[i];
  uint32_t place[3];
  for (place[2] = 0; place[2] < made->grid[2]; place[2]++)
    for (place[1] = 0; place[1] < made->grid[1]; place[1]++)
      for (place[0] = 0; place[0] < made->grid[0]; place[0]++) {
        const char *fault = made->kernel->run(arguments, made->grid, made->block, place,
                                              made->shared_bytes, emulator_reversed);
        if (fault != NULL) return emulator_fault(LAUNCH_FAILED, "%s: %s", made->name, fault);
      }
  return memory_check();
}
