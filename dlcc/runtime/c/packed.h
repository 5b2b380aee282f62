/* The content of a packed weights file, made by unpack.zig.
 *
 * Its checks end in a panic, which leaves through dlcc_unpack_exit: no Zig frame owns anything. */
#ifndef DLCC_PACKED_H
#define DLCC_PACKED_H

#include <setjmp.h>

extern DLCC_HIDDEN int DLCC_NAME(unpack)(const char *file, size_t file_bytes, char *content,
                                         size_t content_bytes, char *work, size_t work_bytes);
DLCC_HIDDEN _Noreturn void DLCC_NAME(unpack_panic)(void);

static _Thread_local jmp_buf *dlcc_unpack_exit;

_Noreturn void DLCC_NAME(unpack_panic)(void) { longjmp(*dlcc_unpack_exit, 1); }

/* Whether the streams are damaged. */
static __attribute__((noinline)) int dlcc_unpack(const char *file, size_t file_bytes, char *content,
                                                 char *work) {
  jmp_buf exit;
  dlcc_unpack_exit = &exit;
  if (_setjmp(exit) != 0) return 1;
  return DLCC_NAME(unpack)(file, file_bytes, content, dlcc_packed.content, work, dlcc_packed.work);
}

static uint64_t dlcc_padded(uint64_t bytes) {
  return (bytes + DLCC_ALIGNMENT - 1) / DLCC_ALIGNMENT * DLCC_ALIGNMENT;
}

/* Replaces the mapped image by its content in memory of its own. */
static dlcc_status dlcc_weights_unpack(dlcc_weights *weights, const char *image, const char *path) {
  const uint64_t bytes = dlcc_padded(dlcc_packed.content);
  dlcc_weights_header header;
  memcpy(&header, image, sizeof header);
  void *work = NULL;
  dlcc_status status = dlcc_allocate(&weights->unpacked, bytes, "the unpacked weights");
  if (status == DLCC_CODE(OK)) status = dlcc_allocate(&work, dlcc_packed.work, "unpacking");
  if (status != DLCC_CODE(OK)) return status;
  const uint32_t floats = dlcc_cpu_float_enter();
  const int damaged = dlcc_unpack(image + sizeof header, header.file_bytes - sizeof header,
                                  weights->unpacked, work);
  dlcc_cpu_float_leave(floats);
  free(work);
  if (damaged)
    return dlcc_fail(DLCC_CODE(BAD_WEIGHTS), "%s is corrupt: its streams are damaged", path);
  if (dlcc_hash(weights->unpacked, bytes) != header.unpacked_hash)
    return dlcc_fail(DLCC_CODE(BAD_WEIGHTS), "%s is corrupt: the hash of its unpacked content is wrong",
                     path);
  weights->content = weights->unpacked;
  return DLCC_CODE(OK);
}

#endif
