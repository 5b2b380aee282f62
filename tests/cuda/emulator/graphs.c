#include <stdlib.h>
#include <string.h>

#include "driver.h"
#include "streams.h"

enum { GRAPH_MARK = 0x62a94, EXECUTABLE_MARK = 0xe8ec };

typedef struct node {
  launch launched;
  uint32_t number;
  uint32_t before_count;
  struct node **before; /* nodes that have to be done before */
} node;

typedef struct graph {
  uint32_t mark;
  uint32_t count, room;
  node **nodes; /* their addresses are the handles */
} graph;

/* Nodes are found by the graph's handles. Launches follow one another. */
typedef struct executable {
  uint32_t mark;
  uint32_t count;
  node *nodes; /* with their own copies of `before` */
  node **handles;
  uint32_t *order; /* in which nodes run */
  unsigned char *done;
  void *event;
} executable;

int graph_create(void **out) {
  graph *made = calloc(1, sizeof *made);
  made->mark = GRAPH_MARK;
  *out = made;
  return 0;
}

static void node_free(node *n) {
  free(n->before);
  free(n);
}

int graph_destroy(void *handle) {
  graph *g = handle;
  if (g == NULL || g->mark != GRAPH_MARK) return INVALID_HANDLE;
  g->mark = 0;
  for (uint32_t i = 0; i < g->count; i++) node_free(g->nodes[i]);
  free(g->nodes);
  free(g);
  return 0;
}

static int graph_has(const graph *g, const void *handle) {
  for (uint32_t i = 0; i < g->count; i++)
    if (g->nodes[i] == handle) return 1;
  return 0;
}

int graph_add(void **out, void *handle, void *const *before, size_t count,
              const node_parameters *parameters, int device) {
  graph *g = handle;
  if (g == NULL || g->mark != GRAPH_MARK) return INVALID_HANDLE;
  for (size_t i = 0; i < count; i++)
    if (!graph_has(g, before[i]))
      return emulator_fault(INVALID_VALUE, "node %u comes after one of another graph", g->count);
  node *made = calloc(1, sizeof *made);
  made->number = g->count;
  made->before_count = (uint32_t)count;
  made->before = calloc(count + 1, sizeof *made->before);
  for (size_t i = 0; i < count; i++) made->before[i] = before[i];
  const int code = launch_make(&made->launched, parameters, device);
  if (code != 0) {
    node_free(made);
    return code;
  }
  if (g->count == g->room) {
    g->room = g->room ? 2 * g->room : 16;
    g->nodes = realloc(g->nodes, g->room * sizeof *g->nodes);
  }
  *out = g->nodes[g->count++] = made;
  return 0;
}

int graph_instantiate(void **out, void *handle) {
  const graph *g = handle;
  if (g == NULL || g->mark != GRAPH_MARK) return INVALID_HANDLE;
  executable *made = calloc(1, sizeof *made);
  made->mark = EXECUTABLE_MARK;
  made->count = g->count;
  made->nodes = calloc(g->count + 1, sizeof *made->nodes);
  made->handles = calloc(g->count + 1, sizeof *made->handles);
  made->order = calloc(g->count + 1, sizeof *made->order);
  made->done = calloc(g->count + 1, 1);
  for (uint32_t i = 0; i < g->count; i++) {
    const node *n = g->nodes[i];
    made->nodes[i] = *n;
    made->nodes[i].before = calloc(n->before_count + 1, sizeof *n->before);
    for (uint32_t k = 0; k < n->before_count; k++)
      made->nodes[i].before[k] = &made->nodes[n->before[k]->number];
    made->handles[i] = g->nodes[i];
  }
  event_create(&made->event, 2);
  *out = made;
  return 0;
}

int executable_destroy(void *handle) {
  executable *e = handle;
  if (e == NULL || e->mark != EXECUTABLE_MARK) return INVALID_HANDLE;
  e->mark = 0;
  event_destroy(e->event);
  for (uint32_t i = 0; i < e->count; i++) free(e->nodes[i].before);
  free(e->nodes);
  free(e->handles);
  free(e->order);
  free(e->done);
  free(e);
  return 0;
}

int executable_set(void *handle, void *which, const node_parameters *parameters, int device) {
  executable *e = handle;
  if (e == NULL || e->mark != EXECUTABLE_MARK) return INVALID_HANDLE;
  for (uint32_t i = 0; i < e->count; i++) {
    if (e->handles[i] != which) continue;
    launch made;
    const int code = launch_make(&made, parameters, device);
    if (code == 0) e->nodes[i].launched = made;
    return code;
  }
  return INVALID_VALUE;
}

static int ready(const executable *e, uint32_t number) {
  const node *n = &e->nodes[number];
  if (e->done[number]) return 0;
  for (uint32_t k = 0; k < n->before_count; k++)
    if (!e->done[n->before[k]->number]) return 0;
  return 1;
}

/* An order that keeps to the edges and to nothing else: of the nodes that may run, the one that was
 * added last; where threads run the other way round, any one. So an edge that is missing is seen. */
static void executable_order(executable *e) {
  static uint32_t random = 1;
  memset(e->done, 0, e->count);
  for (uint32_t place = 0; place < e->count; place++) {
    uint32_t chosen = 0, seen = 0;
    for (uint32_t i = 0; i < e->count; i++) {
      if (!ready(e, i)) continue;
      random = random * 1664525 + 1013904223; /* Numerical Recipes, 7.1 */
      if (!emulator_reversed || (random >> 16) % ++seen == 0) chosen = i;
    }
    e->order[place] = chosen;
    e->done[chosen] = 1;
  }
}

int executable_launch(void *handle, void *stream) {
  executable *e = handle;
  if (e == NULL || e->mark != EXECUTABLE_MARK) return INVALID_HANDLE;
  executable_order(e);
  int code = stream_wait(stream, e->event);
  for (uint32_t i = 0; i < e->count && code == 0; i++)
    code = streams_launch(stream, &e->nodes[e->order[i]].launched);
  return code == 0 ? event_record(e->event, stream) : code;
}
