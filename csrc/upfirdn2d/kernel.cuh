// upfirdn2d on CUDA, with the epilogue of a modulated convolution where one is wanted:
//
//   y = act(scale ⊙ fir(x) + strength·noise + bias)·gain, clamped
//
// Sizes and the filter as in records::Resampling.
#pragma once

#include "bias_act/activation.cuh"
#include "common/cuda.cuh"

namespace rwm::upfirdn2d {

using namespace rwm::cuda;

constexpr int kThreads = 256;

struct Geometry {
  std::int64_t images, channels;
  int height, width, out_height, out_width, pad_x, pad_y;
};

// Everything null: y = fir(x). The vectors are [N, K, C] and [C], the maps [N or 1, H, W] and
// [N, K, H, W]; all in the accumulation type.
template <class A>
struct Epilogue {
  const A* scale;  // with regions: Σ_k r_k(p)·scale_k
  const A* regions;
  const A* noise;
  const A* strength;  // one number; null = 1
  const A* bias;
  std::int64_t styles, noise_stride;  // K; 0 where all images share the noise
  bool active;                        // whether `act` does anything
  Activation<A> act;
};

// WIDTH channels of one output pixel.
template <int WIDTH, class A>
__device__ __forceinline__ void finish(const Epilogue<A>& e, std::int64_t pixels,
                                       std::int64_t channels, std::int64_t n, std::int64_t pixel,
                                       std::int64_t channel, A (&v)[WIDTH]) {
  if (e.scale != nullptr) {
    A scale[WIDTH] = {};
#pragma unroll 1  // one style or two: unrolled, the loop would only take registers
    for (std::int64_t k = 0; k < e.styles; ++k) {
      A one[WIDTH];
      load<WIDTH>(e.scale + (n * e.styles + k) * channels + channel, one);
      const A r = e.regions != nullptr ? e.regions[(n * e.styles + k) * pixels + pixel] : A(1);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) scale[i] += r * one[i];
    }
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) v[i] *= scale[i];
  }
  if (e.noise != nullptr) {
    const A noise = e.noise[n * e.noise_stride + pixel];
    const A add = e.strength != nullptr ? *e.strength * noise : noise;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) v[i] += add;
  }
  if (e.bias != nullptr) {
    A bias[WIDTH];
    load<WIDTH>(e.bias + channel, bias);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) v[i] += bias[i];
  }
  if (e.active) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) v[i] = e.act.forward(v[i]);
  }
}

// The epilogue alone: one thread, one vector of channels.
template <class T, int WIDTH, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads, 4)
    epilogue_kernel(const T* __restrict__ x, T* __restrict__ y, std::int64_t images,
                    std::int64_t pixels, std::int64_t channels, Divider plane, Divider vectors,
                    Epilogue<A> e) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t n = plane(index), in_plane = index - n * plane.divisor;
  if (n >= images) return;
  const std::int64_t pixel = vectors(in_plane);
  const std::int64_t channel = (in_plane - pixel * vectors.divisor) * WIDTH;
  A values[WIDTH];
  load<WIDTH>(x + index * WIDTH, values);
  finish<WIDTH>(e, pixels, channels, n, pixel, channel, values);
  store<WIDTH>(y + index * WIDTH, values);
}

// A separable filter of up to kTaps taps; UP or DOWN is 1, the other 1 or 2. One thread: WIDTH
// channels of one output column, `rows` rows of it, from the top down. An input row is summed
// across once and added to all the output rows that need it: a window of sums in registers.
// Neighbouring columns meet in the first-level cache.
//
// A step takes DOWN input rows and finishes UP output rows. At step m the window begins at output
// row m·UP − kLead of the strip. Upsampling takes turns between even and odd taps: strips begin
// where the pattern does (one row early if the padding is odd), columns look.
constexpr int kTaps = 4;

struct Strips {
  int taps, rows;
  Divider line, vectors, strips;
};

// Blocks on a multiprocessor, so registers of a thread: as many as fit without spills.
constexpr int strip_blocks(int width, bool epilogue) {
  return width == 8 ? (epilogue ? 2 : 3) : (epilogue ? 3 : 4);
}

