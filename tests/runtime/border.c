/* Calls the functions of the network "border" (border.py) in random order with good and bad
 * arguments, and holds every answer against what docs/artifact.md promises.
 *
 *   border SEED ROUNDS THREADS
 *
 * Runs in a folder with border.weights, where each thread writes files of its own. Made for
 * sanitizers: buffers have exactly their size, so that a byte too far is seen. Prints the number of
 * calls that were taken and refused, or the round that found a fault. */
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "border.h"

enum { ROWS = 24, COLUMNS = 16, CELLS = ROWS * COLUMNS, ITEMS = 37, MOST = 1 << 16, NETS = 3 };

typedef struct caller {
  uint64_t state;
  int number;
  long rounds, taken, refused;
  char fault[1100];
  border_t *nets[NETS];
  void *arenas[NETS];
} caller;

static border_t *shared;
static unsigned char whole[MOST];
static size_t whole_bytes;
static float bias[COLUMNS];
static char long_name[4001];

static uint64_t draw(caller *self, uint64_t below) { /* xorshift64 */
  self->state ^= self->state << 13;
  self->state ^= self->state >> 7;
  self->state ^= self->state << 17;
  return self->state % below;
}

static int chance(caller *self, int of) { return draw(self, (uint64_t)of) == 0; }

static int fault(caller *self, const char *what, int status) {
  snprintf(self->fault, sizeof self->fault, "%s, status %d: %.700s", what, status, border_error());
  return 1;
}

/* -- weights files ------------------------------------------------------------------------------ */

static uint64_t hash(const unsigned char *content, uint64_t bytes) {
  uint64_t sum = bytes, key = 0;
  for (uint64_t at = 0; at < bytes; at += 8) {
    uint64_t word;
    memcpy(&word, content + at, 8);
    key += UINT64_C(0x9e3779b97f4a7c15);
    word += key;
    word ^= word >> 32;
    word *= UINT64_C(0xd6e8feb86659fd93);
    word ^= word >> 32;
    sum += word;
  }
  return sum;
}

/* What create has to say of a file: OK, BAD_WEIGHTS, or -1 where both are right. */
typedef struct verdict {
  int status;
  int good; /* its content is the network's */
} verdict;

/* Writes a copy of the weights file with some damage to `path`. With `sealed` the hash in the header
 * fits again. */
static verdict write_damaged(caller *self, const char *path) {
  unsigned char *copy = malloc(MOST + 64);
  size_t bytes = whole_bytes;
  memcpy(copy, whole, whole_bytes);
  memset(copy + whole_bytes, 0, 64);
  const int sealed = chance(self, 3), kind = (int)draw(self, 4);
  if (kind == 0) bytes = draw(self, whole_bytes + 64);
  for (uint64_t i = kind == 1 ? 0 : 1 + draw(self, 4); i > 0; i--)
    copy[draw(self, kind == 2 ? 64 : whole_bytes)] ^= (unsigned char)(1 << draw(self, 8));
  if (sealed && bytes == whole_bytes) {
    const uint64_t fits = hash(copy + 64, whole_bytes - 64);
    memcpy(copy + 32, &fits, 8);
  }
  verdict told = {BORDER_BAD_WEIGHTS, 0};
  const int head = memcmp(copy, whole, 16) == 0 && memcmp(copy + 24, whole + 24, 8) == 0 &&
                   memcmp(copy + 40, whole + 40, 24) == 0;
  const int same = memcmp(copy + 64, whole + 64, whole_bytes - 64) == 0;
  if (bytes == whole_bytes && head) {
    const int intact = hash(copy + 64, whole_bytes - 64) == *(const uint64_t *)(copy + 32);
    if (memcmp(copy, whole, whole_bytes) == 0)
      told = (verdict){BORDER_OK, 1};
    else if (intact) /* bytes of the content within the padding; streams that say the same */
      told = (verdict){-1, same};
  }
  unlink(path); /* an instance may have mapped it */
  FILE *file = fopen(path, "wb");
  if (file == NULL || fwrite(copy, 1, bytes, file) != bytes) abort();
  fclose(file);
  free(copy);
  return told;
}

/* -- calls -------------------------------------------------------------------------------------- */

static const int thread_counts[] = {0, 1, 2, 3, 4, 5, -1, 1000, INT_MAX, INT_MIN};

/* A path in `text` or NULL, and what create says of it. */
static const char *draw_path(caller *self, char *text, size_t room, verdict *told) {
  *told = (verdict){BORDER_BAD_WEIGHTS, 0};
  switch (draw(self, 12)) {
    case 0:
      return "absent.weights";
    case 1:
      return "";
    case 2:
      return "/";
    case 3:
      memset(text, 'x', room - 1);
      text[room - 1] = '\0';
      return text;
    case 4:
    case 5:
    case 6:
    case 7:
    case 8:
      snprintf(text, room, "damaged-%d.weights", self->number);
      *told = write_damaged(self, text);
      return text;
    case 9:
      *told = (verdict){BORDER_OK, 1};
      return NULL;
    default:
      *told = (verdict){BORDER_OK, 1};
      return "border.weights";
  }
}

