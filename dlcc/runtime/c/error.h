/* Error text: one buffer per thread, so that a text is never overwritten by another thread. */
#ifndef DLCC_ERROR_H
#define DLCC_ERROR_H

static _Thread_local char dlcc_error_text[768];

__attribute__((format(printf, 2, 3))) static dlcc_status dlcc_fail(dlcc_status status,
                                                                   const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(dlcc_error_text, sizeof dlcc_error_text, format, arguments);
  va_end(arguments);
  return status;
}

/* strerror is not thread-safe and strerror_r has two signatures; these cover what can happen. */
static const char *dlcc_system_reason(int code) {
  switch (code) {
    case ENOENT:
    case ENOTDIR:
      return "no such file";
    case EACCES:
    case EPERM:
      return "permission denied";
    case EMFILE:
    case ENFILE:
      return "too many open files";
    case ENOMEM:
      return "out of memory";
    case EAGAIN:
      return "the limit on threads or memory is reached";
    case ELOOP:
      return "too many symbolic links";
    case ENAMETOOLONG:
      return "the name is too long";
    case EIO:
      return "input/output error";
    default:
      return "system error";
  }
}

#endif
