// Kernels with one mistake each, and the same without: the gates must catch the mistake.
#include "common/cuda.cuh"
#include "common/cuda_registry.h"

namespace {

using namespace rwm;
using namespace rwm::cuda;

constexpr int kThreads = 128;

// out[b·128 + t] = 127 − t, by way of shared memory.
template <bool BARRIER>
__global__ void reverse_kernel(float* out) {
  RWM_SHARED(float, values, [kThreads]);
  values[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (BARRIER) __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

// Three turns through the same memory: the second barrier keeps a fast warp from the next turn's
// writes.
template <bool BARRIER>
__global__ void turns_kernel(float* out) {
  RWM_SHARED(float, values, [kThreads]);
  float sum = 0;
  for (int turn = 0; turn < 3; ++turn) {
    values[threadIdx.x] = static_cast<float>(turn);
    __syncthreads();
    sum += values[kThreads - 1 - threadIdx.x];
    if (BARRIER) __syncthreads();
  }
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

__global__ void early_return_kernel(float* out) {
  if (threadIdx.x < kThreads / 2) return;
  __syncthreads();
  out[threadIdx.x] = 0;
}

__global__ void two_barriers_kernel(float* out) {
  if (threadIdx.x < kThreads / 2) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  out[threadIdx.x] = 0;
}

__global__ void half_warp_kernel(float* out) {
  float value = 1;
  if (threadIdx.x % kWarp < kWarp / 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  out[threadIdx.x] = value;
}

__global__ void past_shared_kernel(float* out) {
  RWM_DYNAMIC_SHARED(float, values);
  values[threadIdx.x + 1] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x];
}

__global__ void past_global_kernel(float* out) { out[threadIdx.x + 1] = 1; }

// The last block that comes says who it was.
__global__ void last_block_kernel(float* out) {
  if (threadIdx.x == 0) out[0] = static_cast<float>(blockIdx.x);
}

#if defined(RWM_SPILLED)
// 32 registers for more than 64 numbers that are all needed at the end.
__global__ void __launch_bounds__(1024, 2) spilled_kernel(const float* in, float* out, int turns) {
  float sums[64] = {};
  for (int turn = 0; turn < turns; ++turn) {
#pragma unroll
    for (int i = 0; i < 64; ++i) sums[i] = sums[i] * in[i + turn] + in[threadIdx.x + i];
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i * 1024 + threadIdx.x] = sums[i];
}

void spilled(Pointer in, Pointer out, int turns) {
  Launcher("faulty", 0, 0)(spilled_kernel, dim3(1), 1024, 0, as<float>(in), as<float>(out), turns);
}
RWM_CUDA_FUNCTION(spilled, spilled);
#endif

#if defined(RWM_SPLIT)
// A store<WIDTH> by halves.
template <int WIDTH>
__global__ void split_store_kernel(float* out) {
  float values[WIDTH];
  load<WIDTH>(out, values);
  store<WIDTH / 2>(out + WIDTH, *reinterpret_cast<float (*)[WIDTH / 2]>(values));
  store<WIDTH / 2>(out + WIDTH + WIDTH / 2,
                   *reinterpret_cast<float (*)[WIDTH / 2]>(values + WIDTH / 2));
}
void split(Pointer out) {
  Launcher("faulty", 0, 0)(split_store_kernel<4>, dim3(1), 1, 0, as<float>(out));
}
RWM_CUDA_FUNCTION(split, split);
#endif

template <void (*kernel)(float*), int SHARED = 0>
void run(Pointer out, int blocks) {
  Launcher("faulty", 0, 0)(kernel, dim3(static_cast<unsigned>(blocks)), kThreads,
                           SHARED * sizeof(float), as<float>(out));
}

}  // namespace

RWM_CUDA_FUNCTION(reverse, run<reverse_kernel<true>>);
RWM_CUDA_FUNCTION(reverse_no_barrier, run<reverse_kernel<false>>);
RWM_CUDA_FUNCTION(turns, run<turns_kernel<true>>);
RWM_CUDA_FUNCTION(turns_no_barrier, run<turns_kernel<false>>);
RWM_CUDA_FUNCTION(early_return, run<early_return_kernel>);
RWM_CUDA_FUNCTION(two_barriers, run<two_barriers_kernel>);
RWM_CUDA_FUNCTION(half_warp, run<half_warp_kernel>);
RWM_CUDA_FUNCTION(past_shared, (run<past_shared_kernel, kThreads>));
RWM_CUDA_FUNCTION(past_global, run<past_global_kernel>);
RWM_CUDA_FUNCTION(last_block, run<last_block_kernel>);
