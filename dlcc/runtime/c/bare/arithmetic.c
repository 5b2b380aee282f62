/* Functions that generated C calls; each file gets those that it uses. They use integers alone
 * where a compiler might fuse or reorder floating-point operations, and no libm: its results differ
 * between versions. Bits change their type in unions, as C99 allows (6.5.2.3). */
#include <stdint.h>

/* The bits of a float. */
static inline uint32_t bits_of_f32(float x) {
  union {
    float from;
    uint32_t to;
  } both;
  both.from = x;
  return both.to;
}

/* The float of these bits. */
static inline float f32_of_bits(uint32_t bits) {
  union {
    uint32_t from;
    float to;
  } both;
  both.from = bits;
  return both.to;
}

/* The bits of a double. */
static inline uint64_t bits_of_f64(double x) {
  union {
    double from;
    uint64_t to;
  } both;
  both.from = x;
  return both.to;
}

/* The double of these bits. */
static inline double f64_of_bits(uint64_t bits) {
  union {
    uint64_t from;
    double to;
  } both;
  both.from = bits;
  return both.to;
}

/* Bits as a signed number, as every machine does it. */
static inline int32_t i32_of_bits(uint32_t bits) {
  union {
    uint32_t from;
    int32_t to;
  } both;
  both.from = bits;
  return both.to;
}

/* Bits as a signed number, as every machine does it. */
static inline int64_t i64_of_bits(uint64_t bits) {
  union {
    uint64_t from;
    int64_t to;
  } both;
  both.from = bits;
  return both.to;
}

/* Sum modulo 2^32. */
static inline int32_t wrapped_add_i32(int32_t a, int32_t b) {
  return i32_of_bits((uint32_t)a + (uint32_t)b);
}

/* Difference modulo 2^32. */
static inline int32_t wrapped_sub_i32(int32_t a, int32_t b) {
  return i32_of_bits((uint32_t)a - (uint32_t)b);
}

/* Product modulo 2^32. */
static inline int32_t wrapped_mul_i32(int32_t a, int32_t b) {
  return i32_of_bits((uint32_t)a * (uint32_t)b);
}

/* x * 2^n modulo 2^32. */
static inline int32_t shift_left_i32(int32_t x, int32_t n) {
  return i32_of_bits((uint32_t)x << n);
}

/* x * 2^n modulo 2^64. */
static inline int64_t shift_left_i64(int64_t x, int64_t n) {
  return i64_of_bits((uint64_t)x << n);
}

/* x / 2^n, rounded down. */
static inline int32_t shift_right_i32(int32_t x, int32_t n) { return x < 0 ? ~(~x >> n) : x >> n; }

/* x / 2^n, rounded down. */
static inline int64_t shift_right_i64(int64_t x, int64_t n) { return x < 0 ? ~(~x >> n) : x >> n; }

/* The larger one; b where either is NaN. */
static inline float max_f32(float a, float b) { return a > b ? a : b; }

/* The smaller one; b where either is NaN. */
static inline float min_f32(float a, float b) { return a < b ? a : b; }

/* The larger one; b where either is NaN. */
static inline double max_f64(double a, double b) { return a > b ? a : b; }

/* The smaller one; b where either is NaN. */
static inline double min_f64(double a, double b) { return a < b ? a : b; }

/* The larger one. */
static inline int32_t max_i32(int32_t a, int32_t b) { return a > b ? a : b; }

/* The smaller one. */
static inline int32_t min_i32(int32_t a, int32_t b) { return a < b ? a : b; }

/* The larger one. */
static inline int64_t max_i64(int64_t a, int64_t b) { return a > b ? a : b; }

/* The smaller one. */
static inline int64_t min_i64(int64_t a, int64_t b) { return a < b ? a : b; }

/* The larger one. */
static inline uint32_t max_u32(uint32_t a, uint32_t b) { return a > b ? a : b; }

/* The smaller one. */
static inline uint32_t min_u32(uint32_t a, uint32_t b) { return a < b ? a : b; }

/* The larger one. */
static inline uint64_t max_u64(uint64_t a, uint64_t b) { return a > b ? a : b; }

/* The smaller one. */
static inline uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Whether two numbers differ and neither is NaN. */
static inline int differ_f32(float a, float b) { return a < b || a > b; }

/* Whether two numbers differ and neither is NaN. */
static inline int differ_f64(double a, double b) { return a < b || a > b; }

/* The number without its sign. */
static inline float abs_f32(float x) { return f32_of_bits(bits_of_f32(x) & 0x7FFFFFFFu); }

/* The number without its sign. */
static inline double abs_f64(double x) {
  return f64_of_bits(bits_of_f64(x) & UINT64_C(0x7FFFFFFFFFFFFFFF));
}

/* The nearest integer, half to even, of a number below 2^31 in magnitude. */
static inline int32_t rint_i32(float x) {
  const uint32_t bits = bits_of_f32(x);
  const int32_t exponent = (int32_t)(bits >> 23 & 255u) - 150; /* of the last bit of magnitude */
  uint32_t magnitude = (bits & 0x007FFFFFu) | 0x00800000u;
  if (exponent < -24) return 0; /* below one half */
  if (exponent < 0) {
    const uint32_t odd = magnitude >> -exponent & 1u;
    magnitude = (magnitude + ((UINT32_C(1) << (-exponent - 1)) - 1u) + odd) >> -exponent;
  } else {
    magnitude <<= exponent;
  }
  return bits >> 31 ? -(int32_t)magnitude : (int32_t)magnitude;
}

