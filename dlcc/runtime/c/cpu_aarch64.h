/* CPU features of AArch64. Bits: Linux, arch/arm64/include/uapi/asm/hwcap.h. */
#ifndef DLCC_CPU_AARCH64_H
#define DLCC_CPU_AARCH64_H

#if defined(__APPLE__)
#include "cpu_apple.h"
#else

#include <sys/auxv.h>

typedef struct dlcc_cpu_feature {
  const char *name;
  uint8_t word, bit; /* 1: AT_HWCAP, 2: AT_HWCAP2; 0: bytes that vectors of SVE must have */
} dlcc_cpu_feature;

static const dlcc_cpu_feature dlcc_cpu_features[] = {
    {"sve256", 0, 32}, /* first: it is looked for at each run */
    {"fp", 1, 0},
    {"asimd", 1, 1},
    {"atomics", 1, 8},
    {"fphp", 1, 9},
    {"asimdhp", 1, 10},
    {"asimdrdm", 1, 12},
    {"asimddp", 1, 20},
    {"sve", 1, 22},
    {"asimdfhm", 1, 23},
    {"sve2", 2, 1},
    {"svei8mm", 2, 9},
    {"i8mm", 2, 13},
    {"bf16", 2, 14},
    {NULL, 0, 0},
};

/* What to compile for instead, best first, and the newest feature each of these targets needs. */
static const char *const dlcc_cpu_levels[][2] = {
    {"arm:i8mm", "i8mm"},
    {"arm:dotprod", "asimddp"},
    {"arm:neon", NULL},
};

/* Bytes of SVE's vectors in this thread: what the CPU has, unless the system (PR_SVE_SET_VL,
 * /proc/sys/abi/sve_default_vector_length) gives less. 0 without SVE. */
static uint32_t dlcc_cpu_vector_bytes(void) {
  if ((getauxval(AT_HWCAP) >> 22 & 1) == 0) return 0;
  register uint64_t bytes __asm__("x0");
  __asm__ volatile(".inst 0x04bf5020" : "=r"(bytes)); /* rdvl x0, #1 */
  return (uint32_t)bytes;
}

#include "cpu_hwcap.h"

#endif

/* isb waits for the pipeline to drain: some 10 to 20 ns; yield is a no-op on most cores. */
static inline void dlcc_cpu_relax(void) { __asm__ volatile("isb" ::: "memory"); }

/* FPCR as a new process has it: round to nearest, denormals kept, exceptions masked. */
static inline uint32_t dlcc_cpu_float_enter(void) {
  uint64_t before;
  __asm__ volatile("mrs %0, fpcr" : "=r"(before));
  if (before != 0) __asm__ volatile("msr fpcr, %0" : : "r"(UINT64_C(0)));
  return (uint32_t)before;
}

static inline void dlcc_cpu_float_leave(uint32_t before) {
  if (before != 0) __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)before));
}

#endif
