/* CUDA C++ for a CPU, after the prelude: its functions that are written in the GPU's instructions.
 *
 * Copies to shared memory arrive as late as their waits allow, and where threads run in reverse as
 * soon as they are asked for: a missing wait shows in one order, a place that is overwritten while
 * others read it in the other. Fragments: PTX ISA, section 9.7.14. */
#ifndef DLCC_EMULATOR_INSTRUCTIONS_H
#define DLCC_EMULATOR_INSTRUCTIONS_H

DLCC float f32_of_f16(uint16_t half) { return (float)dlcc_bits<_Float16>(half); }

DLCC uint16_t f16_of_f32(float x) {
  if (x != x) return (uint16_t)(0x7E00u | (__float_as_uint(x) >> 16 & 0x8000u));
  return dlcc_bits<uint16_t>((_Float16)x);
}

DLCC float f32_of_bf16(uint32_t bits) { return __uint_as_float(bits << 16); }

namespace emulator {

static int dot4(uint32_t codes, uint32_t weights, int sum) {
  for (int i = 0; i < 32; i += 8)
    sum += (int)(codes >> i & 255u) * (int)(signed char)(weights >> i & 255u);
  return sum;
}

}  // namespace emulator

/* PTX ISA, "ld.global.nc": the address is a multiple of the size of the whole vector. */
DLCC void dlcc_stream16(uint32_t *to, const void *from) {
  if ((size_t)from % 16 != 0) __builtin_trap();
  __builtin_memcpy(to, from, 16);
}

/* PTX ISA, "lop3": bit by bit the entry 4 * a + 2 * b + c of the table 0xEA. */
DLCC uint32_t dlcc_and_or(uint32_t word, uint32_t mask, uint32_t bits) {
  uint32_t made = 0;
  for (int i = 0; i < 32; i++) {
    const uint32_t entry = 4 * (word >> i & 1) + 2 * (mask >> i & 1) + (bits >> i & 1);
    made |= (0xEAu >> entry & 1u) << i;
  }
  return made;
}

/* PTX ISA, "dp4a": d = c + the sum of a.byte[i] * b.byte[i], zero-extended for .u32. */
DLCC void dlcc_dot4_u8u8(int32_t *sum, uint32_t a, uint32_t b) {
  uint32_t total = (uint32_t)*sum;
  for (int i = 0; i < 32; i += 8) total += (a >> i & 255u) * (b >> i & 255u);
  *sum = (int32_t)total;
}

DLCC void dlcc_dot4_u8s8(int32_t *sum, uint32_t a, uint32_t b) {
  *sum = emulator::dot4(a, b, *sum);
}

#if __CUDA_ARCH__ >= 800
namespace emulator {

enum { MOST_COPIES = 512 };

/* What a thread has asked for and not waited for; `group`: number of the commit after it. */
struct Copy {
  void *to;
  const void *from;
  unsigned group;
};

struct Copies {
  unsigned long long block; /* that they belong to */
  unsigned count, groups;
  Copy all[MOST_COPIES];
};

static Copies all_copies[MOST_THREADS];

static Copies &copies() {
  Copies &mine = all_copies[current];
  if (mine.block != block_number) mine.block = block_number, mine.count = mine.groups = 0;
  return mine;
}

static void written(const void *to);

static void copies_wait(unsigned but) {
  Copies &mine = copies();
  unsigned kept = 0;
  for (unsigned i = 0; i < mine.count; i++) {
    const Copy &copy = mine.all[i];
    if (copy.group + but < mine.groups)
      __builtin_memcpy(copy.to, copy.from, 16), written(copy.to);
    else
      mine.all[kept++] = copy;
  }
  mine.count = kept;
}

struct Fragments {
  uint32_t a[4], b[2];
};

/* The sums of a lane: of rows lane / 4 and + 8, columns lane % 4 * 2 and + 1. */
template <class Sum, class Dot>
static void multiply(Sum *sum, const uint32_t *a, const uint32_t *b, Dot dot) {
  Fragments mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const unsigned char *all = exchange(mine);
  const unsigned lane = current % WARP;
  for (unsigned i = 0; i < 4; i++) {
    const unsigned row = lane / 4, column = lane % 4 * 2 + i % 2;
    Sum total = sum[i];
    for (unsigned half = 0; half < 2; half++)
      for (unsigned t = 0; t < 4; t++) {
        const Fragments left = given<Fragments>(all, row * 4 + t);
        const Fragments right = given<Fragments>(all, column * 4 + t);
        total = dot(left.a[2 * half + i / 2], right.b[half], total);
      }
    sum[i] = total;
  }
}

}  // namespace emulator

DLCC void dlcc_copy16(void *shared, const void *global) {
  if (((size_t)shared | (size_t)global) % 16 != 0) __builtin_trap();
  emulator::Copies &mine = emulator::copies();
  if (mine.count == emulator::MOST_COPIES) __builtin_trap();
  if (emulator::in_reverse)
    __builtin_memcpy(shared, global, 16), emulator::written(shared);
  else
    mine.all[mine.count++] = {shared, global, mine.groups};
}

