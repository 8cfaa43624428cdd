// masked_l1 on CUDA: the loss in one launch, and its gradients. Notation of autograd.py: h, g, a,
// m.
#pragma once

#include "common/cuda.cuh"
#include "masked_l1/records.h"

namespace rwm::masked_l1 {

using namespace rwm::cuda;

constexpr int kThreads = 256;
constexpr std::int64_t kMaxBlocks = 4096;  // the last block adds up one partial sum of each

// As the kernels read records::MaskedImages.
struct Shape {
  std::int64_t images, channels, spots;
  Divider by_channels;
  double inverse_size;

  explicit Shape(const records::MaskedImages& m)
      : images(m.images), channels(m.channels), spots(m.spots), by_channels(m.channels),
        inverse_size(1.0 / static_cast<double>(m.size())) {}
};

template <class A>
__device__ __forceinline__ A sign(A v) {
  return static_cast<A>((v > A(0)) - (v < A(0)));
}

// reference.encode
template <class A>
__device__ __forceinline__ std::uint8_t encode(A inside, A outside) {
  const int s = (inside > A(0)) - (inside < A(0)) + 1;
  const int t = (outside > A(0)) - (outside < A(0)) + 1;
  return static_cast<std::uint8_t>(s | t << 2);
}

// The terms of one vector of elements; their signs, if asked for.
template <int WIDTH, class T, class A>
__device__ __forceinline__ A forward_terms(const T* __restrict__ h, const T* __restrict__ g,
                                           const T* __restrict__ a, const A (&m)[WIDTH],
                                           std::uint8_t* __restrict__ signs, std::int64_t at) {
  A vh[WIDTH], vg[WIDTH], va[WIDTH], sum = 0;
  load<WIDTH>(h + at, vh);
  load<WIDTH>(g + at, vg);
  load<WIDTH>(a + at, va);
  std::uint8_t codes[WIDTH];
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    const A inside = vh[i] - vg[i], outside = vh[i] - va[i];
    sum += fabs(m[i]) * fabs(inside) + fabs(A(1) - m[i]) * fabs(outside);
    codes[i] = encode(inside, outside);
  }
  if (signs != nullptr) store<WIDTH>(signs + at, codes);
  return sum;
}

// Block sums to `partials`; the block that comes last adds them up in index order, writes the mean
// and sets the ticket back to 0 for the next launch on this stream.
template <class A>
__device__ __forceinline__ void reduce_loss(A sum, A* partials, unsigned* ticket, A* loss,
                                            double inverse_size) {
  RWM_SHARED(bool, last, [1]);
  const unsigned blocks = gridDim.x * gridDim.y, block = blockIdx.y * gridDim.x + blockIdx.x;
  sum = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) {
    partials[block] = sum;
    __threadfence();
    last[0] = atomicAdd(ticket, 1u) == blocks - 1;
  }
  __syncthreads();
  if (!last[0]) return;
  __threadfence();
  double total = 0;
  for (unsigned i = threadIdx.x; i < blocks; i += kThreads) {
    total += *static_cast<volatile A*>(partials + i);
  }
  total = block_sum<kThreads>(total);
  if (threadIdx.x == 0) {
    *loss = static_cast<A>(total * inverse_size);
    *ticket = 0;
  }
}

template <class T, class M, int WIDTH, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads)
    forward_planes(const T* __restrict__ h, const T* __restrict__ g, const T* __restrict__ a,
                   const M* __restrict__ m, std::uint8_t* __restrict__ signs, A* partials,
                   unsigned* ticket, A* loss, Shape shape) {
  A sum = 0;
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads * WIDTH;
  for (std::int64_t n = blockIdx.y; n < shape.images; n += gridDim.y) {
    std::int64_t s = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * WIDTH;
    for (; s < shape.spots; s += step) {
      A vm[WIDTH];
      load<WIDTH>(m + n * shape.spots + s, vm);
      for (std::int64_t c = 0; c < shape.channels; ++c) {
        const std::int64_t at = (n * shape.channels + c) * shape.spots + s;
        sum += forward_terms<WIDTH>(h, g, a, vm, signs, at);
      }
    }
  }
  reduce_loss(sum, partials, ticket, loss, shape.inverse_size);
}

// The mask of WIDTH elements from `at` on, in pixel order.
template <int WIDTH, class M, class A>
__device__ __forceinline__ void load_pixel_mask(const M* __restrict__ m, std::int64_t at,
                                                const Divider& channels, A (&vm)[WIDTH]) {
  std::int64_t s = channels(at), c = at - s * channels.divisor;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    vm[i] = static_cast<A>(m[s]);
    if (++c == channels.divisor) {
      c = 0;
      // The element after the last vector belongs to no pixel: its mask is not read.
      ++s;
    }
  }
}

