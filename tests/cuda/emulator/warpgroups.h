/* CUDA C++ for a CPU: products of warpgroups (sm_90a), and what of shared memory they may read.
 *
 * PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate Instructions": the layout of
 * accumulators is of "Register Fragments for wgmma.mma_async.m64nNk...", the descriptor's fields of
 * "Matrix Descriptor Format", the exchange of "Swizzling Modes": 16-byte units of the address, its
 * bits 4 to 6, are exchanged by bits 7 to 9 (of 128 bytes). For operands along the depth, rows lie
 * 128 bytes apart and groups of eight the stride offset apart; a start within a row moves along the
 * depth before the exchange.
 *
 * Products are made at once, and where threads run in reverse as late as waits allow; copies arrive
 * the other way round, so that one order has them too late and the other too early. What has been
 * written to shared memory, by a copy here, may be read after its thread's proxy fence only. */
#ifndef DLCC_EMULATOR_WARPGROUPS_H
#define DLCC_EMULATOR_WARPGROUPS_H

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
namespace emulator {

enum { MOST_PRODUCTS = 64, UNIT = 16 };

/* Threads, from 1, that have written a unit of shared memory without a fence; 0: none. */
static unsigned short writers[SHARED / UNIT];
static unsigned long long writers_block;

struct Written {
  unsigned long long block;
  unsigned count;
  unsigned short units[2 * MOST_COPIES];
};

static Written all_written[MOST_THREADS];

static void written(const void *to) {
  if (writers_block != block_number) {
    __builtin_memset(writers, 0, sizeof writers);
    writers_block = block_number;
  }
  Written &mine = all_written[current];
  if (mine.block != block_number) mine.block = block_number, mine.count = 0;
  const size_t unit = (static_cast<const unsigned char *>(to) - shared) / UNIT;
  writers[unit] = static_cast<unsigned short>(current + 1);
  if (mine.count < 2 * MOST_COPIES) mine.units[mine.count++] = static_cast<unsigned short>(unit);
}

struct Product {
  unsigned long long a, b;
  void *sum;
  void (*multiply)(const Product &product);
  unsigned group;
};

struct Products {
  unsigned long long block;
  unsigned count, groups;
  bool begun; /* a fence since the last wait */
  Product all[MOST_PRODUCTS];
};

static Products all_products[MOST_THREADS];

static Products &products() {
  Products &mine = all_products[current];
  if (mine.block != block_number)
    mine.block = block_number, mine.count = mine.groups = 0, mine.begun = false;
  return mine;
}

/* 16 bytes of a row of the matrix of a descriptor. */
static const unsigned char *unit_of(unsigned long long descriptor, unsigned row, unsigned byte) {
  const unsigned long long start = (descriptor & 0x3fff) << 4;
  const unsigned long long stride = (descriptor >> 32 & 0x3fff) << 4;
  const unsigned base = descriptor >> 49 & 7, mode = static_cast<unsigned>(descriptor >> 62);
  if (mode != 1 || base != 0) fault = "a matrix descriptor without the exchange of 128 bytes";
  const unsigned long long plain = start + row / 8 * stride + row % 8 * 128 + byte;
  const unsigned long long place = (plain ^ (plain >> 7 & 7) << 4) - RESERVED;
  if (place + UNIT > SHARED) {
    fault = "a matrix descriptor points out of shared memory";
    return shared;
  }
  if (writers[place / UNIT] != 0) fault = "products of what was written without a proxy fence";
  return shared + place;
}

template <class Sum, unsigned N, class Dot>
static void multiply_rows(const Product &product) {
  const unsigned lane = current % WARP, first = current / WARP % 4 * 16 + lane / 4;
  uint32_t left[2][8], right[8];
  Sum *sum = static_cast<Sum *>(product.sum);
  for (unsigned row = 0; row < 2; row++)
    for (unsigned half = 0; half < 2; half++)
      __builtin_memcpy(left[row] + 4 * half, unit_of(product.a, first + 8 * row, 16 * half), 16);
  for (unsigned i = 0; i < N / 4; i++) {
    const unsigned column = i / 2 * 8 + lane % 4 * 2 + i % 2;
    for (unsigned half = 0; half < 2; half++)
      __builtin_memcpy(right + 4 * half, unit_of(product.b, column, 16 * half), 16);
    for (unsigned row = 0; row < 2; row++) {
      Sum &total = sum[i / 2 * 4 + 2 * row + i % 2];
      for (unsigned k = 0; k < 8; k++) total = Dot::add(left[row][k], right[k], total);
    }
  }
}

struct Descriptors {
  unsigned long long a, b;
};

static void product(void (*multiply)(const Product &), void *sum, Descriptors given_here) {
  Products &mine = products();
  if (!mine.begun) fault = "products of a warpgroup without a fence of its registers before";
  const Product made = {given_here.a, given_here.b, sum, multiply, mine.groups};
  if (mine.count == MOST_PRODUCTS) __builtin_trap();
  if (in_reverse)
    mine.all[mine.count++] = made;
  else
    multiply(made);
  const unsigned char *all = exchange(given_here);
  const Descriptors first = given<Descriptors>(all, 0);
  if (first.a != given_here.a || first.b != given_here.b)
    fault = "lanes of a warp have different matrix descriptors";
}

static void products_wait(unsigned but) {
  Products &mine = products();
  unsigned kept = 0;
  for (unsigned i = 0; i < mine.count; i++) {
    const Product &one = mine.all[i];
    if (one.group + but < mine.groups)
      one.multiply(one);
    else
      mine.all[kept++] = one;
  }
  mine.count = kept;
  mine.begun = false;
}

struct Codes {
  static int add(uint32_t x, uint32_t y, int sum) { return dot4(x, y, sum); }
};
struct Halves {
  static float add(uint32_t x, uint32_t y, float sum) {
    sum += f32_of_f16((uint16_t)x) * f32_of_f16((uint16_t)y);
    return sum + f32_of_f16((uint16_t)(x >> 16)) * f32_of_f16((uint16_t)(y >> 16));
  }
};
struct ShortFloats {
  static float add(uint32_t x, uint32_t y, float sum) {
    sum += f32_of_bf16(x & 0xffffu) * f32_of_bf16(y & 0xffffu);
    return sum + f32_of_bf16(x >> 16) * f32_of_bf16(y >> 16);
  }
};

}  // namespace emulator

