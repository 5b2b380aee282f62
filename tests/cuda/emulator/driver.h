/* The parts of the emulated driver. All of them are called with its lock held. */
#ifndef DLCC_EMULATOR_DRIVER_H
#define DLCC_EMULATOR_DRIVER_H

#include <pthread.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "kernel.h"

enum {
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  NO_BINARY = 209,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  ILLEGAL_ADDRESS = 700,
  OUT_OF_RESOURCES = 701,
  LAUNCH_FAILED = 719,
};

/* CUDA_KERNEL_NODE_PARAMS, version 2. */
typedef struct node_parameters {
  void *function;
  unsigned grid[3], block[3], shared_bytes;
  void **arguments;
  void **extra;
  void *kernel;
  void *context;
} node_parameters;

enum { MOST_PARAMETERS = 128 };

/* A launch with copies of its arguments. */
typedef struct launch {
  const emulated_kernel *kernel;
  const char *name;
  uint32_t grid[3], block[3], shared_bytes;
  uint64_t arguments[MOST_PARAMETERS];
} launch;

extern int emulator_reversed;

/* Returns `code`, and keeps the text for whoever looks for the reason. */
__attribute__((format(printf, 2, 3))) int emulator_fault(int code, const char *format, ...);

/* modules.c */
int module_load(void **module, const void *image, const char *folder, int major, int minor);
int module_unload(void *module);
int module_function(void **function, void *module, const char *name);
int function_allow_shared(void *function, int bytes);
int launch_make(launch *made, const node_parameters *parameters, int device);
int launch_run(const launch *made);

/* graphs.c */
int graph_create(void **graph);
int graph_destroy(void *graph);
int graph_add(void **node, void *graph, void *const *before, size_t count,
              const node_parameters *parameters, int device);
int graph_instantiate(void **executable, void *graph);
int executable_destroy(void *executable);
int executable_set(void *executable, void *node, const node_parameters *parameters, int device);
int executable_launch(void *executable, void *stream);

#endif
