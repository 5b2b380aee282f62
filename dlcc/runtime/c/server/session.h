/* One client: it proves that it knows the token, stores files, opens networks and has them run. It
 * has a process of its own, so that nothing it sends can harm the server. */
#ifndef DLCC_SERVER_SESSION_H
#define DLCC_SERVER_SESSION_H

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "board.h"
#include "frame.h"
#include "runner.h"
#include "sha256.h"

enum {
  MOST_NETWORKS = 64,
  PROOF_SECONDS = 10,  /* for a stranger to become a client */
  IDLE_SECONDS = 3600, /* between two requests */
  BODY_SECONDS = 60    /* without one byte of a body that was announced */
};

typedef struct settings {
  const char *token;
  const char *folder;
  uint64_t seconds, megabytes;
} settings;

/* A network that is open: its process, or pid 0 if there is none. */
typedef struct place {
  pid_t pid;
  int fd;
  uint64_t input_bytes;
  uint64_t stored_bytes; /* of its files, which are on the disk until it ends */
} place;

typedef struct session {
  const settings *given;
  const char *folder; /* of its own */
  int fd;
  int stored[FILES];
  uint64_t sizes[FILES]; /* of the stored ones */
  unsigned opened; /* so many networks; the next one's files have this number */
  place places[MOST_NETWORKS];
} session;

static uint64_t seconds_from_now(uint64_t seconds) {
  return now_ns() + seconds * UINT64_C(1000000000);
}

static uint64_t body_deadline(void) { return seconds_from_now(BODY_SECONDS); }

static void place_end(place *p) {
  if (p->pid == 0) return;
  kill(p->pid, SIGKILL);
  while (waitpid(p->pid, NULL, 0) < 0 && errno == EINTR) continue;
  close(p->fd);
  p->pid = 0;
}

/* Processes of networks end with this one. */
__attribute__((noreturn)) static void session_end(session *s) {
  for (int i = 0; i < MOST_NETWORKS; i++) place_end(&s->places[i]);
  _exit(0);
}

static void session_send(session *s, uint32_t kind, uint32_t argument, const void *body,
                         uint64_t length) {
  if (send_frame(s->fd, kind, argument, body, length, body_deadline()) != 0) session_end(s);
}

#define session_fail(s, failure, ...)                                              \
  do {                                                                             \
    if (send_failure((s)->fd, body_deadline(), failure, __VA_ARGS__) != 0) session_end(s); \
  } while (0)

/* What is still under way is read, for up to two seconds: closing before that would make the system
 * take back the last words, too. */
__attribute__((noreturn)) static void session_part(session *s) {
  char chunk[1024];
  const uint64_t deadline = seconds_from_now(2);
  shutdown(s->fd, SHUT_WR);
  while (wait_for(s->fd, POLLIN, deadline) > 0 && read(s->fd, chunk, sizeof chunk) > 0) continue;
  session_end(s);
}

/* Where requests and bodies are no longer in step, the only way is to part. */
#define session_refuse(s, failure, ...)    \
  do {                                     \
    session_fail(s, failure, __VA_ARGS__); \
    session_part(s);                       \
  } while (0)

static void session_read(session *s, void *data, uint64_t size) {
  if (read_all(s->fd, data, size, body_deadline()) != 0) session_end(s);
}

/* Reads a body of exactly this length. */
static void session_body(session *s, const header *head, void *data, uint64_t length) {
  if (head->length != length)
    session_refuse(s, FAILED_PROTOCOL, "request %u has %llu bytes, %llu are needed", head->kind,
                   (unsigned long long)head->length, (unsigned long long)length);
  session_read(s, data, length);
}

/* getrandom is younger than the oldest libc that this runs with. */
static int random_bytes(unsigned char *bytes, size_t size) {
  FILE *file = fopen("/dev/urandom", "re");
  if (file == NULL) return -1;
  const size_t got = fread(bytes, 1, size, file);
  fclose(file);
  return got == size ? 0 : -1;
}

