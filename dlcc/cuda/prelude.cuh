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

/* 16, 8, 4 or 2 aligned bytes of shared or global memory to a local array, and back. */
#define DLCC_ACCESS(BYTES, TYPE) \
  DLCC void dlcc_load##BYTES(void *local, const void *from) { \
    const TYPE word = *(const TYPE *)from; \
    memcpy(local, &word, BYTES); \
  } \
  DLCC void dlcc_store##BYTES(void *to, const void *local) { \
    TYPE word; \
    memcpy(&word, local, BYTES); \
    *(TYPE *)to = word; \
  }
DLCC_ACCESS(16, uint4)
DLCC_ACCESS(8, uint2)
DLCC_ACCESS(4, uint32_t)
DLCC_ACCESS(2, uint16_t)

/* Half 0 or 1 of a word. */
DLCC uint16_t dlcc_half(uint32_t word, int32_t i) { return (uint16_t)(word >> 16 * i); }

/* Byte i of word j of `from` as byte j of word i. */
DLCC void dlcc_transpose4(uint32_t *to, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  const uint32_t ab = __byte_perm(a, b, 0x5140), cd = __byte_perm(c, d, 0x5140);
  const uint32_t high = __byte_perm(a, b, 0x7362), other = __byte_perm(c, d, 0x7362);
  to[0] = __byte_perm(ab, cd, 0x5410), to[1] = __byte_perm(ab, cd, 0x7632);
  to[2] = __byte_perm(high, other, 0x5410), to[3] = __byte_perm(high, other, 0x7632);
}

#if __CUDA_ARCH__ >= 800
/* 16 aligned bytes from global to shared memory, beside what the thread does meanwhile. */
DLCC void dlcc_copy16(void *shared, const void *global) {
  const uint32_t to = (uint32_t)__cvta_generic_to_shared(shared);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

/* The copies since the last such call are a group. */
DLCC void dlcc_copy_commit(void) { asm volatile("cp.async.commit_group;" ::: "memory"); }

/* All groups of this thread but the last `GROUPS` have arrived. */
#define DLCC_WAIT(GROUPS) \
  DLCC void dlcc_copy_wait_##GROUPS(void) { \
    asm volatile("cp.async.wait_group " #GROUPS ";" ::: "memory"); \
  }
#else
DLCC void dlcc_copy16(void *shared, const void *global) {
  *(uint4 *)shared = *(const uint4 *)global;
}
DLCC void dlcc_copy_commit(void) {}
#define DLCC_WAIT(GROUPS) DLCC void dlcc_copy_wait_##GROUPS(void) {}
#endif
DLCC_WAIT(0)
DLCC_WAIT(1)
DLCC_WAIT(2)
DLCC_WAIT(3)

/* 16 aligned bytes that no kernel of the network writes and that are read once. */
DLCC void dlcc_stream16(uint32_t *to, const void *from) {
#if __CUDA_ARCH__ >= 700
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
      : "l"(from));
#else
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
      : "l"(from));
#endif
}

/* What another lane of the warp gave, the one whose number differs in the bits of `with`. */
DLCC int32_t dlcc_exchange_i32(int32_t x, int32_t with) { return __shfl_xor_sync(~0u, x, with); }
DLCC float dlcc_exchange_f32(float x, int32_t with) { return __shfl_xor_sync(~0u, x, with); }

/* Of each lane of the warp, whether its number is not 0, as a bit. */
DLCC int32_t dlcc_ballot(int32_t x) { return (int32_t)__ballot_sync(~0u, x); }

/* sum += how many bits of 16 bytes differ. */
DLCC void dlcc_dot16_b1(int32_t *sum, const uint32_t *a, const uint32_t *b) {
#pragma unroll
  for (int i = 0; i < 4; i++) *sum += __popc(a[i] ^ b[i]);
}

/* To lower bits; by a negative number to higher ones. */
DLCC uint32_t dlcc_shift(uint32_t x, int32_t by) { return by < 0 ? x << -by : x >> by; }

/* (word & mask) | bits: one instruction, where the compiler would make two of constants. */
DLCC uint32_t dlcc_and_or(uint32_t word, uint32_t mask, uint32_t bits) {
  uint32_t made;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(made) : "r"(word), "r"(mask), "r"(bits));
  return made;
}

/* 2^23 and, as units, some of the low 23 bits of a word. */
DLCC float dlcc_below(uint32_t word, uint32_t mask) {
  return __uint_as_float(dlcc_and_or(word, mask, 0x4B000000u));
}

/* sum += four products of codes without sign, modulo 2^32. */
DLCC void dlcc_dot4_u8u8(int32_t *sum, uint32_t a, uint32_t b) {
  asm("dp4a.u32.u32 %0, %1, %2, %0;" : "+r"(*sum) : "r"(a), "r"(b));
}

/* The same from one of two places. */
DLCC void dlcc_copy16_if(void *shared, const void *global, const void *other, int32_t inside) {
  dlcc_copy16(shared, inside ? global : other);
}

