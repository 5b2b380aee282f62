/* A network as one graph of the driver's: a kernel node for each step, behind those whose results it
 * uses or whose memory it takes; branches run side by side. Whoever launches it pays for one launch,
 * not for one of each step.
 *
 * The addresses of inputs and outputs are part of the nodes. Where a run has others than the last
 * one, the nodes that use them are given the new ones: some microseconds for each, and no copy of a
 * tensor. Launches under way keep theirs. */
#ifndef DLCC_CUDA_GRAPH_H
#define DLCC_CUDA_GRAPH_H

typedef struct dlcc_graph {
  const dlcc_step *steps;
  const dlcc_handle *functions;
  uint32_t step_count;
  dlcc_address arena, weights;
  dlcc_handle graph, executable;
  dlcc_handle *nodes;  /* of each step */
  dlcc_address *bound; /* inputs, then outputs, as the nodes have them */
} dlcc_graph;

/* Addresses of no tensor: nodes that may have any. */
#define DLCC_UNBOUND UINT64_MAX

static uint32_t dlcc_border(void) {
  return dlcc_model_info.input_count + dlcc_model_info.output_count;
}

/* Number of the tensor that a place is in, as in `bound`; -1 for arena and weights. */
static int64_t dlcc_place_tensor(const dlcc_place *place) {
  if (place->memory == DLCC_INPUT) return place->index;
  if (place->memory == DLCC_OUTPUT) return (int64_t)dlcc_model_info.input_count + place->index;
  return -1;
}

typedef struct dlcc_arguments {
  dlcc_address values[DLCC_MOST_ARGUMENTS];
  void *pointers[DLCC_MOST_ARGUMENTS];
} dlcc_arguments;

/* What the driver wants to know of a step whose tensors are at `tensors`. */
static dlcc_node_parameters dlcc_step_parameters(const dlcc_graph *graph, const dlcc_step *step,
                                                 const dlcc_address *tensors,
                                                 dlcc_arguments *room) {
  dlcc_node_parameters made;
  memset(&made, 0, sizeof made);
  made.function = graph->functions[step->kernel];
  memcpy(made.grid, step->grid, sizeof made.grid);
  memcpy(made.block, step->block, sizeof made.block);
  made.shared_bytes = step->shared_bytes;
  made.arguments = room->pointers;
  for (uint32_t i = 0; i < step->count; i++) {
    const dlcc_place *place = &step->arguments[i];
    const int64_t tensor = dlcc_place_tensor(place);
    const dlcc_address base = tensor >= 0                     ? tensors[tensor]
                              : place->memory == DLCC_ARENA ? graph->arena
                                                              : graph->weights;
    room->values[i] = base + place->offset;
    room->pointers[i] = &room->values[i];
  }
  return made;
}

static dlcc_status dlcc_graph_fill(dlcc_graph *graph, dlcc_handle *before) {
  dlcc_arguments room;
  dlcc_status status = DLCC_CU(cuGraphCreate, &graph->graph, 0);
  for (uint32_t i = 0; i < graph->step_count && status == DLCC_CODE(OK); i++) {
    const dlcc_step *step = &graph->steps[i];
    const dlcc_node_parameters parameters =
        dlcc_step_parameters(graph, step, graph->bound, &room);
    for (uint32_t k = 0; k < step->after_count; k++) before[k] = graph->nodes[step->after[k]];
    status = DLCC_CU(cuGraphAddKernelNode_v2, &graph->nodes[i], graph->graph, before,
                     step->after_count, &parameters);
  }
  DLCC_CU_THEN(status, cuGraphInstantiateWithFlags, &graph->executable, graph->graph, 0);
  return status;
}

/* `tensors`: where inputs and outputs are at first. The other members up to `weights` are set. */
static dlcc_status dlcc_graph_open(dlcc_graph *graph, const dlcc_address *tensors) {
  graph->nodes = calloc(graph->step_count + 1, sizeof *graph->nodes);
  graph->bound = calloc(dlcc_border() + 1, sizeof *graph->bound);
  dlcc_handle *before = calloc(graph->step_count + 1, sizeof *before);
  dlcc_status status;
  if (graph->nodes == NULL || graph->bound == NULL || before == NULL) {
    status = dlcc_fail(DLCC_CODE(OUT_OF_MEMORY), "no memory for a graph of %u steps",
                       graph->step_count);
  } else {
    memcpy(graph->bound, tensors, dlcc_border() * sizeof *tensors);
    status = dlcc_graph_fill(graph, before);
  }
  free(before);
  return status;
}

static void dlcc_graph_close(dlcc_graph *graph) {
  if (graph->executable != NULL) dlcc_driver.cuGraphExecDestroy(graph->executable);
  if (graph->graph != NULL) dlcc_driver.cuGraphDestroy(graph->graph);
  free(graph->nodes);
  free(graph->bound);
}

/* Whether a step uses a tensor that is elsewhere than the nodes have it. */
static int dlcc_step_moves(const dlcc_graph *graph, const dlcc_step *step,
                           const dlcc_address *tensors) {
  for (uint32_t i = 0; i < step->count; i++) {
    const int64_t tensor = dlcc_place_tensor(&step->arguments[i]);
    if (tensor >= 0 && tensors[tensor] != graph->bound[tensor]) return 1;
  }
  return 0;
}

/* Gives the nodes the addresses of inputs and outputs. */
static dlcc_status dlcc_graph_bind(dlcc_graph *graph, const dlcc_address *tensors) {
  const size_t bytes = dlcc_border() * sizeof *tensors;
  dlcc_status status = DLCC_CODE(OK);
  dlcc_arguments room;
  if (memcmp(graph->bound, tensors, bytes) == 0) return status;
  for (uint32_t i = 0; i < graph->step_count && status == DLCC_CODE(OK); i++) {
    const dlcc_step *step = &graph->steps[i];
    if (!dlcc_step_moves(graph, step, tensors)) continue;
    const dlcc_node_parameters parameters = dlcc_step_parameters(graph, step, tensors, &room);
    status = DLCC_CU(cuGraphExecKernelNodeSetParams_v2, graph->executable, graph->nodes[i],
                     &parameters);
  }
  for (uint32_t i = 0; i < dlcc_border(); i++)
    graph->bound[i] = status == DLCC_CODE(OK) ? tensors[i] : DLCC_UNBOUND;
  return status;
}

/* One step by itself. */
static dlcc_status dlcc_graph_step(const dlcc_graph *graph, uint32_t number,
                                   const dlcc_address *tensors, dlcc_handle stream) {
  dlcc_arguments room;
  const dlcc_node_parameters p =
      dlcc_step_parameters(graph, &graph->steps[number], tensors, &room);
  return DLCC_CU(cuLaunchKernel, p.function, p.grid[0], p.grid[1], p.grid[2], p.block[0],
                 p.block[1], p.block[2], p.shared_bytes, stream, p.arguments, NULL);
}

#endif