DLCC void dlcc_copy_commit(void) { emulator::copies().groups++; }
DLCC void dlcc_copy_wait_0(void) { emulator::copies_wait(0); }
DLCC void dlcc_copy_wait_1(void) { emulator::copies_wait(1); }
DLCC void dlcc_copy_wait_2(void) { emulator::copies_wait(2); }
DLCC void dlcc_copy_wait_3(void) { emulator::copies_wait(3); }

DLCC void dlcc_ldmatrix4(uint32_t *to, const void *shared) {
  const unsigned char *all = emulator::exchange(shared);
  const unsigned lane = emulator::current % 32;
  for (unsigned i = 0; i < 4; i++) {
    const char *row = emulator::given<const char *>(all, i * 8 + lane / 4);
    if ((size_t)row % 16 != 0) __builtin_trap();
    __builtin_memcpy(&to[i], row + lane % 4 * 4, 4);
  }
}

/* PTX ISA, "ldmatrix": lane i's register of matrix m holds, without .trans, row i / 4, elements
 * i % 4 * 2 and + 1 (lower half first); .trans: "each matrix is loaded in column-major format", so
 * that it holds column i / 4, rows i % 4 * 2 and + 1. Lanes 8 * m + r give the address of row r. */
DLCC void dlcc_ldmatrix4_trans(uint32_t *to, const void *shared) {
  const unsigned char *all = emulator::exchange(shared);
  const unsigned column = emulator::current % 32 / 4, first = emulator::current % 4 * 2;
  for (unsigned m = 0; m < 4; m++) {
    to[m] = 0;
    for (unsigned half = 0; half < 2; half++) {
      const char *row = emulator::given<const char *>(all, 8 * m + first + half);
      if ((size_t)row % 16 != 0) __builtin_trap();
      uint16_t element;
      __builtin_memcpy(&element, row + 2 * column, 2);
      to[m] |= (uint32_t)element << 16 * half;
    }
  }
}

/* PTX ISA, "ex2" with .ftz: -inf gives +0, +inf itself, NaN NaN; subnormal operands and results
 * count as 0. */
DLCC float dlcc_exp2(float x) {
  const float y = __builtin_exp2f(x);
  return y < 1.17549435e-38f ? 0.0f : y;
}

/* PTX ISA, "cvt": with .f16x2 and .bf16x2 "input a is converted ... and stored in the upper half of
 * d, b in the lower half"; .rn rounds to nearest even, and NaN becomes 0x7fff. */
DLCC uint32_t dlcc_pack2_f16(float low, float high) {
  const uint32_t lower = low != low ? 0x7fffu : dlcc_bits<uint16_t>((_Float16)low);
  return lower | (high != high ? 0x7fffu : (uint32_t)dlcc_bits<uint16_t>((_Float16)high)) << 16;
}

DLCC uint32_t dlcc_pack2_bf16(float low, float high) {
  uint32_t made = 0;
  for (int i = 0; i < 2; i++) {
    const float x = i ? high : low;
    const uint32_t bits = __float_as_uint(x), odd = bits >> 16 & 1u;
    made |= (x != x ? 0x7fffu : (bits + 0x7fffu + odd) >> 16) << 16 * i;
  }
  return made;
}

DLCC void dlcc_mma_u8s8(int32_t *sum, const uint32_t *a, const uint32_t *b) {
  emulator::multiply(sum, a, b, emulator::dot4);
}

/* cvt.rna.tf32.f32 (PTX ISA, cvt): to nearest, ties away from zero; no finite number limits it. */
DLCC void dlcc_round4_tf32(uint32_t *x) {
  for (int i = 0; i < 4; i++) {
    const bool finite = (x[i] & 0x7f800000u) != 0x7f800000u;
    if (finite) x[i] += 0x1000u; /* half a unit of the tenth bit of the mantissa */
    x[i] &= ~0x1fffu;
  }
}

/* mma.m16n8k8 with .tf32 (PTX ISA, "Matrix Fragments for mma.m16n8k8"): a0 and a1 are of column
 * lane % 4 and rows lane / 4 and + 8, a2 and a3 of column + 4; b0 and b1 of rows lane % 4 and + 4.
 * Operands are valid TF32, else the result is undefined (cvt). */
DLCC void dlcc_mma_tf32(float *sum, const uint32_t *a, const uint32_t *b) {
  emulator::multiply(sum, a, b, [](uint32_t x, uint32_t y, float s) {
    if ((x | y) & 0x1fffu) emulator::fault = "an operand of mma is not rounded to TF32";
    return s + __uint_as_float(x) * __uint_as_float(y);
  });
}

