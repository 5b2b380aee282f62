/* The process that runs one network: it opens the library and answers requests on a socket, which
 * only the server holds at the other end. Whatever the library does, it does to this process. */
#ifndef DLCC_SERVER_RUNNER_H
#define DLCC_SERVER_RUNNER_H

#include <dlfcn.h>
#include <stdlib.h>

#include "frame.h"
#include "network.h"

enum { MOST_TENSORS = 4096, MOST_TIMES = 1 << 20, NAME_BYTES = 256 };

typedef struct runner {
  int fd;
  const network_info_t *info;
  network_status_t (*create)(const char *, int, network_t **);
  network_status_t (*run)(network_t *, const void *const *, void *const *);
  network_status_t (*profile)(network_t *, const void *const *, void *const *, uint64_t *);
  int (*threads)(const network_t *);
  const network_variant_t *(*variant)(const network_t *);
  const char *(*error)(void);
  network_t *instance;
  void **inputs, **outputs;
  uint64_t input_bytes, output_bytes;
  uint64_t *times;
  uint32_t steps; /* of the variant that runs */
} runner;

static uint64_t runner_deadline(void) { return now_ns() + UINT64_C(86400000000000); }

__attribute__((noreturn)) static void runner_end(void) { _exit(0); }

static void runner_answer(const runner *r, uint32_t kind, const void *body, uint64_t length) {
  if (send_frame(r->fd, kind, 0, body, length, runner_deadline()) != 0) runner_end();
}

#define runner_fail(r, failure, ...)                                                      \
  do {                                                                                    \
    if (send_failure((r)->fd, runner_deadline(), failure, __VA_ARGS__) != 0) runner_end(); \
  } while (0)

static void *runner_symbol(void *library, const char *name, const char *suffix) {
  char symbol[NAME_BYTES + 32];
  snprintf(symbol, sizeof symbol, "%s_%s", name, suffix);
  return dlsym(library, symbol);
}

/* POSIX lets a pointer to data be one to a function; C has no cast for it. */
#define BIND(library, name, function, suffix)                         \
  do {                                                                \
    void *found = runner_symbol(library, name, suffix);               \
    memcpy(&(function), &found, sizeof found);                        \
    if (found == NULL) missing = suffix;                              \
  } while (0)

static int runner_bind(runner *r, const char *path, const char *name) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    runner_fail(r, FAILED_LIBRARY, "%s", dlerror());
    return -1;
  }
  const char *missing = NULL;
  const network_info_t *(*info)(void);
  BIND(library, name, info, "info");
  BIND(library, name, r->create, "create");
  BIND(library, name, r->run, "run");
  BIND(library, name, r->profile, "profile");
  BIND(library, name, r->threads, "threads");
  BIND(library, name, r->variant, "variant");
  BIND(library, name, r->error, "error");
  if (missing != NULL) {
    runner_fail(r, FAILED_LIBRARY, "it has no function %s_%s", name, missing);
    return -1;
  }
  r->info = info();
  if (r->info->abi == NETWORK_ABI) return 0;
  runner_fail(r, FAILED_LIBRARY, "its interface has number %u, this server speaks %u",
              r->info->abi, (unsigned)NETWORK_ABI);
  return -1;
}

static int runner_tensors(const network_tensor_t *tensors, uint32_t count, void ***addresses,
                          uint64_t *total) {
  *total = 0;
  if (count > MOST_TENSORS) return -1;
  *addresses = calloc(count + 1, sizeof **addresses);
  if (*addresses == NULL) return -1;
  for (uint32_t i = 0; i < count; i++) {
    const size_t size = (size_t)tensors[i].bytes;
    if (posix_memalign(&(*addresses)[i], 64, size + 1) != 0) return -1;
    memset((*addresses)[i], 0, size);
    *total += size;
  }
  return 0;
}

static int runner_allocate(runner *r) {
  const network_info_t *info = r->info;
  r->times = malloc(MOST_TIMES * sizeof *r->times);
  if (r->times != NULL && info->step_count <= MOST_TIMES &&
      runner_tensors(info->inputs, info->input_count, &r->inputs, &r->input_bytes) == 0 &&
      runner_tensors(info->outputs, info->output_count, &r->outputs, &r->output_bytes) == 0)
    return 0;
  runner_fail(r, FAILED_SYSTEM, "there is no memory for the inputs and outputs");
  return -1;
}