/* The nearest integer, half to even. */
static inline float rint_f32(float x) {
  const uint32_t bits = bits_of_f32(x), sign = bits & 0x80000000u;
  if ((bits & 0x7FFFFFFFu) >= 0x4B000000u) return x; /* from 2^23 on all are integers; NaN */
  return f32_of_bits(bits_of_f32((float)rint_i32(x)) | sign);
}

/* The float of the bits of one with 16. */
static inline float f32_of_f16(uint16_t half) {
  const uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7FFFu;
  if (magnitude < 0x0400u) /* denormal: steps of 2^-24 */
    return f32_of_bits(bits_of_f32((float)magnitude * 5.9604645e-08f) | sign);
  if (magnitude >= 0x7C00u) return f32_of_bits((magnitude << 13) | 0x7F800000u | sign);
  return f32_of_bits(((magnitude << 13) + 0x38000000u) | sign);
}

/* The bits of the nearest float with 16, half to even. */
static inline uint16_t f16_of_f32(float x) {
  const uint32_t bits = bits_of_f32(x), sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return (uint16_t)(sign | 0x7E00u);  /* NaN */
  if (magnitude >= 0x477FF000u) return (uint16_t)(sign | 0x7C00u); /* from 65520 on: infinity */
  if (magnitude < 0x38800000u) /* denormal */
    return (uint16_t)(sign | (uint32_t)rint_i32(f32_of_bits(magnitude) * 16777216.0f));
  return (uint16_t)(sign | ((magnitude + 0xFFFu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13));
}

/* The integer part. */
static inline float trunc_f32(float x) {
  const uint32_t bits = bits_of_f32(x), sign = bits & 0x80000000u;
  if ((bits & 0x7FFFFFFFu) >= 0x4B000000u) return x;
  return f32_of_bits(bits_of_f32((float)(int32_t)x) | sign);
}

/* The largest integer not above x. */
static inline float floor_f32(float x) {
  const float whole = trunc_f32(x);
  return whole > x ? whole - 1.0f : whole;
}

/* The smallest integer not below x. */
static inline float ceil_f32(float x) {
  const float whole = trunc_f32(x);
  if (whole >= x || x != x) return whole;
  return f32_of_bits(bits_of_f32(whole + 1.0f) | (bits_of_f32(x) & 0x80000000u));
}

/* The integer part. */
static inline double trunc_f64(double x) {
  const uint64_t bits = bits_of_f64(x), sign = bits & UINT64_C(0x8000000000000000);
  if ((bits ^ sign) >= UINT64_C(0x4330000000000000)) return x; /* from 2^52 on; NaN */
  return f64_of_bits(bits_of_f64((double)(int64_t)x) | sign);
}

/* The largest integer not above x. */
static inline double floor_f64(double x) {
  const double whole = trunc_f64(x);
  return whole > x ? whole - 1.0 : whole;
}

/* The smallest integer not below x. */
static inline double ceil_f64(double x) {
  const double whole = trunc_f64(x);
  if (whole >= x || x != x) return whole;
  return f64_of_bits(bits_of_f64(whole + 1.0) | (bits_of_f64(x) & UINT64_C(0x8000000000000000)));
}

/* The nearest integer, half to even. */
static inline double rint_f64(double x) {
  const double whole = trunc_f64(x), rest = abs_f64(x - whole); /* exact */
  const double step = bits_of_f64(x) >> 63 ? -1.0 : 1.0;
  const int odd = rest == 0.5 && whole * 0.5 != trunc_f64(whole * 0.5);
  return rest > 0.5 || odd ? whole + step : whole;
}

/* The square root, correctly rounded, digit by digit. */
static inline float sqrt_f32(float x) {
  const uint32_t bits = bits_of_f32(x);
  int32_t exponent = (int32_t)(bits >> 23) - 127;
  uint32_t mantissa = bits & 0x007FFFFFu, root = 0, bit = UINT32_C(1) << 24;
  uint64_t rest;
  if ((bits & 0x7FFFFFFFu) == 0 || bits == 0x7F800000u) return x; /* 0, infinity */
  if (bits > 0x7F800000u) return f32_of_bits(0x7FC00000u);        /* negative, NaN */
  if (exponent == -127) {
    for (exponent = -126; mantissa < 0x00800000u; exponent--) mantissa <<= 1; /* denormal */
  }
  mantissa |= 0x00800000u;
  if (exponent % 2 != 0) {
    mantissa <<= 1;
    exponent--;
  }
  rest = (uint64_t)mantissa << 25; /* the root of which has 25 bits: 24 and one to round by */
  for (; bit != 0; bit >>= 1) {
    const uint64_t trial = ((uint64_t)root << 1) + bit;
    if (rest >= trial * bit) {
      rest -= trial * bit;
      root += bit;
    }
  }
  root = (root + 1u) >> 1; /* a root of 24 bits lies halfway between two numbers never */
  return f32_of_bits(((uint32_t)(exponent / 2 + 127) << 23) + (root - 0x00800000u));
}
