/* CPU features of x86-64 by cpuid, under the names of Linux's /proc/cpuinfo.
 *
 * A feature counts only if the system also saves its registers (XCR0). Bits: Intel SDM vol. 2A,
 * CPUID; AMD APM vol. 3, appendix E. */
#ifndef DLCC_CPU_X86_64_H
#define DLCC_CPU_X86_64_H

#include <cpuid.h>

enum { DLCC_EAX, DLCC_EBX, DLCC_ECX, DLCC_EDX };
enum { DLCC_SSE_STATE = 0, DLCC_AVX_STATE = 0x6, DLCC_AVX512_STATE = 0xe6, DLCC_AMX_STATE = 0x60000 };

typedef struct dlcc_cpu_feature {
  const char *name;
  uint32_t leaf, subleaf;
  uint8_t reg, bit;
  uint32_t state; /* bits of XCR0 */
} dlcc_cpu_feature;

static const dlcc_cpu_feature dlcc_cpu_features[] = {
    {"sse", 1, 0, DLCC_EDX, 25, DLCC_SSE_STATE},
    {"sse2", 1, 0, DLCC_EDX, 26, DLCC_SSE_STATE},
    {"pni", 1, 0, DLCC_ECX, 0, DLCC_SSE_STATE}, /* SSE3 */
    {"ssse3", 1, 0, DLCC_ECX, 9, DLCC_SSE_STATE},
    {"fma", 1, 0, DLCC_ECX, 12, DLCC_AVX_STATE},
    {"cx16", 1, 0, DLCC_ECX, 13, DLCC_SSE_STATE},
    {"sse4_1", 1, 0, DLCC_ECX, 19, DLCC_SSE_STATE},
    {"sse4_2", 1, 0, DLCC_ECX, 20, DLCC_SSE_STATE},
    {"movbe", 1, 0, DLCC_ECX, 22, DLCC_SSE_STATE},
    {"popcnt", 1, 0, DLCC_ECX, 23, DLCC_SSE_STATE},
    {"avx", 1, 0, DLCC_ECX, 28, DLCC_AVX_STATE},
    {"f16c", 1, 0, DLCC_ECX, 29, DLCC_AVX_STATE},
    {"bmi1", 7, 0, DLCC_EBX, 3, DLCC_SSE_STATE},
    {"avx2", 7, 0, DLCC_EBX, 5, DLCC_AVX_STATE},
    {"bmi2", 7, 0, DLCC_EBX, 8, DLCC_SSE_STATE},
    {"avx512f", 7, 0, DLCC_EBX, 16, DLCC_AVX512_STATE},
    {"avx512dq", 7, 0, DLCC_EBX, 17, DLCC_AVX512_STATE},
    {"avx512ifma", 7, 0, DLCC_EBX, 21, DLCC_AVX512_STATE},
    {"avx512cd", 7, 0, DLCC_EBX, 28, DLCC_AVX512_STATE},
    {"avx512bw", 7, 0, DLCC_EBX, 30, DLCC_AVX512_STATE},
    {"avx512vl", 7, 0, DLCC_EBX, 31, DLCC_AVX512_STATE},
    {"avx512vbmi", 7, 0, DLCC_ECX, 1, DLCC_AVX512_STATE},
    {"avx512_vbmi2", 7, 0, DLCC_ECX, 6, DLCC_AVX512_STATE},
    {"gfni", 7, 0, DLCC_ECX, 8, DLCC_SSE_STATE},
    {"vaes", 7, 0, DLCC_ECX, 9, DLCC_AVX_STATE},
    {"vpclmulqdq", 7, 0, DLCC_ECX, 10, DLCC_AVX_STATE},
    {"avx512_vnni", 7, 0, DLCC_ECX, 11, DLCC_AVX512_STATE},
    {"avx512_bitalg", 7, 0, DLCC_ECX, 12, DLCC_AVX512_STATE},
    {"avx512_vpopcntdq", 7, 0, DLCC_ECX, 14, DLCC_AVX512_STATE},
    {"avx512_vp2intersect", 7, 0, DLCC_EDX, 8, DLCC_AVX512_STATE},
    {"amx_bf16", 7, 0, DLCC_EDX, 22, DLCC_AMX_STATE},
    {"avx512_fp16", 7, 0, DLCC_EDX, 23, DLCC_AVX512_STATE},
    {"amx_tile", 7, 0, DLCC_EDX, 24, DLCC_AMX_STATE},
    {"amx_int8", 7, 0, DLCC_EDX, 25, DLCC_AMX_STATE},
    {"avx_vnni", 7, 1, DLCC_EAX, 4, DLCC_AVX_STATE},
    {"avx512_bf16", 7, 1, DLCC_EAX, 5, DLCC_AVX512_STATE},
    {"amx_fp16", 7, 1, DLCC_EAX, 21, DLCC_AMX_STATE},
    {"avx_ifma", 7, 1, DLCC_EAX, 23, DLCC_AVX_STATE},
    {"avx_vnni_int8", 7, 1, DLCC_EDX, 4, DLCC_AVX_STATE},
    {"abm", 0x80000001u, 0, DLCC_ECX, 5, DLCC_SSE_STATE}, /* LZCNT */
    {"sse4a", 0x80000001u, 0, DLCC_ECX, 6, DLCC_SSE_STATE},
    {"xop", 0x80000001u, 0, DLCC_ECX, 11, DLCC_AVX_STATE},
    {"fma4", 0x80000001u, 0, DLCC_ECX, 16, DLCC_AVX_STATE},
};

