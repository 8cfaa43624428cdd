// crop_patches on CUDA: bilinear crops, and their adjoint in gather form, without atomics.
#pragma once

#include "common/cuda.cuh"

namespace rwm::crop_patches {

using namespace rwm::cuda;

constexpr int kThreads = 256;
constexpr int kTileWidth = 32, kTileHeight = kThreads / kTileWidth;  // pixels of an adjoint block
constexpr int kChunk = 4;     // channels that an adjoint thread sums at once: RGB in one go
constexpr int kPatches = 64;  // patches that an adjoint block looks at together

// Where a pixel or a channel lies: [.., C, H, W], or channels_last.
struct Strides {
  std::int64_t channel, pixel;
};

struct Geometry {
  int per_image, channels, height, width, size;  // patches of an image; side of a patch
  Strides image, patch;
};

template <class A>
struct Box {
  A cx, cy, half_width, half_height;
};

// Pixel coordinate of sample k of 1 / inverse_samples along an axis of `size` pixels. Beyond ±4 a
// point sees only zeros, whatever the size; so does one that is not a number, which fmax drops.
template <class A>
__device__ __forceinline__ A position(A centre, A half, int k, A inverse_samples, A size) {
  const A u = A(2 * k + 1) * inverse_samples - A(1);
  const A point = fmin(fmax(centre + half * u, A(-4)), A(4));
  return ((point + A(1)) * size - A(1)) * A(0.5);
}

// Two neighbouring pixels and their weights; `first` may lie outside the image.
template <class A>
struct Taps {
  int first;
  A weight[2];

  __device__ __forceinline__ explicit Taps(A at) : first(static_cast<int>(floor(at))) {
    weight[1] = at - A(first);
    weight[0] = A(1) - weight[1];
  }
  __device__ __forceinline__ A of(int pixel) const {
    return pixel == first ? weight[0] : pixel == first + 1 ? weight[1] : A(0);
  }
};

__device__ __forceinline__ bool inside(int i, int size) {
  return static_cast<unsigned>(i) < static_cast<unsigned>(size);
}

// One thread: WIDTH neighbouring samples of a row, all channels. A patch has `groups` such threads.
template <class T, int WIDTH, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads, WIDTH > 1 ? 3 : 4)
    forward_kernel(const T* __restrict__ image, const Box<A>* __restrict__ boxes,
                   T* __restrict__ patches, std::int64_t patch_count, Divider per_image,
                   Divider groups, Divider per_row, Geometry g) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t patch = groups(index);
  if (patch >= patch_count) return;
  const std::int64_t sample = (index - patch * groups.divisor) * WIDTH;
  const int i = static_cast<int>(per_row(sample));
  const int j = static_cast<int>(sample - std::int64_t{i} * g.size);
  const Box<A> box = boxes[patch];
  const A inverse = A(1) / A(g.size);
  const Taps<A> y(position(box.cy, box.half_height, i, inverse, A(g.height)));
  const std::int64_t plane = std::int64_t{g.channels} * g.height * g.width;
  const T* source = image + per_image(patch) * plane;
  T* target = patches + patch * g.channels * g.size * g.size + sample * g.patch.pixel;
  // Wide accesses only exist where neighbouring pixels are adjacent.
  const std::int64_t step = WIDTH > 1 ? 1 : g.image.pixel;
#pragma unroll 1  // unrolled, the addresses of four g.channels spill
  for (int c = 0; c < g.channels; ++c) {
    A values[WIDTH] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!inside(y.first + r, g.height)) continue;
      const T* row = source + std::int64_t{y.first + r} * g.width * step;
#pragma unroll
      for (int k = 0; k < WIDTH; ++k) {
        const Taps<A> x(position(box.cx, box.half_width, j + k, inverse, A(g.width)));
        const A left = inside(x.first, g.width) ? static_cast<A>(row[x.first * step]) : A(0);
        const A right =
            inside(x.first + 1, g.width) ? static_cast<A>(row[(x.first + 1) * step]) : A(0);
        values[k] += y.weight[r] * (x.weight[0] * left + x.weight[1] * right);
      }
    }
    store<WIDTH>(target, values);
    source += g.image.channel;
    target += g.patch.channel;
  }
}

struct Range {
  int low, high;  // empty if low > high
};

// Which samples of a box may see a pixel, along one axis. The position of sample k is start +
// k·step up to rounding; where the step is so small that rounding could hide a sample, or not
// finite, it is all.
template <class A>
struct Reach {
  A centre, half, start, inverse_step, slack;

