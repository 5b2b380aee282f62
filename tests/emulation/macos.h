/* Loads a shared library of macOS into a process of Linux on the same CPU, with what of libSystem
 * the runtime of a network calls: enough to run it under an emulator of Linux programs.
 *
 * The environment variable LACKS names a CPU feature that the system is to deny. */
#ifndef DLCC_TEST_MACOS_H
#define DLCC_TEST_MACOS_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* -- libSystem, where it differs from Linux' libc ------------------------------------------ */

static __thread int macos_errno;
static char *macos_template; /* of variables that each thread has its own of */
static uint64_t macos_template_bytes, macos_template_filled;

static int *macos_error(void) { return &macos_errno; }

static int macos_failed(void) {
  macos_errno = errno == EAGAIN ? 35 : errno == ELOOP ? 62 : errno == ENAMETOOLONG ? 63 : errno;
  return -1;
}

/* Its further arguments would be on the stack, but the runtime creates no files. */
static int macos_open(const char *path, int flags) {
  if (flags != (0x1000000 | 4)) abort(); /* O_CLOEXEC | O_NONBLOCK | O_RDONLY */
  const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  return file < 0 ? macos_failed() : file;
}

static int macos_fstat(int file, char *out) {
  struct stat facts;
  if (fstat(file, &facts) != 0) return macos_failed();
  const uint16_t mode = (uint16_t)facts.st_mode;
  const int64_t size = facts.st_size;
  memset(out, 0, 144);
  memcpy(out + 4, &mode, sizeof mode);
  memcpy(out + 96, &size, sizeof size);
  return 0;
}

static int macos_sigmask(int how, const uint32_t *set, uint32_t *before) {
  if (how != 3 || set == NULL) abort(); /* SIG_SETMASK */
  if (before != NULL) *before = 0;
  return 0;
}

static void macos_fill(char *out, const char *pattern, size_t bytes) {
  for (size_t i = 0; i < bytes; i++) out[i] = pattern[i % 16];
}

