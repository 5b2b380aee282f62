/* Unpacks streams with random damage: no access outside the three areas, and no crash.
 *
 *   mutate FILE CONTENT_BYTES WORK_BYTES ROUNDS
 *
 * FILE is a packed weights file. Each area ends where an unreadable page begins, so that a byte too
 * far is a crash, whoever compiled the access. Prints how many rounds failed. */
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int net_unpack(const char *file, size_t file_bytes, char *content, size_t content_bytes, char *work,
               size_t work_bytes);

static jmp_buf leave;
static int panics;

_Noreturn void net_unpack_panic(void) {
  panics++;
  longjmp(leave, 1);
}

static uint64_t state = 88172645463325252u;

static uint64_t draw(uint64_t below) { /* xorshift64 */
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state % below;
}

static char *guarded(size_t bytes) {
  const size_t page = (size_t)sysconf(_SC_PAGESIZE);
  const size_t room = (bytes + page - 1) / page * page;
  char *area = mmap(NULL, room + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (area == MAP_FAILED) exit(2);
  mprotect(area + page, room, PROT_READ | PROT_WRITE);
  return area + page + room - bytes;
}

static __attribute__((noinline)) int attempt(const char *file, size_t bytes, char *content,
                                             size_t content_bytes, char *work, size_t work_bytes) {
  if (setjmp(leave) != 0) return 2;
  return net_unpack(file, bytes, content, content_bytes, work, work_bytes);
}

int main(int count, char **arguments) {
  static char whole[1 << 20];
  const size_t header = 64;
  FILE *source = count == 5 ? fopen(arguments[1], "rb") : NULL;
  if (source == NULL) return 2;
  const size_t bytes = fread(whole, 1, sizeof whole, source) - header;
  fclose(source);
  const size_t content_bytes = strtoul(arguments[2], NULL, 10);
  const size_t work_bytes = strtoul(arguments[3], NULL, 10);
  char *content = guarded(content_bytes), *work = guarded(work_bytes);
  const long rounds = atol(arguments[4]);
  long failures = 0;
  for (long round = 0; round < rounds; round++) {
    const size_t kept = round % 4 == 1 ? draw(bytes + 1) : bytes;
    char *file = guarded(kept);
    memcpy(file, whole + header, kept);
    const uint64_t changes = round == 0 ? 0 : round % 4 == 1 ? draw(2) : 1 + draw(4);
    for (uint64_t i = 0; i < changes && kept > 0; i++) {
      const size_t near = kept < 400 || draw(2) ? kept : 400; /* table, directory */
      file[draw(near)] = (char)draw(256);
    }
    const size_t memory = round % 8 == 3 ? draw(work_bytes) : work_bytes;
    const size_t room = round % 8 == 7 ? draw(content_bytes) : content_bytes;
    memset(content, 0, content_bytes);
    if (attempt(file, kept, content, room, work + (work_bytes - memory), memory) != 0) failures++;
    else if (kept + 8 < bytes) return 3; /* cut off, and taken for whole */
    if (round == 0 && failures > 0) return 4;
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), span = (kept + page - 1) / page * page;
    munmap(file + kept - span - page, span + 2 * page);
  }
  printf("%ld of %ld failed, %d by a panic\n", failures, rounds, panics);
  return 0;
}