  Reach() = default;
  __device__ __forceinline__ Reach(A centre, A half, A samples, A size)
      : centre(centre), half(half) {
    const A rounding = sizeof(A) == 8 ? A(4e-15) : A(2e-6);  // 16 units in the last place
    const A step = half * size / samples;
    start = ((centre + half * (A(1) / samples - A(1)) + A(1)) * size - A(1)) * A(0.5);
    inverse_step = A(1) / step;
    slack = rounding * (fabs(start) + size + samples * fabs(step)) * fabs(inverse_step);
    if (!(slack < A(1))) {
      start = inverse_step = 0;
      slack = samples;
    }
  }

  __device__ __forceinline__ Range operator()(int first, int last, int samples) const {
    const A k0 = (A(first - 1) - start) * inverse_step, k1 = (A(last + 1) - start) * inverse_step;
    const A low = fmax(fmin(k0, k1) - slack, A(0));
    const A high = fmin(fmax(k0, k1) + slack, A(samples - 1));
    if (!(low <= high)) return {0, -1};
    return {static_cast<int>(floor(low)), static_cast<int>(ceil(high))};
  }
};

// One thread: one pixel, kChunk channels, patches in index order and samples row by row. The block
// first finds out which patches reach its tile of pixels.
template <class T, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads, 2)
    adjoint_kernel(const T* __restrict__ dpatches, const Box<A>* __restrict__ boxes,
                   T* __restrict__ dimage, Divider tiles_across, Divider tiles, Geometry g) {
  RWM_SHARED(Reach<A>, vertical, [kPatches]);
  RWM_SHARED(Reach<A>, horizontal, [kPatches]);
  RWM_SHARED(bool, reaches, [kPatches]);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t n = tiles(blockIdx.x), tile = blockIdx.x - n * tiles.divisor;
  const std::int64_t tile_row = tiles_across(tile);
  const int top = static_cast<int>(tile_row) * kTileHeight;
  const int left = static_cast<int>(tile - tile_row * tiles_across.divisor) * kTileWidth;
  const int y = top + thread / kTileWidth, x = left + thread % kTileWidth;
  const int channel = static_cast<int>(blockIdx.y) * kChunk;
  const int count = min(kChunk, g.channels - channel);
  const std::int64_t patch_size = std::int64_t{g.channels} * g.size * g.size;
  const A inverse = A(1) / A(g.size);
  A sum[kChunk] = {};
  for (int base = 0; base < g.per_image; base += kPatches) {
    const int chunk = min(kPatches, g.per_image - base);
    __syncthreads();
    if (thread < chunk) {
      const Box<A> box = boxes[n * g.per_image + base + thread];
      const Reach<A> v(box.cy, box.half_height, A(g.size), A(g.height));
      const Reach<A> h(box.cx, box.half_width, A(g.size), A(g.width));
      const Range rows = v(top, top + kTileHeight - 1, g.size);
      const Range columns = h(left, left + kTileWidth - 1, g.size);
      vertical[thread] = v;
      horizontal[thread] = h;
      reaches[thread] = rows.low <= rows.high && columns.low <= columns.high;
    }
    __syncthreads();
    for (int p = 0; p < chunk; ++p) {
      if (!reaches[p]) continue;
      const Reach<A> v = vertical[p], h = horizontal[p];
      const Range rows = v(y, y, g.size), columns = h(x, x, g.size);
      const T* patch =
          dpatches + (n * g.per_image + base + p) * patch_size + channel * g.patch.channel;
      for (int i = rows.low; i <= rows.high; ++i) {
        const A wy = Taps<A>(position(v.centre, v.half, i, inverse, A(g.height))).of(y);
        if (wy == A(0)) continue;
        for (int j = columns.low; j <= columns.high; ++j) {
          const A weight = wy * Taps<A>(position(h.centre, h.half, j, inverse, A(g.width))).of(x);
          if (weight == A(0)) continue;
          const T* at = patch + (std::int64_t{i} * g.size + j) * g.patch.pixel;
#pragma unroll
          for (int c = 0; c < kChunk; ++c) {
            if (c < count) sum[c] += weight * static_cast<A>(at[c * g.patch.channel]);
          }
        }
      }
    }
  }
  if (y >= g.height || x >= g.width) return;
  T* target = dimage + n * g.channels * g.height * g.width + channel * g.image.channel +
              (std::int64_t{y} * g.width + x) * g.image.pixel;
#pragma unroll
  for (int c = 0; c < kChunk; ++c) {
    if (c < count) target[c * g.image.channel] = static_cast<T>(sum[c]);
  }
}

}  // namespace rwm::crop_patches