static void session_prove(session *s) {
  uint8_t greeting[NONCE_BYTES], proof[SHA256_BYTES], expected[SHA256_BYTES], differing = 0;
  header head;
  const uint64_t deadline = seconds_from_now(PROOF_SECONDS);
  if (random_bytes(greeting, sizeof greeting) != 0) session_end(s);
  session_send(s, ANSWER_GREETING, PROTOCOL_VERSION, greeting, sizeof greeting);
  if (read_all(s->fd, &head, sizeof head, deadline) != 0) session_end(s);
  if (head.kind != ASK_PROVE)
    session_refuse(s, FAILED_PROTOCOL, "the first message must prove that the token is known");
  if (head.argument != PROTOCOL_VERSION)
    session_refuse(s, FAILED_VERSION, "the client speaks version %u of the protocol, %s version %d",
                   head.argument, SERVER_VERSION, PROTOCOL_VERSION);
  if (head.length != sizeof proof) session_refuse(s, FAILED_PROTOCOL, "the proof has 32 bytes");
  if (read_all(s->fd, proof, sizeof proof, deadline) != 0) session_end(s);
  hmac_sha256(s->given->token, greeting, sizeof greeting, expected);
  for (int i = 0; i < SHA256_BYTES; i++) differing |= proof[i] ^ expected[i];
  if (differing == 0) return;
  const struct timespec pause = {1, 0}; /* one guess a second */
  nanosleep(&pause, NULL);
  session_refuse(s, FAILED_TOKEN, "the token is not this server's");
}

/* ---- files ---- */

static void session_path(const session *s, char path[static PATH_MAX], int file) {
  snprintf(path, PATH_MAX, "%s/%u.%s", s->folder, s->opened, file == FILE_LIBRARY ? "so" : "weights");
}

/* Reads a body that nobody wants, so that the next request is in its place. */
static void session_skip(session *s, uint64_t length) {
  static char chunk[CHUNK_BYTES];
  while (length > 0) {
    const uint64_t size = length < sizeof chunk ? length : sizeof chunk;
    session_read(s, chunk, size);
    length -= size;
  }
}

/* 0, or errno of the failing call; the body is read to its end in either case. */
static int session_receive(session *s, const char *path, uint64_t length) {
  static char chunk[CHUNK_BYTES];
  const int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  int failed = file < 0 ? errno : 0;
  while (length > 0) {
    const uint64_t size = length < sizeof chunk ? length : sizeof chunk;
    session_read(s, chunk, size);
    length -= size;
    for (uint64_t done = 0; failed == 0 && done < size;) {
      const ssize_t put = write(file, chunk + done, size - done);
      if (put < 0 && errno != EINTR) failed = errno;
      if (put > 0) done += (uint64_t)put;
    }
  }
  if (file >= 0 && close(file) != 0 && failed == 0) failed = errno;
  return failed;
}

/* Bytes that may still be stored. */
static uint64_t session_room(const session *s) {
  uint64_t used = 0;
  for (int i = 0; i < FILES; i++) used += s->sizes[i];
  for (int i = 0; i < MOST_NETWORKS; i++) {
    if (s->places[i].pid != 0) used += s->places[i].stored_bytes;
  }
  return s->given->megabytes * 1000000u - used;
}

