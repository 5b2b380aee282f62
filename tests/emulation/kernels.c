/* Runs kernels of a shared library on arrays from standard input; see machine.py for the format.
 * Each array ends, with its slack, before a page nobody may touch. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MOST_ARGUMENTS 12

typedef int32_t (*kernel1)(void *, int32_t, int32_t);
typedef int32_t (*kernel2)(void *, void *, int32_t, int32_t);
typedef int32_t (*kernel3)(void *, void *, void *, int32_t, int32_t);
typedef int32_t (*kernel4)(void *, void *, void *, void *, int32_t, int32_t);
typedef int32_t (*kernel5)(void *, void *, void *, void *, void *, int32_t, int32_t);
typedef int32_t (*kernel6)(void *, void *, void *, void *, void *, void *, int32_t, int32_t);
typedef int32_t (*kernel7)(void *, void *, void *, void *, void *, void *, void *, int32_t, int32_t);
typedef int32_t (*kernel8)(void *, void *, void *, void *, void *, void *, void *, void *, int32_t,
                           int32_t);
typedef int32_t (*kernel9)(void *, void *, void *, void *, void *, void *, void *, void *, void *,
                           int32_t, int32_t);
typedef int32_t (*kernel10)(void *, void *, void *, void *, void *, void *, void *, void *, void *,
                            void *, int32_t, int32_t);
typedef int32_t (*kernel11)(void *, void *, void *, void *, void *, void *, void *, void *, void *,
                            void *, void *, int32_t, int32_t);
typedef int32_t (*kernel12)(void *, void *, void *, void *, void *, void *, void *, void *, void *,
                            void *, void *, void *, int32_t, int32_t);

static void fail(const char *what) {
  fprintf(stderr, "%s\n", what);
  exit(2);
}

static void take(void *to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes) fail("the input is cut off");
}

static uint32_t number(void) {
  uint32_t value;
  take(&value, sizeof value);
  return value;
}

static char *place(uint32_t bytes, uint32_t slack, uint32_t align) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  const size_t size = ((size_t)bytes + align - 1) / align * align + slack;
  const size_t whole = (size + page - 1) / page * page;
  char *memory = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory + whole, page, PROT_NONE) != 0) fail("no memory");
  memset(memory, 0xff, whole);
  return memory + whole - size;
}

static int32_t call(void *f, uint32_t count, void **p, int32_t b, int32_t e) {
  switch (count) {
    case 1: return ((kernel1)f)(p[0], b, e);
    case 2: return ((kernel2)f)(p[0], p[1], b, e);
    case 3: return ((kernel3)f)(p[0], p[1], p[2], b, e);
    case 4: return ((kernel4)f)(p[0], p[1], p[2], p[3], b, e);
    case 5: return ((kernel5)f)(p[0], p[1], p[2], p[3], p[4], b, e);
    case 6: return ((kernel6)f)(p[0], p[1], p[2], p[3], p[4], p[5], b, e);
    case 7: return ((kernel7)f)(p[0], p[1], p[2], p[3], p[4], p[5], p[6], b, e);
    case 8: return ((kernel8)f)(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], b, e);
    case 9: return ((kernel9)f)(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], b, e);
    case 10: return ((kernel10)f)(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], b, e);
    case 11: return ((kernel11)f)(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], b, e);
    case 12: return ((kernel12)f)(p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], p[8], p[9], p[10], p[11], b, e);
    default: fail("a kernel has too many arguments"); return 1;
  }
}

int main(int argc, char **argv) {
  void *library = argc == 2 ? dlopen(argv[1], RTLD_NOW) : NULL;
  if (library == NULL) fail(argc == 2 ? dlerror() : "usage: kernels LIBRARY");
  const uint32_t arrays = number();
  char **address = calloc(arrays + 1, sizeof *address);
  uint32_t *bytes = calloc(arrays + 1, sizeof *bytes);
  for (uint32_t i = 0; i < arrays; i++) {
    bytes[i] = number();
    const uint32_t slack = number(), align = number();
    address[i] = place(bytes[i], slack, align);
    take(address[i], bytes[i]);
  }
  for (uint32_t calls = number(); calls > 0; calls--) {
    char name[256] = {0};
    const uint32_t length = number();
    if (length >= sizeof name) fail("a name is too long");
    take(name, length);
    void *function = dlsym(library, name), *arguments[MOST_ARGUMENTS];
    if (function == NULL) fail(dlerror());
    const uint32_t count = number();
    if (count > MOST_ARGUMENTS) fail("a kernel has too many arguments");
    for (uint32_t i = 0; i < count; i++) arguments[i] = address[number()];
    const int32_t begin = (int32_t)number(), end = (int32_t)number();
    if (call(function, count, arguments, begin, end) != 0) fail("a kernel failed");
  }
  for (uint32_t results = number(); results > 0; results--) {
    const uint32_t result = number();
    if (fwrite(address[result], 1, bytes[result], stdout) != bytes[result]) fail("no room");
  }
  return 0;
}
