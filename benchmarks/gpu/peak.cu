// What the multiply units can do: products of registers, without any memory. A thread has several
// independent sums, so that no product waits for another one. Included behind dlcc's prelude.

#define SUMS 8
#define THREADS 256

#define TENSOR(NAME, TYPE, MULTIPLY)                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS) NAME(TYPE *out, const int32_t *rounds) { \
    TYPE sum[SUMS][4] = {};                                                                      \
    uint32_t a[4] = {}, b[SUMS][2] = {};                                                         \
    a[0] = threadIdx.x & 1;                                                                      \
    b[0][0] = threadIdx.x & 3;                                                                   \
    const int32_t count = *rounds;                                                               \
    for (int32_t round = 0; round < count; round++)                                              \
      for (int32_t i = 0; i < SUMS; i++) MULTIPLY(sum[i], a, b[i]);                              \
    TYPE all = 0;                                                                                \
    for (int32_t i = 0; i < SUMS; i++) all += sum[i][0] + sum[i][1] + sum[i][2] + sum[i][3];     \
    out[blockIdx.x * THREADS + threadIdx.x] = all;                                               \
  }

TENSOR(peak_int8, int32_t, dlcc_mma_u8s8)
TENSOR(peak_fp16, float, dlcc_mma_f16)
TENSOR(peak_bf16, float, dlcc_mma_bf16)

extern "C" __global__ void __launch_bounds__(THREADS) peak_fp32(float *out, const int32_t *rounds) {
  float sum[4 * SUMS];
  const float a = (float)(threadIdx.x & 1), b = (float)(threadIdx.x & 3);
  for (int32_t i = 0; i < 4 * SUMS; i++) sum[i] = b;
  const int32_t count = *rounds;
  for (int32_t round = 0; round < count; round++)
    for (int32_t i = 0; i < 4 * SUMS; i++) sum[i] = dlcc_fma(sum[i], a, b);
  float all = 0;
  for (int32_t i = 0; i < 4 * SUMS; i++) all += sum[i];
  out[blockIdx.x * THREADS + threadIdx.x] = all;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// Both operands of a warpgroup's products are in shared memory: zeros, read again and again.
#define GROUP(NAME, TYPE, MULTIPLY)                                                              \
  extern "C" __global__ void __launch_bounds__(THREADS) NAME(TYPE *out, const int32_t *rounds) { \
    __shared__ __align__(1024) uint8_t operands[(64 + 256) * 128];                               \
    TYPE sum[128] = {};                                                                          \
    for (int32_t i = threadIdx.x; i < (64 + 256) * 128; i += THREADS) operands[i] = 0;           \
    dlcc_fence_async();                                                                          \
    dlcc_sync();                                                                                 \
    const int32_t count = *rounds;                                                               \
    for (int32_t round = 0; round < count; round++) {                                            \
      dlcc_wgmma_begin();                                                                        \
      for (int32_t i = 0; i < SUMS; i++)                                                         \
        MULTIPLY(sum, operands + i % 4 * 32, operands + 64 * 128 + i % 4 * 32);                  \
      dlcc_wgmma_commit();                                                                       \
      dlcc_wgmma_wait_0();                                                                       \
    }                                                                                            \
    TYPE all = 0;                                                                                \
    for (int32_t i = 0; i < 128; i++) all += sum[i];                                             \
    out[blockIdx.x * THREADS + threadIdx.x] = all;                                               \
  }

GROUP(peak_group_int8, int32_t, dlcc_wgmma_u8s8_256)
GROUP(peak_group_fp16, float, dlcc_wgmma_f16_256)
GROUP(peak_group_bf16, float, dlcc_wgmma_bf16_256)
#endif