static void session_store(session *s, const header *head) {
  char path[PATH_MAX];
  const uint64_t most = s->given->megabytes * 1000000u, left = session_room(s);
  if (head->argument >= FILES)
    session_refuse(s, FAILED_PROTOCOL, "there is no kind %u of files", head->argument);
  if (head->length > most)
    session_refuse(s, FAILED_LIMIT, "a file has %llu bytes, this server takes %llu MB; "
                   "start it with a larger --megabytes",
                   (unsigned long long)head->length, (unsigned long long)s->given->megabytes);
  if (head->length > left) {
    session_skip(s, head->length);
    session_fail(s, FAILED_LIMIT, "all files together would have more than %llu MB; "
                 "start the server with a larger --megabytes",
                 (unsigned long long)s->given->megabytes);
    return;
  }
  session_path(s, path, (int)head->argument);
  const int failed = session_receive(s, path, head->length);
  if (failed != 0) {
    unlink(path);
    session_fail(s, FAILED_SYSTEM, "the file cannot be stored in %s: %s", s->given->folder,
                 strerror(failed));
    return;
  }
  s->stored[head->argument] = 1;
  s->sizes[head->argument] = head->length;
  session_send(s, ANSWER_DONE, 0, NULL, 0);
}

/* ---- networks ---- */

static void session_crash(session *s, place *p, const char *doing) {
  int status = 0;
  while (waitpid(p->pid, &status, 0) < 0 && errno == EINTR) continue;
  close(p->fd);
  p->pid = 0;
  if (!WIFSIGNALED(status)) {
    session_fail(s, FAILED_CRASH, "the network's process ended with code %d while it %s",
                 WIFEXITED(status) ? WEXITSTATUS(status) : -1, doing);
    return;
  }
  const int signal_number = WTERMSIG(status);
  const char *why = signal_number == SIGILL    ? ": an instruction that this CPU does not have"
                    : signal_number == SIGKILL ? ": most often the board is out of memory"
                                               : "";
  session_fail(s, FAILED_CRASH, "the network's process was ended by signal %d (%s)%s while it %s",
               signal_number, strsignal(signal_number), why, doing);
}

/* Waits for an answer of a network; a client that leaves takes everything with it. */
static int session_wait(session *s, place *p, uint64_t deadline) {
  for (;;) {
    struct pollfd both[2] = {{.fd = p->fd, .events = POLLIN}, {.fd = s->fd, .events = POLLRDHUP}};
    const int ready = poll(both, 2, milliseconds_until(deadline));
    if (ready < 0 && errno != EINTR) session_end(s);
    if (ready > 0 && both[1].revents != 0) session_end(s);
    if (ready > 0 && both[0].revents != 0) return 1;
    if (now_ns() >= deadline) return 0;
  }
}

/* Takes the start of a network's answer; `doing` says what it was at, should there be none. */
static int session_answer(session *s, place *p, header *head, const char *doing) {
  const uint64_t deadline = seconds_from_now(s->given->seconds);
  if (!session_wait(s, p, deadline)) {
    place_end(p);
    session_fail(s, FAILED_TIME, "the network did not finish within %llu s while it %s; start the "
                 "server with a larger --seconds",
                 (unsigned long long)s->given->seconds, doing);
    return -1;
  }
  if (read_all(p->fd, head, sizeof *head, body_deadline()) == 0) return 0;
  session_crash(s, p, doing);
  return -1;
}

/* Passes an answer on whose start was read. Halfway through it there is no way back to the next. */
static void session_forward(session *s, place *p, const header *head) {
  static char chunk[CHUNK_BYTES];
  if (write_all(s->fd, head, sizeof *head, body_deadline()) != 0) session_end(s);
  for (uint64_t left = head->length; left > 0;) {
    const uint64_t size = left < sizeof chunk ? left : sizeof chunk;
    if (read_all(p->fd, chunk, size, body_deadline()) != 0) session_end(s);
    if (write_all(s->fd, chunk, size, body_deadline()) != 0) session_end(s);
    left -= size;
  }
}

static void session_relay(session *s, place *p, const char *doing) {
  header head;
  if (session_answer(s, p, &head, doing) == 0) session_forward(s, p, &head);
}

/* In the new process: nothing of the server's is left open, and it ends with its parent. */
static void become_runner(session *s, int fd) {
  const struct rlimit none = {0, 0};
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  setrlimit(RLIMIT_CORE, &none);
  close(s->fd);
  for (int i = 0; i < MOST_NETWORKS; i++) {
    if (s->places[i].pid != 0) close(s->places[i].fd);
  }
  dup2(STDERR_FILENO, STDOUT_FILENO);
  fcntl(fd, F_SETFD, FD_CLOEXEC);
}

