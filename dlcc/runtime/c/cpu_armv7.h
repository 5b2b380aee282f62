/* CPU features of 32-bit ARM. Bits: Linux, arch/arm/include/uapi/asm/hwcap.h. */
#ifndef DLCC_CPU_ARMV7_H
#define DLCC_CPU_ARMV7_H

#include <sys/auxv.h>

typedef struct dlcc_cpu_feature {
  const char *name;
  uint8_t word, bit; /* 1: AT_HWCAP, 2: AT_HWCAP2 */
} dlcc_cpu_feature;

static const dlcc_cpu_feature dlcc_cpu_features[] = {
    {"vfp", 1, 6},
    {"neon", 1, 12},
    {"vfpv3", 1, 13},
    {"vfpv4", 1, 16},
    {"idiva", 1, 17},
    {"asimddp", 1, 24},
    {"i8mm", 1, 27},
    {NULL, 0, 0},
};

/* What to compile for instead. */
static const char *const dlcc_cpu_levels[][2] = {{"armv7:vfpv4", "vfpv4"}, {"armv7", NULL}};

static uint32_t dlcc_cpu_vector_bytes(void) { return 16; }

#include "cpu_hwcap.h"

static inline void dlcc_cpu_relax(void) { __asm__ volatile("yield" ::: "memory"); }

/* FPSCR as a new process has it: round to nearest, denormals kept where the unit can (NEON always
 * flushes them). */
static inline uint32_t dlcc_cpu_float_enter(void) {
  uint32_t before;
  __asm__ volatile("vmrs %0, fpscr" : "=r"(before));
  __asm__ volatile("vmsr fpscr, %0" : : "r"(0));
  return before;
}

static inline void dlcc_cpu_float_leave(uint32_t before) {
  __asm__ volatile("vmsr fpscr, %0" : : "r"(before));
}

#endif