DLCC void dlcc_wgmma_begin(void) { emulator::products().begun = true; }
DLCC void dlcc_wgmma_commit(void) { emulator::products().groups++; }
DLCC void dlcc_wgmma_wait_0(void) { emulator::products_wait(0); }
DLCC void dlcc_wgmma_wait_1(void) { emulator::products_wait(1); }
DLCC void dlcc_fence_async(void) {
  emulator::Written &mine = emulator::all_written[emulator::current];
  if (mine.block != emulator::block_number) return;
  for (unsigned i = 0; i < mine.count; i++)
    if (emulator::writers[mine.units[i]] == emulator::current + 1)
      emulator::writers[mine.units[i]] = 0;
  mine.count = 0;
}

#define EMULATED_PRODUCT(NAME, TYPE, N, DOT)                                             \
  DLCC void dlcc_wgmma_##NAME##_##N(TYPE *sum, const void *a, const void *b) {           \
    emulator::product(emulator::multiply_rows<TYPE, N, emulator::DOT>, sum,              \
                      {dlcc_matrix(a), dlcc_matrix(b)});                                 \
  }
#define EMULATED_PRODUCTS(N)                 \
  EMULATED_PRODUCT(u8s8, int32_t, N, Codes)  \
  EMULATED_PRODUCT(f16, float, N, Halves)    \
  EMULATED_PRODUCT(bf16, float, N, ShortFloats)
EMULATED_PRODUCTS(64)
EMULATED_PRODUCTS(128)
EMULATED_PRODUCTS(256)
#else
namespace emulator {
static void written(const void *) {}
}  // namespace emulator
#endif

#endif