/* PTX ISA, "Matrix fragments for mma.m16n8k256": a register holds the 32 bits from threadID_in_group
 * * 32 on (a2, a3 and b1: 128 further) of row groupID (a1, a3: 8 further) or column groupID. */
DLCC void dlcc_mma_b1(int32_t *sum, const uint32_t *a, const uint32_t *b) {
  emulator::multiply(sum, a, b, [](uint32_t x, uint32_t y, int s) {
    for (int i = 0; i < 32; i++) s += (int)((x >> i ^ y >> i) & 1u);
    return s;
  });
}

DLCC void dlcc_mma_f16(float *sum, const uint32_t *a, const uint32_t *b) {
  emulator::multiply(sum, a, b, [](uint32_t x, uint32_t y, float s) {
    s += f32_of_f16((uint16_t)x) * f32_of_f16((uint16_t)y);
    return s + f32_of_f16((uint16_t)(x >> 16)) * f32_of_f16((uint16_t)(y >> 16));
  });
}

DLCC void dlcc_mma_bf16(float *sum, const uint32_t *a, const uint32_t *b) {
  emulator::multiply(sum, a, b, [](uint32_t x, uint32_t y, float s) {
    s += f32_of_bf16(x & 0xffffu) * f32_of_bf16(y & 0xffffu);
    return s + f32_of_bf16(x >> 16) * f32_of_bf16(y >> 16);
  });
}

namespace emulator {

struct SparseFragments {
  uint32_t a[4], b[4], places;
};

/* PTX ISA, 9.7.14.6: mma.sp::ordered_metadata of m16n8k64 on bytes (SIZE 1, all four lanes of a group
 * of four have metadata) and m16n8k32 on 16-bit floats (SIZE 2, the pair SELECT has). `product` is of
 * two elements in the low bits. A four whose places do not rise is undefined there, and a trap here. */
template <unsigned SIZE, unsigned SELECT, class Sum, class Product>
static void multiply_sparse(Sum *sum, const uint32_t *a, const uint32_t *b, uint32_t places,
                            Product product) {
  SparseFragments mine = {{a[0], a[1], a[2], a[3]}, {b[0], b[1], b[2], b[3]}, places};
  const unsigned char *all = exchange(mine);
  const unsigned lane = current % WARP;
  const unsigned each = 4 / SIZE, bits = 8 * SIZE; /* elements of a register, bits of an element */
  for (unsigned i = 0; i < 4; i++) {
    const unsigned group = lane / 4, lower = i / 2, column = lane % 4 * 2 + i % 2;
    for (unsigned four = 0; four < 16 / SIZE; four++) {
      const unsigned holder = SIZE == 1 ? lower + 2 * (four / 8) : 2 * SELECT + four / 4;
      const unsigned shift = SIZE == 1 ? four % 8 * 4 : 16 * lower + four % 4 * 4;
      const uint32_t pair = given<SparseFragments>(all, group * 4 + holder).places >> shift & 15u;
      if ((pair & 3u) >= pair >> 2) __builtin_trap();
      for (unsigned n = 0; n < 2; n++) {
        const unsigned kept = 2 * four + n, k = 4 * four + (pair >> 2 * n & 3u);
        const SparseFragments left = given<SparseFragments>(all, group * 4 + kept / each % 4);
        const SparseFragments right = given<SparseFragments>(all, column * 4 + k / each % 4);
        const uint32_t x = left.a[kept / (4 * each) * 2 + lower] >> kept % each * bits;
        const uint32_t y = right.b[k / (4 * each)] >> k % each * bits;
        sum[i] += product(x, y);
      }
    }
  }
}

static float product_f16(uint32_t x, uint32_t y) {
  return f32_of_f16((uint16_t)x) * f32_of_f16((uint16_t)y);
}

static float product_bf16(uint32_t x, uint32_t y) {
  return f32_of_bf16(x & 0xffffu) * f32_of_bf16(y & 0xffffu);
}

}  // namespace emulator

DLCC void dlcc_mma_sp_s8u8(int32_t *sum, const uint32_t *a, const uint32_t *b, uint32_t places) {
  emulator::multiply_sparse<1, 0>(sum, a, b, places, [](uint32_t x, uint32_t y) {
    return (int)(signed char)x * (int)(unsigned char)y;
  });
}

#define DLCC_EMULATED_SP(TYPE, SELECT) \
  DLCC void dlcc_mma_sp_##TYPE##_##SELECT(float *sum, const uint32_t *a, const uint32_t *b, \
                                          uint32_t places) { \
    emulator::multiply_sparse<2, SELECT>(sum, a, b, places, emulator::product_##TYPE); \
  }
DLCC_EMULATED_SP(f16, 0)
DLCC_EMULATED_SP(f16, 1)
DLCC_EMULATED_SP(bf16, 0)
DLCC_EMULATED_SP(bf16, 1)
#include "warpgroups.h"
#endif

#endif