static int do_create(caller *self) {
  char text[5000];
  const uint64_t slot = draw(self, NETS);
  border_destroy(self->nets[slot]);
  free(self->arenas[slot]);
  self->nets[slot] = NULL, self->arenas[slot] = NULL;
  verdict told;
  const char *path = draw_path(self, text, sizeof text, &told);
  const int threads = thread_counts[draw(self, chance(self, 3) ? 10 : 5)];
  int expected = threads < 0 || threads > BORDER_MAX_THREADS ? BORDER_INVALID_ARGUMENT : told.status;
  border_t *net = (border_t *)self;
  border_t **out = chance(self, 20) ? NULL : &net;
  int status;
  const char *names[] = {"base", "", "avx9", NULL, long_name};
  const uint64_t way = draw(self, 3);
  if (way == 0) {
    status = border_create(path, threads, out);
  } else if (way == 1) {
    const char *name = names[chance(self, 2) ? 0 : draw(self, 5)];
    if (name == NULL || strcmp(name, "base") != 0) expected = BORDER_INVALID_ARGUMENT;
    status = border_create_variant(path, threads, name, out);
  } else {
    const size_t room = chance(self, 3) ? draw(self, BORDER_ARENA_BYTES) : BORDER_ARENA_BYTES;
    const size_t off = chance(self, 4) ? 1 + draw(self, 63) : 0;
    char *arena = chance(self, 6) ? NULL : aligned_alloc(64, (room + off + 64) / 64 * 64);
    self->arenas[slot] = arena;
    if (arena == NULL)
      expected = BORDER_INVALID_ARGUMENT;
    else if (expected == BORDER_OK && (off != 0 || room < BORDER_ARENA_BYTES))
      expected = BORDER_INVALID_ARGUMENT;
    status = border_create_in(path, threads, arena ? arena + off : NULL, room, out);
  }
  if (out == NULL) {
    self->refused++;
    return status == BORDER_INVALID_ARGUMENT ? 0 : fault(self, "create without out", status);
  }
  if (expected >= 0 && status != expected) return fault(self, "create", status);
  if ((status == BORDER_OK) != (net != NULL)) return fault(self, "create's out", status);
  if (status != BORDER_OK && border_error()[0] == '\0') return fault(self, "no text", status);
  status == BORDER_OK ? self->taken++ : self->refused++;
  if (status == BORDER_OK && !told.good) { /* its numbers are anybody's */
    border_destroy(net);
    return 0;
  }
  self->nets[slot] = net;
  if (net == NULL) return 0;
  const int given = border_threads(net);
  if (threads > 0 ? given != threads : given < 1 || given > BORDER_MAX_THREADS)
    return fault(self, "threads", given);
  return strcmp(border_variant(net)->name, "base") == 0 ? 0 : fault(self, "variant", 0);
}

typedef struct buffers {
  float *x, *y;
  int32_t *n, *m;
} buffers;

/* Exactly as large as they must be. */
static buffers make_buffers(caller *self) {
  buffers made = {malloc(CELLS * 4), malloc(CELLS * 4), malloc(ITEMS * 4), malloc(ITEMS * 4)};
  for (int i = 0; i < CELLS; i++) made.x[i] = (float)(int64_t)draw(self, 1000) - 500, made.y[i] = 7;
  for (int i = 0; i < ITEMS; i++) made.n[i] = (int32_t)draw(self, 1000), made.m[i] = 7;
  return made;
}

static void free_buffers(buffers *made) {
  free(made->x), free(made->y), free(made->n), free(made->m);
}

static int right(const buffers *b) {
  for (int i = 0; i < CELLS; i++) {
    const float sum = b->x[i] + bias[i % COLUMNS];
    if (b->y[i] != (sum > 0 ? sum : 0)) return 0;
  }
  for (int i = 0; i < ITEMS; i++)
    if (b->m[i] != b->n[i] + 1) return 0;
  return 1;
}

static int untouched(const buffers *b) {
  for (int i = 0; i < CELLS; i++)
    if (b->y[i] != 7) return 0;
  for (int i = 0; i < ITEMS; i++)
    if (b->m[i] != 7) return 0;
  return 1;
}