/* Sums of 4 bytes of products, and of 16: of codes, or of real numbers from the first to the last. */
DLCC void dlcc_dot4_u8s8(int32_t *sum, uint32_t a, uint32_t b) {
#if __CUDA_ARCH__ >= 610
  asm("dp4a.u32.s32 %0, %1, %2, %0;" : "+r"(*sum) : "r"(a), "r"(b));
#else
#pragma unroll
  for (int k = 0; k < 32; k += 8)
    *sum += (int32_t)(a >> k & 255u) * (int32_t)(int8_t)(b >> k);
#endif
}
DLCC void dlcc_dot16_u8s8(int32_t *sum, const uint32_t *a, const uint32_t *b) {
#pragma unroll
  for (int i = 0; i < 4; i++) dlcc_dot4_u8s8(sum, a[i], b[i]);
}
DLCC void dlcc_dot16_f32(float *sum, const uint32_t *a, const uint32_t *b) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    *sum = __fmaf_rn(__uint_as_float(a[i]), __uint_as_float(b[i]), *sum);
}
DLCC void dlcc_dot16_f16(float *sum, const uint32_t *a, const uint32_t *b) {
#pragma unroll
  for (int i = 0; i < 8; i++) {
    const uint16_t left = (uint16_t)(a[i / 2] >> i % 2 * 16);
    const uint16_t right = (uint16_t)(b[i / 2] >> i % 2 * 16);
    *sum = __fmaf_rn(f32_of_f16(left), f32_of_f16(right), *sum);
  }
}
DLCC void dlcc_dot16_bf16(float *sum, const uint32_t *a, const uint32_t *b) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    *sum = __fmaf_rn(__uint_as_float(a[i] << 16), __uint_as_float(b[i] << 16), *sum);
    *sum = __fmaf_rn(__uint_as_float(a[i] & 0xFFFF0000u), __uint_as_float(b[i] & 0xFFFF0000u), *sum);
  }
}

#if __CUDA_ARCH__ >= 800
/* Four matrices of 8 rows of 16 bytes each: lane i gives the address of row i % 8 of matrix i / 8
 * and gets bytes i % 4 * 4 to + 3 of row i / 4 of each. */
DLCC void dlcc_ldmatrix4(uint32_t *to, const void *shared) {
  const uint32_t from = (uint32_t)__cvta_generic_to_shared(shared);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

/* The same, transposed, of 16-bit elements: lane i gets elements i / 4 of rows i % 4 * 2 and + 1. */
DLCC void dlcc_ldmatrix4_trans(uint32_t *to, const void *shared) {
  const uint32_t from = (uint32_t)__cvta_generic_to_shared(shared);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(from)
               : "memory");
}

/* 2^x, off by 2^-22 of it at most. */
DLCC float dlcc_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/* Two float32 rounded to 16 bits, the first in the lower half. */
DLCC uint32_t dlcc_pack2_f16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}
DLCC uint32_t dlcc_pack2_bf16(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

/* sum += a * b of a warp: 16 rows of 32 bytes times 8 columns of 32 bytes; each lane has rows
 * lane / 4 and + 8, columns lane % 4 * 2 and + 1 of the sums. Of bits (b1) it is how many of them
 * differ. */
#define DLCC_MMA(NAME, SUM, REGISTER, SHAPE) \
  DLCC void dlcc_mma_##NAME(SUM *sum, const uint32_t *a, const uint32_t *b) { \
    asm volatile("mma.sync.aligned." SHAPE \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
                 : REGISTER(sum[0]), REGISTER(sum[1]), REGISTER(sum[2]), REGISTER(sum[3]) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])); \
  }
DLCC_MMA(u8s8, int32_t, "+r", "m16n8k32.row.col.s32.u8.s8.s32")
DLCC_MMA(tf32, float, "+f", "m16n8k8.row.col.f32.tf32.tf32.f32")
DLCC_MMA(b1, int32_t, "+r", "m16n8k256.row.col.s32.b1.b1.s32.xor.popc")
DLCC_MMA(f16, float, "+f", "m16n8k16.row.col.f32.f16.f16.f32")
DLCC_MMA(bf16, float, "+f", "m16n8k16.row.col.f32.bf16.bf16.f32")

/* Four float32 to the nearest numbers with 10 bits of mantissa, halves away from zero. */
DLCC void dlcc_round4_tf32(uint32_t *x) {
#pragma unroll
  for (int i = 0; i < 4; i++)
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(x[i]) : "f"(__uint_as_float(x[i])));
}

/* sum += a * b of a warp, where a keeps 2 of every 4 elements: 16 rows of 64 bytes, 32 of them kept,
 * times 8 columns of 64 bytes. `places` has the places of what is kept in their four, rising, 2 bits
 * each: of 8-bit numbers of lane % 4 = 0 (row lane / 4) and 1 (row lane / 4 + 8) bytes 0 to 31, of 2
 * and 3 bytes 32 to 63; of 16-bit ones lanes % 4 = 0 and 1, or 2 and 3 (SELECT 1), have half of the
 * bytes each, of row lane / 4 in the lower bits and of row lane / 4 + 8 in the upper ones. */