static int elf_machine(const char *path, unsigned char *class, unsigned *machine) {
  unsigned char start[20];
  FILE *file = fopen(path, "re");
  if (file == NULL) return -1;
  const size_t got = fread(start, 1, sizeof start, file);
  fclose(file);
  if (got != sizeof start || memcmp(start, "\177ELF", 4) != 0) return -1;
  *class = start[4];
  *machine = start[18] | (unsigned)start[19] << 8;
  return 0;
}

/* dlopen says "no such file" of a library for another machine. */
static int session_check_library(session *s, const char *path) {
  unsigned char class;
  unsigned machine;
  if (elf_machine(path, &class, &machine) != 0) {
    session_fail(s, FAILED_LIBRARY, "it is not an ELF file");
    return -1;
  }
  const int wide = class == 2;
  if (machine == SERVER_ELF_MACHINE && wide == (sizeof(void *) == 8)) return 0;
  session_fail(s, FAILED_LIBRARY, "it is for ELF machine %u, %d bits; this board is %s (%d, %d bits)",
               machine, wide ? 64 : 32, SERVER_ARCHITECTURE, SERVER_ELF_MACHINE,
               8 * (int)sizeof(void *));
  return -1;
}

static int is_name(const char *text) {
  for (; *text != '\0'; text++) {
    if (!isalnum((unsigned char)*text) && *text != '_') return 0;
  }
  return 1;
}

static int session_start(session *s, place *p, const char *library, const char *weights,
                         const char *name, uint32_t threads) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) return -1;
  const pid_t pid = fork();
  if (pid == 0) {
    close(ends[0]);
    become_runner(s, ends[1]);
    runner_main(ends[1], library, weights, name, threads);
  }
  close(ends[1]);
  if (pid < 0) {
    close(ends[0]);
    return -1;
  }
  p->pid = pid;
  p->fd = ends[0];
  return 0;
}

static int session_opened(session *s, place *p, uint32_t handle) {
  static const char doing[] = "was loaded";
  header head;
  opened told;
  if (session_answer(s, p, &head, doing) != 0) return -1;
  if (head.kind != ANSWER_OPENED || head.length != sizeof told) {
    session_forward(s, p, &head);
    return -1;
  }
  if (read_all(p->fd, &told, sizeof told, body_deadline()) != 0) {
    session_crash(s, p, doing);
    return -1;
  }
  p->input_bytes = told.input_bytes;
  session_send(s, ANSWER_OPENED, handle, &told, sizeof told);
  return 0;
}

/* The files stay on the disk for as long as the network has them open. */
static void session_launch(session *s, place *p, uint32_t handle, const char *name,
                           uint32_t threads) {
  char library[PATH_MAX], weights[PATH_MAX];
  session_path(s, library, FILE_LIBRARY);
  session_path(s, weights, FILE_WEIGHTS);
  if (session_check_library(s, library) == 0) {
    const char *separate = s->stored[FILE_WEIGHTS] ? weights : NULL;
    p->stored_bytes = s->sizes[FILE_LIBRARY] + s->sizes[FILE_WEIGHTS];
    if (session_start(s, p, library, separate, name, threads) != 0)
      session_fail(s, FAILED_SYSTEM, "no process for the network: %s", strerror(errno));
    else if (session_opened(s, p, handle) != 0)
      place_end(p);
  }
  unlink(library);
  unlink(weights);
}