static int do_run(caller *self) {
  border_t *net = chance(self, 3) ? shared : self->nets[draw(self, NETS)];
  buffers b = make_buffers(self);
  const void *inputs[] = {b.x, b.n, chance(self, 2) ? NULL : b.x};
  void *outputs[] = {b.y, b.m};
  const void *const *in = inputs;
  void *const *out = outputs;
  uint64_t *times = malloc(BORDER_STEPS * sizeof *times), *given = times;
  int bad = net == NULL;
  const int profile = chance(self, 3);
  switch (draw(self, 16)) {
    case 0: in = NULL, bad = 1; break;
    case 1: out = NULL, bad = 1; break;
    case 2: inputs[draw(self, 2)] = NULL, bad = 1; break;
    case 3: outputs[draw(self, 2)] = NULL, bad = 1; break;
    case 4: inputs[0] = (const char *)b.x + 1 + draw(self, 3), bad = 1; break;
    case 5: outputs[1] = (char *)b.m + 1 + draw(self, 3), bad = 1; break;
    case 6: outputs[0] = b.x, bad = 1; break;
    case 7: outputs[1] = b.y + draw(self, CELLS), bad = 1; break;
    case 8: outputs[1] = b.n + draw(self, ITEMS), bad = 1; break;
    case 9: inputs[1] = b.y + draw(self, CELLS - ITEMS), bad = 1; break;
    case 10: given = NULL, bad |= profile; break;
    default: break;
  }
  const int status = profile ? border_profile(net, in, out, given) : border_run(net, in, out);
  int wrong = 0;
  if (status != (bad ? BORDER_INVALID_ARGUMENT : BORDER_OK)) wrong = fault(self, "run", status);
  else if (bad && !untouched(&b)) wrong = fault(self, "a refused run wrote", status);
  else if (!bad && !right(&b)) wrong = fault(self, "wrong numbers", status);
  bad ? self->refused++ : self->taken++;
  free(times);
  free_buffers(&b);
  return wrong;
}

static int do_pin(caller *self) {
  border_t *net = self->nets[draw(self, NETS)];
  const int workers = net == NULL ? 0 : border_threads(net) - 1;
  const int odd[] = {0, 0, -1, INT_MIN, INT_MAX, 1 << 20, 1023, 1024};
  int *cpus = malloc((size_t)(workers > 0 ? workers : 1) * sizeof *cpus);
  for (int i = 0; i < workers; i++) cpus[i] = odd[draw(self, 8)];
  const int status = border_pin(net, chance(self, 4) ? NULL : cpus);
  free(cpus);
  status == BORDER_OK ? self->taken++ : self->refused++;
  return status == BORDER_OK || status == BORDER_INVALID_ARGUMENT ? 0 : fault(self, "pin", status);
}

static int do_tell(caller *self) {
  const border_info_t *info = border_info();
  if (info->input_count != BORDER_INPUTS || info->output_count != BORDER_OUTPUTS ||
      info->inputs[2].bytes != 0 || info->variants[0].step_count != BORDER_STEPS)
    return fault(self, "info", 0);
  if (border_threads(NULL) != 0 || border_variant(NULL) != NULL) return fault(self, "NULL", 0);
  border_destroy(NULL);
  return 0;
}

static void *call_at_random(void *argument) {
  caller *self = argument;
  for (long round = 0; round < self->rounds; round++) {
    const uint64_t what = draw(self, 16);
    const int wrong = what < 5    ? do_create(self)
                      : what < 14 ? do_run(self)
                      : what < 15 ? do_pin(self)
                                  : do_tell(self);
    if (!wrong) continue;
    char where[40];
    snprintf(where, sizeof where, " (round %ld)", round);
    strncat(self->fault, where, sizeof self->fault - strlen(self->fault) - 1);
    break;
  }
  for (int i = 0; i < NETS; i++) border_destroy(self->nets[i]), free(self->arenas[i]);
  return NULL;
}

int main(int count, char **arguments) {
  enum { MOST_CALLERS = 8 };
  static caller callers[MOST_CALLERS];
  pthread_t threads[MOST_CALLERS];
  FILE *file = fopen("border.weights", "rb");
  if (count != 4 || file == NULL) return 2;
  whole_bytes = fread(whole, 1, sizeof whole, file);
  fclose(file);
  for (int i = 0; i < COLUMNS; i++) bias[i] = (float)i - 5;
  memset(long_name, 'v', sizeof long_name - 1);
  if (border_create(NULL, 2, &shared) != BORDER_OK) return puts(border_error()), 1;
  const int callers_used = atoi(arguments[3]);
  if (callers_used < 1 || callers_used > MOST_CALLERS) return 2;
  for (int i = 0; i < callers_used; i++) {
    callers[i].state = strtoull(arguments[1], NULL, 10) * 1000003 + (uint64_t)i * 7919 + 88172645u;
    callers[i].number = i;
    callers[i].rounds = atol(arguments[2]);
    if (pthread_create(&threads[i], NULL, call_at_random, &callers[i]) != 0) return 2;
  }
  long taken = 0, refused = 0;
  int failed = 0;
  for (int i = 0; i < callers_used; i++) {
    pthread_join(threads[i], NULL);
    taken += callers[i].taken, refused += callers[i].refused;
    if (callers[i].fault[0] != '\0') puts(callers[i].fault), failed = 1;
  }
  border_destroy(shared);
  if (!failed) printf("%ld taken, %ld refused\n", taken, refused);
  return failed;
}