static void runner_status(const runner *r, network_status_t status) {
  runner_fail(r, FAILED_STATUS + (uint32_t)status, "%s", r->error());
}

static int runner_open(runner *r, const char *path, const char *weights, const char *name,
                       uint32_t threads) {
  if (runner_bind(r, path, name) != 0 || runner_allocate(r) != 0) return -1;
  const uint64_t before = now_ns();
  const network_status_t status = r->create(weights, (int)threads, &r->instance);
  const uint64_t after = now_ns();
  if (status != NETWORK_OK) {
    runner_status(r, status);
    return -1;
  }
  const network_variant_t *variant = r->variant(r->instance);
  r->steps = variant->step_count;
  const opened told = {after - before,
                       r->info->fingerprint,
                       r->input_bytes,
                       r->output_bytes,
                       (uint32_t)r->threads(r->instance),
                       r->steps,
                       (uint32_t)(variant - r->info->variants),
                       0};
  runner_answer(r, ANSWER_OPENED, &told, sizeof told);
  return 0;
}

static void runner_take_inputs(runner *r) {
  for (uint32_t i = 0; i < r->info->input_count; i++) {
    const size_t size = (size_t)r->info->inputs[i].bytes;
    if (read_all(r->fd, r->inputs[i], size, runner_deadline()) != 0) runner_end();
  }
  runner_answer(r, ANSWER_DONE, NULL, 0);
}

static network_status_t runner_run(runner *r) {
  return r->run(r->instance, (const void *const *)r->inputs, r->outputs);
}

static void runner_give_outputs(runner *r) {
  const network_status_t status = runner_run(r);
  if (status != NETWORK_OK) {
    runner_status(r, status);
    return;
  }
  const header head = {ANSWER_OUTPUTS, 0, r->output_bytes};
  const uint64_t deadline = runner_deadline();
  if (write_all(r->fd, &head, sizeof head, deadline) != 0) runner_end();
  for (uint32_t i = 0; i < r->info->output_count; i++) {
    const size_t size = (size_t)r->info->outputs[i].bytes;
    if (write_all(r->fd, r->outputs[i], size, deadline) != 0) runner_end();
  }
}

/* Runs until both the time and the number of runs are reached; one run before them does not
 * count. `width` times of each run are written. */
static void runner_measure(runner *r, const rounds *asked, int profile) {
  const uint32_t width = profile ? r->steps : 1;
  const uint32_t room = width > 0 ? MOST_TIMES / width : 1;
  const uint32_t most = asked->most_runs < room ? asked->most_runs : room;
  network_status_t status = runner_run(r);
  const uint64_t start = now_ns();
  uint32_t runs = 0;
  while (status == NETWORK_OK && runs < most) {
    uint64_t *times = r->times + (size_t)runs * width;
    const uint64_t before = now_ns();
    if (runs >= asked->least_runs && before - start >= asked->least_nanoseconds) break;
    if (profile) {
      status = r->profile(r->instance, (const void *const *)r->inputs, r->outputs, times);
    } else {
      status = runner_run(r);
      *times = now_ns() - before;
    }
    runs++;
  }
  if (status != NETWORK_OK)
    runner_status(r, status);
  else
    runner_answer(r, profile ? ANSWER_PROFILE : ANSWER_TIMES, r->times,
                  (uint64_t)runs * width * sizeof *r->times);
}

/* Never returns. `weights` is NULL where the library holds them. */
__attribute__((noreturn)) static void runner_main(int fd, const char *path, const char *weights,
                                                  const char *name, uint32_t threads) {
  runner r = {.fd = fd};
  if (runner_open(&r, path, weights, name, threads) != 0) runner_end();
  for (;;) {
    header head;
    rounds asked;
    if (read_all(fd, &head, sizeof head, UINT64_MAX) != 0) runner_end();
    switch (head.kind) {
      case ASK_INPUTS:
        runner_take_inputs(&r);
        break;
      case ASK_OUTPUTS:
        runner_give_outputs(&r);
        break;
      default: /* the server passes on nothing else */
        if (read_all(fd, &asked, sizeof asked, runner_deadline()) != 0) runner_end();
        runner_measure(&r, &asked, head.kind == ASK_PROFILE);
    }
  }
}

#endif
