/* Messages on a stream: a header of 16 bytes and a body. All numbers are little-endian.
 *
 *   u32 kind, u32 argument, u64 length of the body
 *
 * The client speaks first only after the greeting; then each request has one answer. The same
 * messages go between the server and the process that runs a network. */
#ifndef DLCC_SERVER_FRAME_H
#define DLCC_SERVER_FRAME_H

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "numbers are sent as they lie in memory, which must be little-endian"
#endif

enum { PROTOCOL_VERSION = 2, NONCE_BYTES = 32, TEXT_BYTES = 1024, CHUNK_BYTES = 1 << 16 };

/* Requests: argument, body -> answer. */
enum request {
  ASK_PROVE = 1,   /* version, HMAC-SHA256(token, nonce) -> ANSWER_BOARD */
  ASK_STORE = 2,   /* enum file, its bytes -> ANSWER_DONE */
  ASK_OPEN = 3,    /* threads, the network's C name -> ANSWER_OPENED; uses up the stored files */
  ASK_INPUTS = 4,  /* handle, all inputs one after another -> ANSWER_DONE */
  ASK_OUTPUTS = 5, /* handle -> ANSWER_OUTPUTS of one run */
  ASK_TIMES = 6,   /* handle, struct rounds -> ANSWER_TIMES */
  ASK_PROFILE = 7, /* handle, struct rounds -> ANSWER_PROFILE */
  ASK_CLOSE = 8    /* handle -> ANSWER_DONE */
};

enum file { FILE_LIBRARY = 0, FILE_WEIGHTS = 1, FILES = 2 };

enum answer {
  ANSWER_GREETING = 64, /* version, nonce */
  ANSWER_FAILED = 65,   /* enum failure, words */
  ANSWER_BOARD = 66,    /* 0, JSON */
  ANSWER_DONE = 67,
  ANSWER_OPENED = 68,  /* handle, struct opened */
  ANSWER_OUTPUTS = 69, /* handle, all outputs one after another */
  ANSWER_TIMES = 70,   /* handle, u64 nanoseconds of each run */
  ANSWER_PROFILE = 71  /* handle, u64 nanoseconds [run][step] */
};

enum failure {
  FAILED_PROTOCOL = 1, /* what came is not of this protocol, or not in its place */
  FAILED_VERSION = 2,
  FAILED_TOKEN = 3,
  FAILED_BUSY = 4,
  FAILED_LIMIT = 5,
  FAILED_LIBRARY = 6, /* it cannot be loaded */
  FAILED_CRASH = 7,
  FAILED_TIME = 8,
  FAILED_SYSTEM = 9,   /* the board lacks something: disk, memory, processes */
  FAILED_STATUS = 1000 /* and more: a status of the library's interface is added */
};

typedef struct header {
  uint32_t kind, argument;
  uint64_t length;
} header;

typedef struct rounds {
  uint64_t least_nanoseconds;
  uint32_t least_runs, most_runs;
} rounds;

typedef struct opened {
  uint64_t load_nanoseconds, fingerprint, input_bytes, output_bytes;
  uint32_t threads, steps;
  uint32_t variant; /* its number in the library's table */
  uint32_t zero;
} opened;

_Static_assert(sizeof(header) == 16 && sizeof(rounds) == 16 && sizeof(opened) == 48, "no padding");

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Milliseconds left, for poll. */
static int milliseconds_until(uint64_t deadline) {
  const uint64_t now = now_ns();
  if (now >= deadline) return 0;
  const uint64_t left = (deadline - now) / 1000000u + 1;
  return left > 1000000u ? 1000000 : (int)left;
}

/* 1 when `fd` is ready, 0 at the deadline, -1 if waiting failed. */
static int wait_for(int fd, short events, uint64_t deadline) {
  for (;;) {
    struct pollfd one = {.fd = fd, .events = events};
    const int ready = poll(&one, 1, milliseconds_until(deadline));
    if (ready > 0) return 1;
    if (ready < 0 && errno != EINTR) return -1;
    if (now_ns() >= deadline) return 0;
  }
}

/* 0 after all bytes; -1 at the end of the stream, on an error or at the deadline. */
static int read_all(int fd, void *data, size_t size, uint64_t deadline) {
  char *to = data;
  while (size > 0) {
    if (wait_for(fd, POLLIN, deadline) <= 0) return -1;
    const ssize_t got = recv(fd, to, size, MSG_DONTWAIT);
    if (got < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (got <= 0) return -1;
    to += got;
    size -= (size_t)got;
  }
  return 0;
}

static int write_all(int fd, const void *data, size_t size, uint64_t deadline) {
  const char *from = data;
  while (size > 0) {
    if (wait_for(fd, POLLOUT, deadline) <= 0) return -1;
    const ssize_t put = send(fd, from, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (put < 0 && (errno == EINTR || errno == EAGAIN)) continue;
    if (put <= 0) return -1;
    from += put;
    size -= (size_t)put;
  }
  return 0;
}

static int send_frame(int fd, uint32_t kind, uint32_t argument, const void *body, uint64_t length,
                      uint64_t deadline) {
  const header head = {kind, argument, length};
  if (write_all(fd, &head, sizeof head, deadline) != 0) return -1;
  return write_all(fd, body, length, deadline);
}

__attribute__((format(printf, 4, 5))) static int send_failure(int fd, uint64_t deadline,
                                                              uint32_t failure, const char *format,
                                                              ...) {
  char text[TEXT_BYTES];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  return send_frame(fd, ANSWER_FAILED, failure, text, strlen(text), deadline);
}

#endif
