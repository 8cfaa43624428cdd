// bias_act on CUDA. Two orders of memory, as on the CPU: rows [R, C], channels innermost, and
// planes [N, C, S].
#pragma once

#include "bias_act/activation.cuh"
#include "common/partials.cuh"

namespace rwm::bias_act {

using namespace rwm::cuda;

constexpr int kThreads = 256;
constexpr int kBlocks = 4;  // on a multiprocessor: 64 registers a thread, which is enough

template <class T, int WIDTH, bool ROWS, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads)
    forward_kernel(const T* __restrict__ x, const A* __restrict__ bias, T* __restrict__ y,
                   std::int64_t size, Divider channels, Divider inner, Activation<A> act) {
  const std::int64_t at = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * WIDTH;
  if (at >= size) return;
  A values[WIDTH], b[WIDTH] = {};
  load<WIDTH>(x + at, values);
  if (bias != nullptr) {
    const std::int64_t line = ROWS ? at : inner(at);
    const std::int64_t channel = line - channels(line) * channels.divisor;
    if (ROWS) load<WIDTH>(bias + channel, b);
#pragma unroll
    for (int i = 0; i < WIDTH && !ROWS; ++i) b[i] = bias[channel];
  }
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) values[i] = act.forward(values[i] + b[i]);
  store<WIDTH>(y + at, values);
}

// dx of one vector, and its dt in `values`.
template <int WIDTH, class T, class A>
__device__ __forceinline__ void backward_vector(const T* __restrict__ dy, const T* __restrict__ y,
                                                T* __restrict__ dx, std::int64_t at,
                                                const Activation<A>& act, A (&values)[WIDTH]) {
  load<WIDTH>(dy + at, values);
  if (y != nullptr) {
    A stored[WIDTH];
    load<WIDTH>(y + at, stored);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) values[i] = act.backward(values[i], stored[i]);
  } else {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) values[i] *= act.gain;
  }
  if (dx != nullptr) store<WIDTH>(dx + at, values);
}

// No bias gradient asked: every element for itself.
template <class T, int WIDTH, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads)
    backward_elements(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx,
                      std::int64_t size, Activation<A> act) {
  const std::int64_t at = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * WIDTH;
  if (at >= size) return;
  A values[WIDTH];
  backward_vector<WIDTH>(dy, y, dx, at, act, values);
}

// GROUP threads (a warp or the block) for a chunk of one plane; partials [N, chunks, C].
template <class T, int WIDTH, int GROUP, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads, kBlocks)
    backward_planes(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx,
                    A* __restrict__ partials, std::int64_t planes, Divider channels,
                    std::int64_t inner, std::int64_t chunk, Divider chunks, Activation<A> act) {
  const std::int64_t group =
      (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / GROUP;  // plane · chunks + part
  const int member = static_cast<int>(threadIdx.x) % GROUP;
  const std::int64_t plane = chunks(group), part = group - plane * chunks.divisor;
  A sum = 0;
  if (plane < planes) {
    const std::int64_t end = min((part + 1) * chunk, inner);
    for (std::int64_t s = part * chunk + member * WIDTH; s < end; s += GROUP * WIDTH) {
      A values[WIDTH];
      backward_vector<WIDTH>(dy, y, dx, plane * inner + s, act, values);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) sum += values[i];
    }
  }
  sum = GROUP == kWarp ? warp_sum(sum) : block_sum<kThreads>(sum);
  if (member != 0 || plane >= planes) return;
  const std::int64_t n = channels(plane), channel = plane - n * channels.divisor;
  partials[(n * chunks.divisor + part) * channels.divisor + channel] = sum;
}

// A block for a chunk of rows and up to 32 vectors of channels: `lanes` (a power of two) threads
// for a row, kThreads / lanes rows at a time; partials [chunks, C].
template <class T, int WIDTH, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads, kBlocks)
    backward_rows(const T* __restrict__ dy, const T* __restrict__ y, T* __restrict__ dx,
                  A* __restrict__ partials, std::int64_t rows, std::int64_t channels,
                  std::int64_t chunk, int lanes, Activation<A> act) {
  RWM_SHARED(A, sums, [kThreads][WIDTH]);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % lanes;
  const int first = thread / lanes, step = kThreads / lanes;
  const std::int64_t channel = (std::int64_t{blockIdx.y} * lanes + lane) * WIDTH;
  const bool present = channel < channels;
  A sum[WIDTH] = {};
  if (present) {
    const std::int64_t end = min((blockIdx.x + 1) * chunk, rows);
    for (std::int64_t r = blockIdx.x * chunk + first; r < end; r += step) {
      A values[WIDTH];
      backward_vector<WIDTH>(dy, y, dx, r * channels + channel, act, values);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) sum[i] += values[i];
    }
  }
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) sums[thread][i] = sum[i];
  __syncthreads();
  if (first != 0 || !present) return;
  for (int other = 1; other < step; ++other) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sum[i] += sums[other * lanes + lane][i];
  }
  store<WIDTH>(partials + blockIdx.x * channels + channel, sum);
}

}  // namespace rwm::bias_act