template <class T, class M, int WIDTH, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads)
    forward_pixels(const T* __restrict__ h, const T* __restrict__ g, const T* __restrict__ a,
                   const M* __restrict__ m, std::uint8_t* __restrict__ signs, A* partials,
                   unsigned* ticket, A* loss, Shape shape) {
  A sum = 0;
  const std::int64_t size = shape.channels * shape.spots;
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads * WIDTH;
  std::int64_t at = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * WIDTH;
  for (; at < size; at += step) {
    A vm[WIDTH];
    load_pixel_mask<WIDTH>(m, at, shape.by_channels, vm);
    sum += forward_terms<WIDTH>(h, g, a, vm, signs, at);
  }
  reduce_loss(sum, partials, ticket, loss, shape.inverse_size);
}

// dh = c(|m|s₁ + |1−m|s₂), dg = −c|m|s₁, da = −c|1−m|s₂; a gradient that is null is not wanted.
template <int WIDTH, class T, class A>
__device__ __forceinline__ void backward_terms(A scale, const std::uint8_t* __restrict__ signs,
                                               const A (&m)[WIDTH], T* __restrict__ dh,
                                               T* __restrict__ dg, T* __restrict__ da,
                                               std::int64_t at) {
  std::uint8_t codes[WIDTH];
  load_raw<WIDTH>(signs + at, codes);
  A vh[WIDTH], vg[WIDTH], va[WIDTH];
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    const A p = scale * fabs(m[i]) * static_cast<A>(static_cast<int>(codes[i] & 3) - 1);
    const A q = scale * fabs(A(1) - m[i]) * static_cast<A>(static_cast<int>(codes[i] >> 2) - 1);
    vh[i] = p + q;
    vg[i] = -p;
    va[i] = -q;
  }
  if (dh != nullptr) store<WIDTH>(dh + at, vh);
  if (dg != nullptr) store<WIDTH>(dg + at, vg);
  if (da != nullptr) store<WIDTH>(da + at, va);
}

template <class T, class M, int WIDTH, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads, 4)
    backward_planes(const A* __restrict__ dloss, const std::uint8_t* __restrict__ signs,
                    const M* __restrict__ m, T* __restrict__ dh, T* __restrict__ dg,
                    T* __restrict__ da, Shape shape) {
  const A scale = *dloss * static_cast<A>(shape.inverse_size);
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads * WIDTH;
  for (std::int64_t n = blockIdx.y; n < shape.images; n += gridDim.y) {
    std::int64_t s = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * WIDTH;
    for (; s < shape.spots; s += step) {
      A vm[WIDTH];
      load<WIDTH>(m + n * shape.spots + s, vm);
      for (std::int64_t c = 0; c < shape.channels; ++c) {
        const std::int64_t at = (n * shape.channels + c) * shape.spots + s;
        backward_terms<WIDTH>(scale, signs, vm, dh, dg, da, at);
      }
    }
  }
}

template <class T, class M, int WIDTH, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads)
    backward_pixels(const A* __restrict__ dloss, const std::uint8_t* __restrict__ signs,
                    const M* __restrict__ m, T* __restrict__ dh, T* __restrict__ dg,
                    T* __restrict__ da, Shape shape) {
  const A scale = *dloss * static_cast<A>(shape.inverse_size);
  const std::int64_t size = shape.channels * shape.spots;
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads * WIDTH;
  std::int64_t at = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * WIDTH;
  for (; at < size; at += step) {
    A vm[WIDTH];
    load_pixel_mask<WIDTH>(m, at, shape.by_channels, vm);
    backward_terms<WIDTH>(scale, signs, vm, dh, dg, da, at);
  }
}

// dm = c·Σ_c (sign(m)|h − g| − sign(1 − m)|h − a|), a thread for WIDTH spots of one image.
template <class T, class M, int WIDTH, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads)
    mask_backward_planes(const A* __restrict__ dloss, const T* __restrict__ h,
                         const T* __restrict__ g, const T* __restrict__ a, const M* __restrict__ m,
                         M* __restrict__ dm, Shape shape, std::int64_t channel_stride,
                         std::int64_t spot_stride) {
  const A scale = *dloss * static_cast<A>(shape.inverse_size);
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads * WIDTH;
  for (std::int64_t n = blockIdx.y; n < shape.images; n += gridDim.y) {
    std::int64_t s = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) * WIDTH;
    for (; s < shape.spots; s += step) {
      A vm[WIDTH], sum[WIDTH] = {};
      load<WIDTH>(m + n * shape.spots + s, vm);
      std::int64_t at = n * shape.channels * shape.spots + s * spot_stride;
      for (std::int64_t c = 0; c < shape.channels; ++c, at += channel_stride) {
        A vh[WIDTH], vg[WIDTH], va[WIDTH];
        load<WIDTH>(h + at, vh);
        load<WIDTH>(g + at, vg);
        load<WIDTH>(a + at, va);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) {
          sum[i] += sign(vm[i]) * fabs(vh[i] - vg[i]) - sign(A(1) - vm[i]) * fabs(vh[i] - va[i]);
        }
      }
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) sum[i] *= scale;
      store<WIDTH>(dm + n * shape.spots + s, sum);
    }
  }
}

}  // namespace rwm::masked_l1
