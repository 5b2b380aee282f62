#include "streams.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "memory.h"

enum { STREAM_MARK = 0x5712ea, EVENT_MARK = 0xe7e27, DISABLE_TIMING = 2 };

struct stream;

/* A place in a stream: after its first `count` pieces of work. */
typedef struct place {
  struct stream *stream; /* NULL: at no place; done */
  uint64_t count;
} place;

typedef struct work {
  struct work *next;
  enum { COPY, LAUNCH, WAIT, STAMP } kind;
  void *to;
  const void *from;
  void *owned; /* a snapshot */
  size_t bytes;
  launch launched;
  place until;
  struct event *stamped;
} work;

typedef struct stream {
  struct stream *next;
  uint32_t mark;
  uint64_t put, done; /* pieces of work */
  work *first, **last;
} stream;

typedef struct event {
  uint32_t mark;
  unsigned flags;
  place at;
  double milliseconds;
} event;

/* The legacy default stream. The two handles of cuda.h that are numbers mean it and the calling
 * thread's; here threads have none of their own. */
static stream default_stream = {.mark = STREAM_MARK, .last = &default_stream.first};
static stream *others;

static stream *stream_of(void *handle) {
  stream *found = (uintptr_t)handle <= 2 ? &default_stream : handle;
  return found->mark == STREAM_MARK ? found : NULL;
}

static event *event_of(void *handle) {
  event *found = handle;
  return found != NULL && found->mark == EVENT_MARK ? found : NULL;
}

static int put(void *handle, work what) {
  stream *s = stream_of(handle);
  if (s == NULL) return INVALID_HANDLE;
  work *made = malloc(sizeof *made);
  *made = what;
  made->next = NULL;
  *s->last = made;
  s->last = &made->next;
  s->put++;
  return 0;
}

static int reach(place until);

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e3 + (double)time.tv_nsec * 1e-6;
}

static int work_do(work *w) {
  switch (w->kind) {
    case COPY:
      memcpy(w->to, w->from, w->bytes);
      return 0;
    case LAUNCH:
      return launch_run(&w->launched);
    case WAIT:
      return reach(w->until);
    default:
      if (w->stamped != NULL) w->stamped->milliseconds = now();
      return 0;
  }
}

/* Does a stream's work up to a place, and what it waits for. */
static int reach(place until) {
  stream *s = until.stream;
  int code = 0;
  while (s != NULL && s->done < until.count && code == 0) {
    work *w = s->first;
    s->first = w->next;
    if (s->first == NULL) s->last = &s->first;
    s->done++;
    code = work_do(w);
    free(w->owned);
    free(w);
  }
  return code;
}

int stream_create(void **out) {
  stream *made = calloc(1, sizeof *made);
  made->mark = STREAM_MARK;
  made->last = &made->first;
  made->next = others;
  *out = others = made;
  return 0;
}

int stream_finish(void *handle) {
  stream *s = stream_of(handle);
  return s == NULL ? INVALID_HANDLE : reach((place){s, s->put});
}

int streams_finish(void) {
  int code = stream_finish(NULL);
  for (stream *s = others; s != NULL && code == 0; s = s->next) code = reach((place){s, s->put});
  return code;
}

/* A stream is kept, for places in it; only its handle ends. */
int stream_destroy(void *handle) {
  stream *s = stream_of(handle);
  if (s == NULL || s == &default_stream) return INVALID_HANDLE;
  const int code = stream_finish(handle);
  s->mark = 0;
  return code;
}

int streams_copy(void *handle, void *to, const void *from, size_t bytes, int snapshot) {
  work what = {.kind = COPY, .to = to, .from = from, .bytes = bytes};
  if (snapshot) {
    what.owned = malloc(bytes);
    memcpy(what.owned, from, bytes);
    what.from = what.owned;
  }
  return put(handle, what);
}

int streams_launch(void *handle, const launch *made) {
  return put(handle, (work){.kind = LAUNCH, .launched = *made});
}

int stream_wait(void *handle, void *which) {
  const event *e = event_of(which);
  return e == NULL ? INVALID_HANDLE : put(handle, (work){.kind = WAIT, .until = e->at});
}

int event_create(void **out, unsigned flags) {
  event *made = calloc(1, sizeof *made);
  made->mark = EVENT_MARK;
  made->flags = flags;
  *out = made;
  return 0;
}

int event_destroy(void *handle) {
  event *e = event_of(handle);
  if (e == NULL) return INVALID_HANDLE;
  const int code = event_finish(handle); /* its time may not have been taken */
  e->mark = 0;
  free(e);
  return code;
}

int event_record(void *handle, void *where) {
  event *e = event_of(handle);
  stream *s = stream_of(where);
  if (e == NULL || s == NULL) return INVALID_HANDLE;
  const int timed = (e->flags & DISABLE_TIMING) == 0;
  if (timed) put(where, (work){.kind = STAMP, .stamped = e});
  e->at = (place){s, s->put};
  return 0;
}

int event_done(void *handle) {
  const event *e = event_of(handle);
  return e != NULL && (e->at.stream == NULL || e->at.stream->done >= e->at.count);
}

int event_finish(void *handle) {
  const event *e = event_of(handle);
  return e == NULL ? INVALID_HANDLE : reach(e->at);
}

int event_between(void *start, void *end, float *milliseconds) {
  const event *a = event_of(start), *b = event_of(end);
  if (a == NULL || b == NULL || ((a->flags | b->flags) & DISABLE_TIMING)) return INVALID_HANDLE;
  if (!event_done(start) || !event_done(end)) return NOT_READY;
  *milliseconds = (float)(b->milliseconds - a->milliseconds);
  return 0;
}