#if __CUDACC_VER_MAJOR__ > 12 || (__CUDACC_VER_MAJOR__ == 12 && __CUDACC_VER_MINOR__ >= 5)
#define DLCC_SPARSE "mma.sp::ordered_metadata.sync.aligned."
#else
#define DLCC_SPARSE "mma.sp.sync.aligned."
#endif
#define DLCC_MMA_SP(NAME, SUM, REGISTER, SHAPE, SELECT) \
  DLCC void dlcc_mma_sp_##NAME(SUM *sum, const uint32_t *a, const uint32_t *b, uint32_t places) { \
    asm volatile(DLCC_SPARSE SHAPE \
                 " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, " \
                 "%12, " #SELECT ";" \
                 : REGISTER(sum[0]), REGISTER(sum[1]), REGISTER(sum[2]), REGISTER(sum[3]) \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(b[2]), \
                   "r"(b[3]), "r"(places)); \
  }
DLCC_MMA_SP(s8u8, int32_t, "+r", "m16n8k64.row.col.s32.s8.u8.s32", 0)
DLCC_MMA_SP(f16_0, float, "+f", "m16n8k32.row.col.f32.f16.f16.f32", 0)
DLCC_MMA_SP(f16_1, float, "+f", "m16n8k32.row.col.f32.f16.f16.f32", 1)
DLCC_MMA_SP(bf16_0, float, "+f", "m16n8k32.row.col.f32.bf16.bf16.f32", 0)
DLCC_MMA_SP(bf16_1, float, "+f", "m16n8k32.row.col.f32.bf16.bf16.f32", 1)
#endif

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* Products of warpgroups, which run on their own: sum += a * b, 64 rows and N columns of 32 bytes.
 * Both operands are in shared memory, rows of 128 bytes whose 16-byte part i is in place of part
 * i ^ row % 8, from a multiple of 1024 bytes on; `a` and `b` point to the first of the 32 bytes of
 * the first row, as if parts were in order. Sums of a lane: of rows lane / 4 and + 8 of its warp's
 * 16, columns lane % 4 * 2 and + 1 of every 8. */
DLCC uint64_t dlcc_matrix(const void *shared) {
  const uint64_t start = __cvta_generic_to_shared(shared) >> 4 & 0x3FFFu;
  const uint64_t eight_rows = 8 * 128 >> 4; /* from one group of exchanged rows to the next */
  return 1ull << 62 | eight_rows << 32 | 1ull << 16 | start;
}

/* Registers may have changed since the last products. */
DLCC void dlcc_wgmma_begin(void) { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

/* The products since the last such call are a group. */
DLCC void dlcc_wgmma_commit(void) { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/* All groups of products are done, or all but the last. */
DLCC void dlcc_wgmma_wait_0(void) { asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory"); }
DLCC void dlcc_wgmma_wait_1(void) { asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); }

/* What this thread has written or copied to shared memory is there for such products. */
DLCC void dlcc_fence_async(void) { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#define DLCC_SUMS_8(C, i) \
  C(sum[i]), C(sum[i + 1]), C(sum[i + 2]), C(sum[i + 3]), C(sum[i + 4]), C(sum[i + 5]), \
    C(sum[i + 6]), C(sum[i + 7])
#define DLCC_SUMS_32(C, i) \
  DLCC_SUMS_8(C, i), DLCC_SUMS_8(C, i + 8), DLCC_SUMS_8(C, i + 16), DLCC_SUMS_8(C, i + 24)
#define DLCC_SUMS_OF_64(C) DLCC_SUMS_32(C, 0)
#define DLCC_SUMS_OF_128(C) DLCC_SUMS_32(C, 0), DLCC_SUMS_32(C, 32)
#define DLCC_SUMS_OF_256(C) DLCC_SUMS_OF_128(C), DLCC_SUMS_32(C, 64), DLCC_SUMS_32(C, 96)
#define DLCC_NAMES_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define DLCC_NAMES_128 \
  DLCC_NAMES_64 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define DLCC_NAMES_256 \
  DLCC_NAMES_128 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define DLCC_WGMMA(NAME, TYPE, C, SHAPE, OPTIONS, N, A, B) \
  DLCC void dlcc_wgmma_##NAME##_##N(TYPE *sum, const void *a, const void *b) { \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" #N SHAPE " {" DLCC_NAMES_##N "}, " A ", " B \
                 ", 1" OPTIONS ";" \
                 : DLCC_SUMS_OF_##N(C) \
                 : "l"(dlcc_matrix(a)), "l"(dlcc_matrix(b))); \
  }
#define DLCC_WGMMA_ALL(N, A, B) \
  DLCC_WGMMA(u8s8, int32_t, "+r", "k32.s32.u8.s8", "", N, A, B) \
  DLCC_WGMMA(f16, float, "+f", "k16.f32.f16.f16", ", 1, 1, 0, 0", N, A, B) \
  DLCC_WGMMA(bf16, float, "+f", "k16.f32.bf16.bf16", ", 1, 1, 0, 0", N, A, B)
DLCC_WGMMA_ALL(64, "%32", "%33")
DLCC_WGMMA_ALL(128, "%64", "%65")
DLCC_WGMMA_ALL(256, "%128", "%129")
#endif
