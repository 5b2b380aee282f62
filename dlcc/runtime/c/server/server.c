/* dlcc-server: runs the networks that `dlcc bench --remote` sends, and tells how long they took.
 *
 * Whoever has the token can run any code here with the rights of this process: that is what the
 * server is for. docs/benchmarking.md says how to keep strangers out. */
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <dirent.h>

#include "session.h"

enum { LEAST_TOKEN = 8, BACKLOG = 8, RANDOM_TOKEN_BYTES = 16 };

static const char usage[] =
    "usage: dlcc-server [--listen ADDRESS:PORT] [--folder DIR] [--seconds N] [--megabytes N]\n"
    "\n"
    "Runs the networks that `dlcc bench --remote ADDRESS:PORT` sends. Whoever has the token can run\n"
    "any code here with the rights of this process.\n"
    "\n"
    "  --listen ADDRESS:PORT  numeric; 0.0.0.0 for every network, port 0 for any [127.0.0.1:7490]\n"
    "  --folder DIR           where what is sent is stored meanwhile [TMPDIR, else /tmp]\n"
    "  --seconds N            longest answer of a network [60]\n"
    "  --megabytes N          most that a client may store [1000]\n"
    "  --version              print version and architecture\n"
    "\n"
    "DLCC_TOKEN in the environment is the token, of 8 characters or more. Without it a random one\n"
    "is made up and printed.\n";

static volatile sig_atomic_t stopping;

static void on_signal(int number) {
  if (number != SIGCHLD) stopping = 1;
}

__attribute__((noreturn, format(printf, 1, 2))) static void leave(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("dlcc-server: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(2);
}

static uint64_t parse_number(const char *option, const char *text, uint64_t most) {
  char *end;
  errno = 0;
  const unsigned long long value = strtoull(text, &end, 10);
  if (!isdigit((unsigned char)*text) || *end != '\0' || errno != 0 || value < 1 || value > most)
    leave("%s takes a number from 1 to %llu, not %s", option, (unsigned long long)most, text);
  return value;
}

static int listen_on(const char *place) {
  char address[128];
  const char *colon = strrchr(place, ':');
  size_t size = colon == NULL ? 0 : (size_t)(colon - place);
  if (colon == NULL || size == 0 || size >= sizeof address)
    leave("--listen takes ADDRESS:PORT, not %s", place);
  if (place[0] == '[' && place[size - 1] == ']') { /* IPv6 */
    place++;
    size -= 2;
  }
  snprintf(address, sizeof address, "%.*s", (int)size, place);
  struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE,
                           .ai_socktype = SOCK_STREAM};
  struct addrinfo *found;
  if (getaddrinfo(address, colon + 1, &hints, &found) != 0)
    leave("%s is not a numeric address and a port", place);
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
  if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
      bind(fd, found->ai_addr, found->ai_addrlen) != 0 || listen(fd, BACKLOG) != 0)
    leave("cannot listen on %s: %s", place, strerror(errno));
  freeaddrinfo(found);
  return fd;
}

/* Prints where the server listens, with the port that was chosen. */
static void announce(int fd) {
  struct sockaddr_storage address;
  socklen_t size = sizeof address;
  char host[128], port[16];
  if (getsockname(fd, (struct sockaddr *)&address, &size) != 0 ||
      getnameinfo((struct sockaddr *)&address, size, host, sizeof host, port, sizeof port,
                  NI_NUMERICHOST | NI_NUMERICSERV) != 0)
    leave("cannot tell the address: %s", strerror(errno));
  const int brackets = strchr(host, ':') != NULL;
  printf("listening on %s%s%s:%s\n", brackets ? "[" : "", host, brackets ? "]" : "", port);
  fflush(stdout);
}

static void make_token(char token[static 2 * RANDOM_TOKEN_BYTES + 1]) {
  unsigned char bytes[RANDOM_TOKEN_BYTES];
  if (random_bytes(bytes, sizeof bytes) != 0)
    leave("no random numbers for a token: %s", strerror(errno));
  for (int i = 0; i < RANDOM_TOKEN_BYTES; i++) snprintf(token + 2 * i, 3, "%02x", bytes[i]);
  printf("token %s\n", token);
}

/* The files of a session lie in one folder, without folders in it. */
static void remove_folder(const char *path) {
  DIR *folder = opendir(path);
  if (folder == NULL) return;
  for (const struct dirent *entry; (entry = readdir(folder)) != NULL;)
    unlinkat(dirfd(folder), entry->d_name, 0);
  closedir(folder);
  rmdir(path);
}