static void session_open(session *s, const header *head) {
  char name[NAME_BYTES] = "";
  uint32_t handle = 0;
  if (head->length == 0 || head->length >= sizeof name)
    session_refuse(s, FAILED_PROTOCOL, "a name has 1 to %d characters", NAME_BYTES - 1);
  session_read(s, name, head->length);
  if (strlen(name) != head->length || !is_name(name))
    session_refuse(s, FAILED_PROTOCOL, "the name is not that of a C function");
  if (!s->stored[FILE_LIBRARY])
    session_refuse(s, FAILED_PROTOCOL, "the library must be stored before it is opened");
  while (handle < MOST_NETWORKS && s->places[handle].pid != 0) handle++;
  if (handle < MOST_NETWORKS)
    session_launch(s, &s->places[handle], handle, name, head->argument);
  else
    session_fail(s, FAILED_LIMIT, "%d networks are open, which is the most", MOST_NETWORKS);
  memset(s->stored, 0, sizeof s->stored);
  memset(s->sizes, 0, sizeof s->sizes);
  s->opened++;
}

static place *session_place(session *s, const header *head) {
  if (head->argument >= MOST_NETWORKS || s->places[head->argument].pid == 0)
    session_refuse(s, FAILED_PROTOCOL, "no network is open under number %u", head->argument);
  return &s->places[head->argument];
}

static void session_pass_inputs(session *s, place *p, const header *head) {
  static char chunk[CHUNK_BYTES];
  if (head->length != p->input_bytes)
    session_refuse(s, FAILED_PROTOCOL, "the inputs have %llu bytes, the network takes %llu",
                   (unsigned long long)head->length, (unsigned long long)p->input_bytes);
  const header ask = {ASK_INPUTS, 0, 0};
  int lost = write_all(p->fd, &ask, sizeof ask, body_deadline());
  for (uint64_t left = head->length; left > 0;) {
    const uint64_t size = left < sizeof chunk ? left : sizeof chunk;
    session_read(s, chunk, size);
    if (lost == 0) lost = write_all(p->fd, chunk, size, body_deadline());
    left -= size;
  }
  session_relay(s, p, "took its inputs");
}

static void session_ask(session *s, place *p, const header *head) {
  struct {
    header head;
    rounds asked;
  } ask = {{head->kind, 0, 0}, {0, 0, 0}};
  size_t size = sizeof ask.head;
  if (head->kind == ASK_OUTPUTS) {
    session_body(s, head, NULL, 0);
  } else {
    session_body(s, head, &ask.asked, sizeof ask.asked);
    size = sizeof ask;
  }
  /* A process that has ended is noticed by its answer. */
  (void)write_all(p->fd, &ask, size, body_deadline());
  session_relay(s, p, "ran");
}

static void session_request(session *s, const header *head) {
  switch (head->kind) {
    case ASK_STORE:
      session_store(s, head);
      return;
    case ASK_OPEN:
      session_open(s, head);
      return;
    case ASK_INPUTS:
      session_pass_inputs(s, session_place(s, head), head);
      return;
    case ASK_OUTPUTS:
    case ASK_TIMES:
    case ASK_PROFILE:
      session_ask(s, session_place(s, head), head);
      return;
    case ASK_CLOSE:
      session_body(s, head, NULL, 0);
      if (head->argument < MOST_NETWORKS) place_end(&s->places[head->argument]);
      session_send(s, ANSWER_DONE, 0, NULL, 0);
      return;
    default:
      session_refuse(s, FAILED_PROTOCOL, "there is no request %u", head->kind);
  }
}

/* Never returns. `folder` is an empty one; the server removes it afterwards. */
__attribute__((noreturn)) static void session_main(const settings *given, const char *folder,
                                                   int fd) {
  static session s;
  static board told;
  header head;
  s.given = given;
  s.folder = folder;
  s.fd = fd;
  session_prove(&s);
  board_describe(&told, given->seconds, given->megabytes);
  session_send(&s, ANSWER_BOARD, 0, told.text, told.used);
  while (read_all(fd, &head, sizeof head, seconds_from_now(IDLE_SECONDS)) == 0)
    session_request(&s, &head);
  session_end(&s);
}

#endif
