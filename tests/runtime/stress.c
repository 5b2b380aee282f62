/* Runs the chain network from several threads at once, on instances of their own and on a shared
 * one, while other instances come and go. Prints "ok". */
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "chain.h"

enum { ITEMS = 37, CALLERS = 3, ROUNDS = 12 };

static chain_t *shared;

static int run_once(chain_t *net, int32_t base) {
  int32_t x[ITEMS], y[ITEMS];
  for (int i = 0; i < ITEMS; i++) x[i] = base + i;
  const void *inputs[] = {x};
  void *outputs[] = {y};
  if (chain_run(net, inputs, outputs) != CHAIN_OK) return 1;
  for (int i = 0; i < ITEMS; i++)
    if (y[i] != base + i + CHAIN_STEPS) return 1;
  return 0;
}

static void *caller(void *argument) {
  const int32_t base = *(const int32_t *)argument;
  for (int round = 0; round < ROUNDS; round++) {
    chain_t *own;
    if (chain_create("absent", 1, &own) != CHAIN_BAD_WEIGHTS) return argument;
    if (chain_create(NULL, 1 + (round + base) % 4, &own) != CHAIN_OK) return argument;
    for (int i = 0; i < 3; i++)
      if (run_once(own, base) || run_once(shared, base + i)) return argument;
    if (strstr(chain_error(), "absent") == NULL) return argument;
    chain_destroy(own);
  }
  return NULL;
}

int main(void) {
  if (chain_create(NULL, 4, &shared) != CHAIN_OK) return puts(chain_error()), 1;
  pthread_t threads[CALLERS];
  int32_t bases[CALLERS];
  int failed = 0;
  for (int i = 0; i < CALLERS; i++) {
    bases[i] = 100 * i;
    pthread_create(&threads[i], NULL, caller, &bases[i]);
  }
  for (int i = 0; i < CALLERS; i++) {
    void *result;
    pthread_join(threads[i], &result);
    failed |= result != NULL;
  }
  chain_destroy(shared);
  puts(failed ? chain_error() : "ok");
  return failed;
}