static uint64_t macos_now(int clock) {
  struct timespec now;
  if (clock != 8) abort(); /* CLOCK_UPTIME_RAW */
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static int macos_sysctl(const char *name, void *value, size_t *bytes, void *fresh, size_t count) {
  static const struct {
    const char *name;
    int word, bit;
  } features[] = {{"FEAT_LSE", 1, 8},     {"FEAT_FP16", 1, 9}, {"FEAT_RDM", 1, 12},
                  {"FEAT_DotProd", 1, 20}, {"FEAT_FHM", 1, 23}, {"FEAT_I8MM", 2, 13},
                  {"FEAT_BF16", 2, 14}};
  const char *denied = getenv("LACKS"), *prefix = "hw.optional.arm.";
  int found = -1;
  if (fresh != NULL || count != 0 || *bytes != sizeof found) abort();
  if (strcmp(name, "hw.perflevel0.logicalcpu") == 0) found = 4;
  if (strcmp(name, "hw.optional.floatingpoint") == 0) found = 1;
  if (strcmp(name, "hw.optional.AdvSIMD") == 0) found = 1;
  for (size_t i = 0; i < sizeof features / sizeof *features; i++) {
    if (strncmp(name, prefix, strlen(prefix)) != 0) break;
    if (strcmp(name + strlen(prefix), features[i].name) != 0) continue;
    found = getauxval(features[i].word == 1 ? AT_HWCAP : AT_HWCAP2) >> features[i].bit & 1;
    if (denied != NULL && strcmp(denied, features[i].name) == 0) found = 0;
  }
  if (found < 0) {
    macos_errno = ENOENT;
    return -1;
  }
  memcpy(value, &found, sizeof found);
  return 0;
}

/* Arguments stand in a row of 8 bytes each, which is also what a va_list points to. */
__attribute__((used)) static int macos_vsnprintf(char *out, size_t room, const char *format,
                                                 const uint64_t *arguments) {
  size_t used = 0;
  for (const char *at = format; *at != '\0';) {
    char one[64], made[1024];
    size_t length = 1;
    if (*at == '%') {
      length = strcspn(at, "dusxcg") + 1;
      memcpy(one, at, length);
      one[length] = '\0';
      const uint64_t value = *arguments++;
      if (strpbrk(one, "lz") != NULL)
        snprintf(made, sizeof made, one, (unsigned long long)value);
      else if (one[length - 1] == 's')
        snprintf(made, sizeof made, one, (const char *)(uintptr_t)value);
      else
        snprintf(made, sizeof made, one, (int)value);
    } else {
      made[0] = *at, made[1] = '\0';
    }
    at += length;
    for (const char *c = made; *c != '\0'; c++, used++)
      if (used + 1 < room) out[used] = *c;
  }
  if (room > 0) out[used < room ? used : room - 1] = '\0';
  return (int)used;
}

int macos_snprintf(char *out, size_t room, const char *format, ...);
__asm__(".text\nmacos_snprintf:\n  mov x3, sp\n  b macos_vsnprintf\n");

/* The address of a thread's own copy of a variable, from its descriptor {thunk, key, offset}. */
__attribute__((used)) static char *macos_variable(const uint64_t *descriptor) {
  static __thread char *block;
  if (block == NULL) {
    block = aligned_alloc(64, (macos_template_bytes + 63) / 64 * 64);
    memset(block, 0, macos_template_bytes);
    memcpy(block, macos_template, macos_template_filled);
  }
  return block + descriptor[2];
}

/* A thunk changes no register but x0 and those of the linker; here the values are made unusable, so
 * that a caller who counts on more is found out. */
void macos_thunk(void);
__asm__(
    ".text\nmacos_thunk:\n"
    "  stp x29, x30, [sp, #-144]!\n  mov x29, sp\n"
    "  stp x1, x2, [sp, #16]\n  stp x3, x4, [sp, #32]\n  stp x5, x6, [sp, #48]\n"
    "  stp x7, x8, [sp, #64]\n  stp x9, x10, [sp, #80]\n  stp x11, x12, [sp, #96]\n"
    "  stp x13, x14, [sp, #112]\n  str x15, [sp, #128]\n  sub sp, sp, #512\n"
    "  stp q0, q1, [sp]\n  stp q2, q3, [sp, #32]\n  stp q4, q5, [sp, #64]\n"
    "  stp q6, q7, [sp, #96]\n  stp q16, q17, [sp, #128]\n  stp q18, q19, [sp, #160]\n"
    "  stp q20, q21, [sp, #192]\n  stp q22, q23, [sp, #224]\n  stp q24, q25, [sp, #256]\n"
    "  stp q26, q27, [sp, #288]\n  stp q28, q29, [sp, #320]\n  stp q30, q31, [sp, #352]\n"
    "  bl macos_variable\n"
    "  ldp q0, q1, [sp]\n  ldp q2, q3, [sp, #32]\n  ldp q4, q5, [sp, #64]\n"
    "  ldp q6, q7, [sp, #96]\n  ldp q16, q17, [sp, #128]\n  ldp q18, q19, [sp, #160]\n"
    "  ldp q20, q21, [sp, #192]\n  ldp q22, q23, [sp, #224]\n  ldp q24, q25, [sp, #256]\n"
    "  ldp q26, q27, [sp, #288]\n  ldp q28, q29, [sp, #320]\n  ldp q30, q31, [sp, #352]\n"
    "  add sp, sp, #512\n"
    "  ldp x1, x2, [sp, #16]\n  ldp x3, x4, [sp, #32]\n  ldp x5, x6, [sp, #48]\n"
    "  ldp x7, x8, [sp, #64]\n  ldp x9, x10, [sp, #80]\n  ldp x11, x12, [sp, #96]\n"
    "  ldp x13, x14, [sp, #112]\n  ldr x15, [sp, #128]\n  ldp x29, x30, [sp], #144\n"
    "  mov x16, #-1\n  mov x17, #-1\n  ret\n");

static void macos_never(void) { abort(); }

/* Mutexes and conditions of macOS have 64 and 48 bytes, jump buffers 192: room for Linux' own. */
static const struct {
  const char *name;
  void (*code)(void);
} macos_functions[] = {
#define SAME(name) {"_" #name, (void (*)(void))name}
    SAME(bzero), SAME(memcpy), SAME(memmove), SAME(memset), SAME(memcmp), SAME(strcmp),
    SAME(close), SAME(free), SAME(getpid), SAME(mmap), SAME(munmap), SAME(posix_memalign),
    SAME(pthread_cond_broadcast), SAME(pthread_cond_destroy), SAME(pthread_cond_init),
    SAME(pthread_cond_signal), SAME(pthread_cond_wait), SAME(pthread_create), SAME(pthread_join),
    SAME(pthread_mutex_destroy), SAME(pthread_mutex_init), SAME(pthread_mutex_lock),
    SAME(pthread_mutex_unlock), SAME(longjmp),
    {"__setjmp", (void (*)(void))_setjmp},
    {"___error", (void (*)(void))macos_error}, {"_open", (void (*)(void))macos_open},
    {"_fstat", (void (*)(void))macos_fstat}, {"_pthread_sigmask", (void (*)(void))macos_sigmask},
    {"_memset_pattern16", (void (*)(void))macos_fill},
    {"_clock_gettime_nsec_np", (void (*)(void))macos_now},
    {"_sysctlbyname", (void (*)(void))macos_sysctl},
    {"_snprintf", (void (*)(void))macos_snprintf},
    {"_vsnprintf", (void (*)(void))macos_vsnprintf}, {"__tlv_bootstrap", macos_thunk},
    {"dyld_stub_binder", macos_never}, /* everything is bound at once */
};

/* -- the loader: <mach-o/loader.h> ----------------------------------------------------------- */

typedef struct macos_image {
  char *file, *base; /* the file as read, and as it lies in memory */
  uint64_t segments[16];
  uint32_t symbols[4]; /* offset, count, offset and bytes of strings */
} macos_image;

static uint32_t macos_u32(const char *at) {
  uint32_t value;
  memcpy(&value, at, sizeof value);
  return value;
}

static uint64_t macos_u64(const char *at) {
  uint64_t value;
  memcpy(&value, at, sizeof value);
  return value;
}

static uint64_t macos_uleb(const char **at) {
  uint64_t value = 0;
  int shift = 0;
  while (**at & 0x80) value |= (uint64_t)(*(*at)++ & 0x7f) << shift, shift += 7;
  return value | (uint64_t)(*(*at)++ & 0x7f) << shift;
}

static void *macos_function(const char *name) {
  for (size_t i = 0; i < sizeof macos_functions / sizeof *macos_functions; i++)
    if (strcmp(macos_functions[i].name, name) == 0) return (void *)macos_functions[i].code;
  fprintf(stderr, "no %s\n", name);
  exit(2);
}

/* Pointers within the image. */
static void macos_rebase(macos_image *image, const char *at, const char *end) {
  char *place = NULL;
  while (at < end) {
    const int code = *at & 0xf0, number = *at++ & 0xf;
    uint64_t count = 0, skip = 0;
    switch (code) {
      case 0x00: return;
      case 0x10: break;
      case 0x20: place = image->base + image->segments[number] + macos_uleb(&at); break;
      case 0x30: place += macos_uleb(&at); break;
      case 0x40: place += 8 * number; break;
      case 0x50: count = number; break;
      case 0x60: count = macos_uleb(&at); break;
      case 0x70: count = 1, skip = macos_uleb(&at); break;
      case 0x80: count = macos_uleb(&at), skip = macos_uleb(&at); break;
      default: abort();
    }
    for (; count > 0; count--, place += 8 + skip) {
      const uint64_t value = macos_u64(place) + (uintptr_t)image->base;
      memcpy(place, &value, sizeof value);
    }
  }
}

/* Pointers to libSystem. */
static void macos_bind(macos_image *image, const char *at, const char *end) {
  char *place = NULL;
  const char *name = NULL;
  while (at < end) {
    const int code = *at & 0xf0, number = *at++ & 0xf;
    uint64_t count = 0, skip = 0;
    switch (code) {
      case 0x00: case 0x10: case 0x30: case 0x50: break;
      case 0x20: macos_uleb(&at); break;
      case 0x40: name = at, at += strlen(at) + 1; break;
      case 0x70: place = image->base + image->segments[number] + macos_uleb(&at); break;
      case 0x80: place += macos_uleb(&at); break;
      case 0x90: count = 1; break;
      case 0xa0: count = 1, skip = macos_uleb(&at); break;
      case 0xb0: count = 1, skip = 8 * number; break;
      case 0xc0: count = macos_uleb(&at), skip = macos_uleb(&at); break;
      default: abort();
    }
    for (; count > 0; count--, place += 8 + skip) {
      void *function = macos_function(name);
      memcpy(place, &function, sizeof function);
    }
  }
}

static char *macos_read(const char *path) {
  FILE *file = fopen(path, "rb");
  if (file == NULL) return NULL;
  fseek(file, 0, SEEK_END);
  const long bytes = ftell(file);
  rewind(file);
  char *data = malloc(bytes);
  if (fread(data, 1, bytes, file) != (size_t)bytes) exit(2);
  fclose(file);
  return data;
}

static void macos_map(macos_image *image, const char *command, int number) {
  const uint64_t address = macos_u64(command + 24), bytes = macos_u64(command + 32);
  image->segments[number] = address;
  if (address % 0x4000 != 0) abort();
  if (mmap(image->base + address, bytes, PROT_READ | PROT_WRITE | PROT_EXEC,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
    exit(2);
  memcpy(image->base + address, image->file + macos_u64(command + 40), macos_u64(command + 48));
  for (uint32_t i = 0; i < macos_u32(command + 64); i++) {
    const char *section = command + 72 + 80 * i;
    const uint32_t type = macos_u32(section + 64) & 0xff;
    if (type != 0x11 && type != 0x12) continue; /* thread-local, with values or zero */
    const uint64_t start = macos_u64(section + 32), end = start + macos_u64(section + 40);
    if (macos_template == NULL) macos_template = image->base + start;
    macos_template_bytes = image->base + end - macos_template;
    if (type == 0x11) macos_template_filled = macos_template_bytes;
  }
}

static void *macos_dlopen(const char *path, int flags) {
  macos_image *image = calloc(1, sizeof *image);
  (void)flags;
  image->file = macos_read(path);
  if (image->file == NULL || macos_u32(image->file) != 0xfeedfacf) return NULL;
  image->base = mmap(NULL, (size_t)1 << 31, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const char *command = image->file + 32, *dynamic = NULL;
  int segments = 0;
  for (uint32_t i = 0; i < macos_u32(image->file + 16); i++, command += macos_u32(command + 4)) {
    const uint32_t kind = macos_u32(command);
    if (kind == 0x19) macos_map(image, command, segments++);
    if (kind == 0x2) memcpy(image->symbols, command + 8, sizeof image->symbols);
    if (kind == 0x80000022) dynamic = command;
    if (kind == 0x80000034) abort(); /* chained fixups */
  }
  if (dynamic != NULL) {
    const char *tables[5];
    for (int i = 0; i < 5; i++) tables[i] = image->file + macos_u32(dynamic + 8 + 8 * i);
    macos_rebase(image, tables[0], tables[0] + macos_u32(dynamic + 12));
    macos_bind(image, tables[1], tables[1] + macos_u32(dynamic + 20));
    macos_bind(image, tables[3], tables[3] + macos_u32(dynamic + 36));
  }
  __builtin___clear_cache(image->base, image->base + image->segments[segments - 1]);
  return image;
}

static void *macos_dlsym(void *handle, const char *name) {
  const macos_image *image = handle;
  for (uint32_t i = 0; i < image->symbols[1]; i++) {
    const char *row = image->file + image->symbols[0] + 16 * i;
    const char *found = image->file + image->symbols[2] + macos_u32(row);
    if ((row[4] & 0x0f) == 0x0f && found[0] == '_' && strcmp(found + 1, name) == 0)
      return image->base + macos_u64(row + 8);
  }
  return NULL;
}

static const char *macos_dlerror(void) { return "not a library of macOS"; }

#endif
