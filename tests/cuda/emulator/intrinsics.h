/* CUDA C++ for a CPU: the functions that the compiler for GPUs knows by itself. */
#ifndef DLCC_EMULATOR_INTRINSICS_H
#define DLCC_EMULATOR_INTRINSICS_H

template <class To, class From>
static inline To dlcc_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits of another size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};

static inline unsigned __float_as_uint(float x) { return dlcc_bits<unsigned>(x); }
static inline int __float_as_int(float x) { return dlcc_bits<int>(x); }
static inline float __uint_as_float(unsigned x) { return dlcc_bits<float>(x); }
static inline float __int_as_float(int x) { return dlcc_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return dlcc_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return dlcc_bits<double>(x); }
static inline float __fsqrt_rn(float x) { return __builtin_sqrtf(x); }
static inline double __dsqrt_rn(double x) { return __builtin_sqrt(x); }
static inline float __fmaf_rn(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }

/* CUDA Math API, integer intrinsics: byte i is the one of the eight that the low three bits of
 * digit i of the selector name. */
static inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const unsigned long long both = (unsigned long long)b << 32 | a;
  unsigned made = 0;
  for (int i = 0; i < 4; i++) made |= (unsigned)(both >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return made;
}

/* Rounds half to even; what no int is becomes the nearest one, and NaN 0. */
static inline int __float2int_rn(float x) {
  if (x != x) return 0;
  if (x >= 2147483648.0f) return 2147483647;
  if (x < -2147483648.0f) return -2147483647 - 1;
  return (int)__builtin_rintf(x);
}

#define memcpy __builtin_memcpy
#define rintf __builtin_rintf
#define rint __builtin_rint
#define truncf __builtin_truncf
#define trunc __builtin_trunc
#define floorf __builtin_floorf
#define floor __builtin_floor
#define ceilf __builtin_ceilf
#define ceil __builtin_ceil

#endif
