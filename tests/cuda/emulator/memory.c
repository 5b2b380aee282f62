#include "memory.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "driver.h"

enum { PAGE = 4096, ALIGNMENT = 256, POISON = 0xff };

typedef struct allocation {
  struct allocation *next;
  char *pages;
  size_t page_bytes, bytes;
  char *start; /* so that the last full 256 bytes end where the page does */
  int device;
} allocation;

static allocation *allocations;

static size_t rounded(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

int memory_allocate(uint64_t *memory, size_t bytes, int device) {
  if (bytes == 0) return INVALID_VALUE;
  allocation *made = calloc(1, sizeof *made);
  const size_t room = rounded(bytes, ALIGNMENT);
  made->page_bytes = rounded(room, PAGE) + 2 * PAGE;
  made->pages = mmap(NULL, made->page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (made->pages == MAP_FAILED) {
    free(made);
    return OUT_OF_MEMORY;
  }
  mprotect(made->pages + PAGE, made->page_bytes - 2 * PAGE, PROT_READ | PROT_WRITE);
  memset(made->pages + PAGE, POISON, made->page_bytes - 2 * PAGE);
  made->start = made->pages + made->page_bytes - PAGE - room;
  made->bytes = bytes;
  made->device = device;
  made->next = allocations;
  allocations = made;
  *memory = (uint64_t)made->start;
  return 0;
}

int memory_free(uint64_t memory) {
  for (allocation **link = &allocations; *link != NULL; link = &(*link)->next) {
    allocation *found = *link;
    if ((uint64_t)found->start != memory) continue;
    *link = found->next;
    munmap(found->pages, found->page_bytes);
    free(found);
    return 0;
  }
  return emulator_fault(INVALID_VALUE, "free of %#llx, which was not allocated",
                        (unsigned long long)memory);
}

int memory_device(uint64_t address, size_t bytes) {
  for (const allocation *a = allocations; a != NULL; a = a->next) {
    const uint64_t start = (uint64_t)a->start;
    if (address >= start && address + bytes <= start + a->bytes) return a->device;
  }
  return -1;
}

int memory_check(void) {
  for (const allocation *a = allocations; a != NULL; a = a->next) {
    const size_t room = rounded(a->bytes, ALIGNMENT);
    for (size_t i = a->bytes; i < room; i++)
      if ((unsigned char)a->start[i] != POISON)
        return emulator_fault(ILLEGAL_ADDRESS, "byte %zu of an allocation of %zu was written", i,
                              a->bytes);
    for (const char *at = a->pages + PAGE; at < a->start; at++)
      if ((unsigned char)*at != POISON)
        return emulator_fault(ILLEGAL_ADDRESS, "%zu bytes in front of an allocation were written",
                              (size_t)(a->start - at));
  }
  return 0;
}

uint64_t memory_count(void) {
  uint64_t count = 0;
  for (const allocation *a = allocations; a != NULL; a = a->next) count++;
  return count;
}
