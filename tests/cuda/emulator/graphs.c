#include <stdlib.h>
#include <string.h>

#include "driver.h"
#include "streams.h"

enum { GRAPH_MARK = 0x62a94, EXECUTABLE_MARK = 0xe8ec };

typedef struct graph {
  uint32_t mark;
  uint32_t count, room;
  launch **nodes; /* their addresses are the handles */
} graph;

/* Nodes are found by the graph's handles. Launches follow one another. */
typedef struct executable {
  uint32_t mark;
  uint32_t count;
  launch *launches;
  launch **handles;
  void *event;
} executable;

int graph_create(void **out) {
  graph *made = calloc(1, sizeof *made);
  made->mark = GRAPH_MARK;
  *out = made;
  return 0;
}

int graph_destroy(void *handle) {
  graph *g = handle;
  if (g == NULL || g->mark != GRAPH_MARK) return INVALID_HANDLE;
  g->mark = 0;
  for (uint32_t i = 0; i < g->count; i++) free(g->nodes[i]);
  free(g->nodes);
  free(g);
  return 0;
}

/* Nodes run in the order in which they were added, so each has to come after all others. */
int graph_add(void **node, void *handle, void *const *before, size_t count,
              const node_parameters *parameters, int device) {
  graph *g = handle;
  if (g == NULL || g->mark != GRAPH_MARK) return INVALID_HANDLE;
  if (g->count > 0 && (count != 1 || before[0] != g->nodes[g->count - 1]))
    return emulator_fault(INVALID_VALUE, "node %u does not come after the one before", g->count);
  launch *made = malloc(sizeof *made);
  const int code = launch_make(made, parameters, device);
  if (code != 0) {
    free(made);
    return code;
  }
  if (g->count == g->room) {
    g->room = g->room ? 2 * g->room : 16;
    g->nodes = realloc(g->nodes, g->room * sizeof *g->nodes);
  }
  *node = g->nodes[g->count++] = made;
  return 0;
}

int graph_instantiate(void **out, void *handle) {
  const graph *g = handle;
  if (g == NULL || g->mark != GRAPH_MARK) return INVALID_HANDLE;
  executable *made = calloc(1, sizeof *made);
  made->mark = EXECUTABLE_MARK;
  made->count = g->count;
  made->launches = calloc(g->count + 1, sizeof *made->launches);
  made->handles = calloc(g->count + 1, sizeof *made->handles);
  for (uint32_t i = 0; i < g->count; i++) {
    made->launches[i] = *g->nodes[i];
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
  free(e->launches);
  free(e->handles);
  free(e);
  return 0;
}

int executable_set(void *handle, void *node, const node_parameters *parameters, int device) {
  executable *e = handle;
  if (e == NULL || e->mark != EXECUTABLE_MARK) return INVALID_HANDLE;
  for (uint32_t i = 0; i < e->count; i++) {
    if (e->handles[i] != node) continue;
    launch made;
    const int code = launch_make(&made, parameters, device);
    if (code == 0) e->launches[i] = made;
    return code;
  }
  return INVALID_VALUE;
}

int executable_launch(void *handle, void *stream) {
  executable *e = handle;
  if (e == NULL || e->mark != EXECUTABLE_MARK) return INVALID_HANDLE;
  int code = stream_wait(stream, e->event);
  for (uint32_t i = 0; i < e->count && code == 0; i++) code = streams_launch(stream, &e->launches[i]);
  return code == 0 ? event_record(e->event, stream) : code;
}