/* What to compile for instead, best first, and the newest feature each of these targets needs. */
static const char *const dlcc_cpu_levels[][2] = {
    {"cpu:avx512bf16", "avx512_bf16"},
    {"cpu:avx512vnni", "avx512_vnni"},
    {"cpu:avx512", "avx512bw"},
    {"cpu:avxvnni", "avx_vnni"},
    {"cpu:avx2", "avx2"},
};

static uint64_t dlcc_cpu_saved_state(void) {
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx >> 27 & 1)) return 0; /* OSXSAVE */
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t)high << 32 | low;
}

static int dlcc_cpu_has(const char *feature) {
  const size_t count = sizeof dlcc_cpu_features / sizeof *dlcc_cpu_features;
  for (size_t i = 0; i < count; i++) {
    const dlcc_cpu_feature *row = &dlcc_cpu_features[i];
    if (strcmp(row->name, feature) != 0) continue;
    unsigned reg[4];
    if (!__get_cpuid_count(row->leaf, 0, &reg[0], &reg[1], &reg[2], &reg[3])) return 0;
    if (row->subleaf > 0) {
      if (reg[DLCC_EAX] < row->subleaf) return 0;
      __get_cpuid_count(row->leaf, row->subleaf, &reg[0], &reg[1], &reg[2], &reg[3]);
    }
    return (reg[row->reg] >> row->bit & 1) && (dlcc_cpu_saved_state() & row->state) == row->state;
  }
  return -1;
}

static inline int dlcc_cpu_varies(const char *feature) {
  (void)feature;
  return 0;
}

/* Linux hands out AMX's 8 KiB of tile state on request only (ARCH_REQ_XCOMP_PERM, XFEATURE 18);
 * the permission is the process's and asking again is harmless. */
static int dlcc_cpu_permit(const char *feature) {
  if (strncmp(feature, "amx_", 4) != 0) return 0;
  const int request_permission = 0x1023, tile_data = 18;
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0 ? 0 : -1;
}

static const char *dlcc_cpu_level(void) {
  for (size_t i = 0; i < sizeof dlcc_cpu_levels / sizeof *dlcc_cpu_levels; i++) {
    if (dlcc_cpu_has(dlcc_cpu_levels[i][1]) == 1) return dlcc_cpu_levels[i][0];
  }
  return "cpu:sse4";
}

static inline void dlcc_cpu_relax(void) { __builtin_ia32_pause(); }

/* MXCSR as a new process has it: round to nearest, denormals kept, exceptions masked. A caller that
 * was built with -ffast-math or changed the rounding mode gets the same bytes as any other. */
static inline uint32_t dlcc_cpu_float_enter(void) {
  const uint32_t before = __builtin_ia32_stmxcsr();
  __builtin_ia32_ldmxcsr(0x1f80);
  return before;
}

static inline void dlcc_cpu_float_leave(uint32_t before) { __builtin_ia32_ldmxcsr(before); }

#endif