template <class T, int UP, int DOWN, int WIDTH, bool EPILOGUE, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads, strip_blocks(WIDTH, EPILOGUE))
    strip_kernel(const T* __restrict__ x, const A* __restrict__ taps_x,
                 const A* __restrict__ taps_y, T* __restrict__ y, Geometry g, Strips s,
                 Epilogue<A> e) {
  constexpr int kAcross = kTaps / UP, kWindow = kTaps / DOWN, kLead = kWindow - 1;
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t strip = s.line(index), n = s.strips(strip);
  const std::int64_t in_line = index - strip * s.line.divisor;
  if (n >= g.images) return;
  const int early = UP == 2 ? g.pad_y & 1 : 0;
  const int first = static_cast<int>(strip - n * s.strips.divisor) * s.rows - early;
  const int column = static_cast<int>(s.vectors(in_line));
  const std::int64_t channel = (in_line - column * s.vectors.divisor) * WIDTH;

  // Across: the first tap that meets a sample, and that sample. The divisions have no remainder.
  const int at_x = column * DOWN - g.pad_x, odd = UP == 2 ? at_x & 1 : 0;
  const int left = (at_x + odd) / UP, top = (first * DOWN - g.pad_y) / UP;
  A across[kAcross], down[kTaps];
  bool meets[kAcross];  // where not, nothing is read: no 0·NaN
#pragma unroll
  for (int t = 0; t < kAcross; ++t) {
    const int j = t * UP + odd;
    meets[t] = j < s.taps && left + t >= 0 && left + t < g.width;
    across[t] = meets[t] ? taps_x[j] : A(0);
  }
#pragma unroll
  for (int j = 0; j < kTaps; ++j) down[j] = j < s.taps ? taps_y[j] : A(0);

  const std::int64_t row_size = g.width * g.channels, out_row_size = g.out_width * g.channels;
  const T* source = x + (n * g.height * g.width + left) * g.channels + channel;
  T* target = y + (n * g.out_height * g.out_width + column) * g.channels + channel;
  A window[kWindow][WIDTH] = {};
#pragma unroll 1
  for (int m = 0; m * UP - kLead < s.rows; ++m) {
#pragma unroll
    for (int r = 0; r < DOWN; ++r) {
      const int row = top + m * DOWN + r;
      if (row < 0 || row >= g.height) continue;
      A sum[WIDTH] = {};
#pragma unroll
      for (int t = 0; t < kAcross; ++t) {
        if (!meets[t]) continue;
        A values[WIDTH];
        load<WIDTH>(source + row * row_size + t * g.channels, values);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) sum[i] += across[t] * values[i];
      }
#pragma unroll
      for (int w = 0; w < kWindow; ++w) {
        const int j = r * UP + (kLead - w) * DOWN;
        if (j >= s.taps) continue;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) window[w][i] += down[j] * sum[i];
      }
    }
#pragma unroll
    for (int w = 0; w < UP; ++w) {
      const int in_strip = m * UP - kLead + w, row = first + in_strip;
      if (in_strip < 0 || in_strip >= s.rows || row < 0 || row >= g.out_height) continue;
      if (EPILOGUE) {
        finish<WIDTH>(e, std::int64_t{g.out_height} * g.out_width, g.channels, n,
                      std::int64_t{row} * g.out_width + column, channel, window[w]);
      }
      store<WIDTH>(target + row * out_row_size, window[w]);
    }
#pragma unroll
    for (int w = 0; w < kWindow; ++w) {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) window[w][i] = w + UP < kWindow ? window[w + UP][i] : A(0);
    }
  }
}

// Any filter, any factors: one thread, one element. taps is [taps_high, taps_wide].
struct General {
  int up_x, up_y, down_x, down_y, taps_wide, taps_high;
};

__device__ __forceinline__ int ceil_of(int a, int b) {  // ⌈a / b⌉, b > 0
  return a >= 0 ? (a + b - 1) / b : -(-a / b);
}

template <class T, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads)
    general_kernel(const T* __restrict__ x, const A* __restrict__ taps, T* __restrict__ y,
                   Geometry g, Divider plane, Divider line, Divider channels, General f) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  const std::int64_t n = plane(index), in_plane = index - n * plane.divisor;
  if (n >= g.images) return;
  const std::int64_t row = line(in_plane), in_line = in_plane - row * line.divisor;
  const std::int64_t column = channels(in_line), channel = in_line - column * g.channels;
  const int at_x = static_cast<int>(column) * f.down_x - g.pad_x;
  const int at_y = static_cast<int>(row) * f.down_y - g.pad_y;
  const int left = ceil_of(max(at_x, 0), f.up_x), top = ceil_of(max(at_y, 0), f.up_y);
  A sum = 0;
  for (int r = top; r < g.height; ++r) {
    const int i = r * f.up_y - at_y;
    if (i >= f.taps_high) break;
    for (int c = left; c < g.width; ++c) {
      const int j = c * f.up_x - at_x;
      if (j >= f.taps_wide) break;
      const std::int64_t at = ((n * g.height + r) * g.width + c) * g.channels + channel;
      sum += taps[i * f.taps_wide + j] * static_cast<A>(x[at]);
    }
  }
  y[index] = static_cast<T>(sum);
}

}  // namespace rwm::upfirdn2d
