// Kernels of small networks: additions, a block's reversal through shared memory, and one that asks
// for more shared memory than a block has without asking.

extern "C" __global__ void __launch_bounds__(128) add_bias(const float *x, const float *bias, float *y) {
  const int i = blockIdx.x * 128 + threadIdx.x;
  y[i] = x[i] + bias[threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(128) reverse(const float *x, float *y) {
  __shared__ float block[128];
  block[threadIdx.x] = x[blockIdx.x * 128 + threadIdx.x];
  __syncthreads();
  y[blockIdx.x * 128 + threadIdx.x] = block[127 - threadIdx.x];
}

extern "C" __global__ void __launch_bounds__(128) double_all(const float *x, float *y, const int *rows) {
  extern __shared__ float whole[];
  const int n = *rows * 128;
  for (int i = threadIdx.x; i < n; i += 128) whole[i] = x[i];
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += 128) y[i] = whole[n - 1 - i] + whole[i];
}