/* A client that vanished without a word is noticed after two minutes. */
static void set_options(int fd) {
  const int on = 1, idle = 60, interval = 10, probes = 6;
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

/* Returns the process of the session, or 0 if there could be none. */
static pid_t start_session(const settings *given, char folder[static PATH_MAX], int fd,
                           int listener, const sigset_t *mask) {
  set_options(fd);
  snprintf(folder, PATH_MAX, "%s/dlcc-server-XXXXXX", given->folder);
  if (mkdtemp(folder) == NULL) {
    send_failure(fd, body_deadline(), FAILED_SYSTEM, "no folder can be made in %s: %s",
                 given->folder, strerror(errno));
    return 0;
  }
  const pid_t pid = fork();
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    signal(SIGCHLD, SIG_DFL);
    sigprocmask(SIG_SETMASK, mask, NULL);
    close(listener);
    session_main(given, folder, fd);
  }
  if (pid > 0) return pid;
  send_failure(fd, body_deadline(), FAILED_SYSTEM, "no process for a session: %s", strerror(errno));
  remove_folder(folder);
  return 0;
}

/* Whether the session's process has ended; what it left behind is removed. */
static int session_over(pid_t session, const char *folder) {
  int status;
  if (waitpid(session, &status, WNOHANG) == 0) return 0;
  if (WIFSIGNALED(status))
    fprintf(stderr, "dlcc-server: a session was ended by signal %d (%s)\n", WTERMSIG(status),
            strsignal(WTERMSIG(status)));
  remove_folder(folder);
  return 1;
}

/* A client that comes right behind another one waits until that one's session is over. */
static int session_soon_over(pid_t session, const char *folder) {
  const struct timespec pause = {0, 10000000};
  for (int i = 0; i < 50; i++) {
    if (session_over(session, folder)) return 1;
    nanosleep(&pause, NULL);
  }
  return 0;
}

/* One client at a time: two measurements would disturb each other. */
static void serve(const settings *given, int listener) {
  char folder[PATH_MAX];
  pid_t session = 0;
  sigset_t blocked, mask;
  const struct sigaction action = {.sa_handler = on_signal};
  sigemptyset(&blocked);
  sigaddset(&blocked, SIGCHLD);
  sigaddset(&blocked, SIGTERM);
  sigaddset(&blocked, SIGINT);
  sigprocmask(SIG_BLOCK, &blocked, &mask);
  sigaction(SIGCHLD, &action, NULL);
  sigaction(SIGTERM, &action, NULL);
  sigaction(SIGINT, &action, NULL);
  while (!stopping) {
    struct pollfd one = {.fd = listener, .events = POLLIN};
    const int ready = ppoll(&one, 1, NULL, &mask);
    if (session != 0 && session_over(session, folder)) session = 0;
    if (ready <= 0) continue;
    const int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0) continue;
    if (session != 0 && session_soon_over(session, folder)) session = 0;
    if (session == 0)
      session = start_session(given, folder, fd, listener, &mask);
    else
      send_failure(fd, now_ns(), FAILED_BUSY, "the board is measuring for another client");
    close(fd);
  }
  if (session == 0) return;
  kill(session, SIGKILL);
  waitpid(session, NULL, 0);
  remove_folder(folder);
}

int main(int count, char **arguments) {
  static char random_token[2 * RANDOM_TOKEN_BYTES + 1];
  const char *place = "127.0.0.1:7490", *temporary = getenv("TMPDIR");
  settings given = {.token = getenv("DLCC_TOKEN"),
                    .folder = temporary != NULL && *temporary != '\0' ? temporary : "/tmp",
                    .seconds = 60,
                    .megabytes = 1000};
  for (int i = 1; i < count; i++) {
    const char *option = arguments[i];
    if (strcmp(option, "--help") == 0 || strcmp(option, "-h") == 0) return fputs(usage, stdout) < 0;
    if (strcmp(option, "--version") == 0)
      return printf("%s, protocol %d, %s\n", SERVER_VERSION, PROTOCOL_VERSION,
                    SERVER_ARCHITECTURE) < 0;
    const char *value = arguments[++i];
    if (i >= count) leave("%s is unknown or lacks its value; --help lists the options", option);
    if (strcmp(option, "--listen") == 0)
      place = value;
    else if (strcmp(option, "--folder") == 0)
      given.folder = value;
    else if (strcmp(option, "--seconds") == 0)
      given.seconds = parse_number(option, value, 1000000);
    else if (strcmp(option, "--megabytes") == 0)
      given.megabytes = parse_number(option, value, 1000000);
    else
      leave("there is no option %s; --help lists the options", option);
  }
  if (given.token == NULL) {
    make_token(random_token);
    given.token = random_token;
  } else if (strlen(given.token) < LEAST_TOKEN) {
    leave("DLCC_TOKEN has %zu characters, %d are needed", strlen(given.token), LEAST_TOKEN);
  }
  given.token = strdup(given.token);
  if (given.token == NULL) leave("out of memory");
  unsetenv("DLCC_TOKEN"); /* what is run here need not know it */
  const int listener = listen_on(place);
  announce(listener);
  serve(&given, listener);
  return 0;
}
