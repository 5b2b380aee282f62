/* A plugin of QEMU's user-mode emulators: how often each translation block of a program has run.
 *
 *   qemu-aarch64 -plugin executed.so,out=COUNTS PROGRAM
 *
 * The program marks the ends of phases by close(DLCC_MARK), which does nothing else. At each mark,
 * and at the end, a line "phase N" goes to COUNTS, and behind it one line for each block that ran
 * since the last mark: address, number of instructions, executions. A block is instructions that
 * follow each other in memory and are entered at the first one alone; a block in which another one
 * begins in the middle is listed on its own, so that counts of instructions add up.
 *
 * The interface is declared here (QEMU's docs/devel/tcg-plugins.rst): its header is not everywhere
 * where the emulator is. API_VERSION is the version of the interface that this emulator wants.
 */
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef uint64_t plugin_id;
typedef void (*translation_call)(plugin_id id, void *block);
typedef void (*execution_call)(unsigned cpu, void *data);
typedef void (*exit_call)(plugin_id id, void *data);
typedef void (*syscall_call)(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2,
                           uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7,
                           uint64_t a8);
enum { NO_REGISTERS = 0 };

void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, translation_call call);
void qemu_plugin_register_vcpu_tb_exec_cb(void *block, execution_call call, int flags, void *data);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, syscall_call call);
void qemu_plugin_register_atexit_cb(plugin_id id, exit_call call, void *data);
size_t qemu_plugin_tb_n_insns(const void *block);
uint64_t qemu_plugin_tb_vaddr(const void *block);

EXPORT int qemu_plugin_version = API_VERSION;

enum { MARK = -77777 };

typedef struct entry {
  struct entry *next;
  uint64_t address, instructions, runs;
} entry;

static entry *entries;
static FILE *counts;
static unsigned phase;

static void write_phase(void) {
  fprintf(counts, "phase %u\n", phase++);
  for (entry *e = __atomic_load_n(&entries, __ATOMIC_ACQUIRE); e != NULL; e = e->next) {
    uint64_t runs = __atomic_exchange_n(&e->runs, 0, __ATOMIC_RELAXED);
    if (runs > 0)
      fprintf(counts, "%" PRIx64 " %" PRIu64 " %" PRIu64 "\n", e->address, e->instructions, runs);
  }
}

static void executed(unsigned cpu, void *data) {
  (void)cpu;
  __atomic_fetch_add(&((entry *)data)->runs, 1, __ATOMIC_RELAXED);
}

static void translated(plugin_id id, void *block) {
  (void)id;
  entry *e = calloc(1, sizeof *e);
  if (e == NULL) abort();
  e->address = qemu_plugin_tb_vaddr(block);
  e->instructions = qemu_plugin_tb_n_insns(block);
  e->next = __atomic_load_n(&entries, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(&entries, &e->next, e, 1, __ATOMIC_RELEASE,
                                      __ATOMIC_RELAXED)) {
  }
  qemu_plugin_register_vcpu_tb_exec_cb(block, executed, NO_REGISTERS, e);
}

static void called(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                   uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
  (void)id, (void)cpu, (void)number, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7;
  (void)a8;
  if ((int32_t)a1 == MARK) write_phase();
}

static void ended(plugin_id id, void *data) {
  (void)id, (void)data;
  write_phase();
  if (fclose(counts) != 0) abort();
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv) {
  (void)info;
  for (int i = 0; i < argc; i++)
    if (strncmp(argv[i], "out=", 4) == 0) counts = fopen(argv[i] + 4, "w");
  if (counts == NULL) return -1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  qemu_plugin_register_atexit_cb(id, ended, NULL);
  return 0;
}
