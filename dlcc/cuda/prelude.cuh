/* What kernels call, for the device. The functions of bare/arithmetic.c by instructions that give
 * the same bits; warp, matrix and copy instructions as functions. Pointers to registers are to
 * local arrays, which vanish when all is inlined. */
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#define INT32_C(x) x
#define INT64_C(x) x##ll
#define UINT32_C(x) x##u
#define UINT64_C(x) x##ull
#define DLCC static __device__ __forceinline__

DLCC uint32_t bits_of_f32(float x) { return __float_as_uint(x); }
DLCC float f32_of_bits(uint32_t x) { return __uint_as_float(x); }
DLCC uint64_t bits_of_f64(double x) { return (uint64_t)__double_as_longlong(x); }
DLCC double f64_of_bits(uint64_t x) { return __longlong_as_double((int64_t)x); }
DLCC int32_t i32_of_bits(uint32_t x) { return (int32_t)x; }
DLCC int64_t i64_of_bits(uint64_t x) { return (int64_t)x; }
DLCC int32_t wrapped_add_i32(int32_t a, int32_t b) { return (int32_t)((uint32_t)a + (uint32_t)b); }
DLCC int32_t wrapped_sub_i32(int32_t a, int32_t b) { return (int32_t)((uint32_t)a - (uint32_t)b); }
DLCC int32_t wrapped_mul_i32(int32_t a, int32_t b) { return (int32_t)((uint32_t)a * (uint32_t)b); }
DLCC int32_t shift_left_i32(int32_t x, int32_t n) { return (int32_t)((uint32_t)x << n); }
DLCC int64_t shift_left_i64(int64_t x, int64_t n) { return (int64_t)((uint64_t)x << n); }
DLCC int32_t shift_right_i32(int32_t x, int32_t n) { return x >> n; }
DLCC int64_t shift_right_i64(int64_t x, int64_t n) { return x >> n; }
DLCC float max_f32(float a, float b) { return a > b ? a : b; }
DLCC float min_f32(float a, float b) { return a < b ? a : b; }
DLCC double max_f64(double a, double b) { return a > b ? a : b; }
DLCC double min_f64(double a, double b) { return a < b ? a : b; }
DLCC int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }
DLCC int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }
DLCC int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }
DLCC int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }
DLCC uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }
DLCC uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }
DLCC uint64_t max_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }
DLCC uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }
DLCC int differ_f32(float a, float b) { return a < b || a > b; }
DLCC int differ_f64(double a, double b) { return a < b || a > b; }
DLCC float abs_f32(float x) { return __uint_as_float(__float_as_uint(x) & 0x7FFFFFFFu); }
DLCC double abs_f64(double x) {
  return __longlong_as_double(__double_as_longlong(x) & 0x7FFFFFFFFFFFFFFFll);
}
DLCC int32_t rint_i32(float x) { return __float2int_rn(x); }
DLCC float rint_f32(float x) { return rintf(x); }
DLCC double rint_f64(double x) { return rint(x); }
DLCC float trunc_f32(float x) { return truncf(x); }
DLCC double trunc_f64(double x) { return trunc(x); }
DLCC float floor_f32(float x) { return floorf(x); }
DLCC double floor_f64(double x) { return floor(x); }
DLCC float ceil_f32(float x) { return ceilf(x); }
DLCC double ceil_f64(double x) { return ceil(x); }
DLCC float sqrt_f32(float x) { return __fsqrt_rn(x); }
DLCC double sqrt_f64(double x) { return __dsqrt_rn(x); }
DLCC float f32_of_f16(uint16_t half) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(half));
  return x;
}
DLCC uint16_t f16_of_f32(float x) {
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(x));
  return x != x ? (uint16_t)(0x7E00u | (__float_as_uint(x) >> 16 & 0x8000u)) : half;
}

/* a * b + c, rounded once. */
DLCC float dlcc_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }

/* All threads of the block arrive, and see what the others have written to shared memory. */
DLCC void dlcc_sync(void) { __syncthreads(); }
