// The backward passes around a modulated convolution, and the whole of a 1×1 one with few outputs
// (to RGB). Images are [N, P, C], channels innermost. The forward passes are upfirdn2d's epilogue.
#pragma once

#include "bias_act/activation.cuh"
#include "common/partials.cuh"

namespace rwm::modulated_conv2d {

using namespace rwm::cuda;

constexpr int kThreads = 256;

// How a block divides its work: `lanes` threads (a power of two up to 32) for a pixel, each with
// one vector of channels; blockIdx.y counts runs of `lanes` vectors, blockIdx.x chunks of pixels.
struct Work {
  std::int64_t images, pixels, channels, chunk;
  int lanes;
  Divider chunks;
};

// out = scale ⊙ dv with dv = act'(y)·g, and the sums of dv and of q = dv·u. Between the result and
// the convolution: g = dy, u the convolution's result, scale the demodulation. Between the
// convolution and x: g = dz, u = x, scale the styles, no activation. Pointers to what is not wanted
// are null.
template <class T, class A>
struct Backward {
  const T* g;
  const T* y;         // null: dv = g
  const T* u;         // null: q is read back from y if `recover`, else not wanted
  const A* scale;     // [N, K, C]; null = 1
  const A* regions;   // [N, K, P]; null: K = 1
  const A* noise;     // [N or 1, P]
  const A* strength;  // null = 1
  const A* bias;      // [C]
  T* out;
  A* channel_sums;   // [N, chunks, STYLES + 1, C]: Σ_p r_k·q for STYLES styles, Σ_p dv
  A* pixel_sums;     // [runs, N, P]: Σ_c dv
  A* region_sums;    // [runs, N, K, P]: Σ_c scale_k·q
  A* strength_sums;  // [runs, N, chunks]: Σ_pc noise·dv
  std::int64_t styles, first_style, noise_stride;
  bool recover;
  Activation<A> act;
};

// Σ over the threads of one pixel, in each of them.
template <class A>
__device__ __forceinline__ A lanes_sum(A value, int lanes) {
  for (int with = lanes / 2; with > 0; with /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFu, value, with);
  }
  return value;
}

// Σ_k r_k(p)·scale_k for WIDTH channels.
template <int WIDTH, class T, class A>
__device__ __forceinline__ void blended_scale(const Backward<T, A>& b, const Work& w,
                                              std::int64_t n, std::int64_t pixel,
                                              std::int64_t channel, A (&scale)[WIDTH]) {
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) scale[i] = b.scale == nullptr ? A(1) : A(0);
  if (b.scale == nullptr) return;
#pragma unroll 1
  for (std::int64_t k = 0; k < b.styles; ++k) {
    const std::int64_t row = n * b.styles + k;
    const A r = b.regions != nullptr ? b.regions[row * w.pixels + pixel] : A(1);
    A one[WIDTH];
    load<WIDTH>(b.scale + row * w.channels + channel, one);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) scale[i] += r * one[i];
  }
}

// q = (dy·y − dv·(strength·noise + bias)) / scale: linear and leaky ReLU have act'(v)·v = act(v),
// so dv·v = dy·y wherever y is not clamped. 0 where no region claims the pixel (scale = 0).
template <int WIDTH, class T, class A>
__device__ __forceinline__ void recover(const Backward<T, A>& b, std::int64_t n, std::int64_t pixel,
                                        std::int64_t channel, const A (&dy)[WIDTH],
                                        const A (&y)[WIDTH], const A (&dv)[WIDTH],
                                        const A (&scale)[WIDTH], A (&q)[WIDTH]) {
  A shift = 0, bias[WIDTH] = {};
  if (b.noise != nullptr) {
    shift = b.noise[n * b.noise_stride + pixel] * (b.strength != nullptr ? *b.strength : A(1));
  }
  if (b.bias != nullptr) load<WIDTH>(b.bias + channel, bias);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) {
    const A whole = fabs(y[i]) >= b.act.clamp ? A(0) : dy[i] * y[i];
    const A part = whole - dv[i] * (shift + bias[i]);
    q[i] = scale[i] == A(0) ? part : part / scale[i];
  }
}

// Adds one sum of every thread over the pixels of the block, in order, and stores it.
template <int WIDTH, class A>
__device__ __forceinline__ void store_block_sum(A (&sums)[kThreads][WIDTH], const A (&sum)[WIDTH],
                                                int lanes, bool present, A* __restrict__ target) {
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();  // the last reader of `sums` is done
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) sums[thread][i] = sum[i];
  __syncthreads();
  if (thread >= lanes || !present) return;
  A total[WIDTH] = {};
  for (int other = thread; other < kThreads; other += lanes) {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) total[i] += sums[other][i];
  }
  store<WIDTH>(target, total);
}

template <class T, int WIDTH, int STYLES, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(Work w, Backward<T, A> b) {
  RWM_SHARED(A, sums, [kThreads][WIDTH]);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % w.lanes;
  const std::int64_t run = blockIdx.y, n = w.chunks(blockIdx.x);
  const std::int64_t part = blockIdx.x - n * w.chunks.divisor;
  const std::int64_t channel = (run * w.lanes + lane) * WIDTH;
  const bool present = channel < w.channels;
  const std::int64_t end = min((part + 1) * w.chunk, w.pixels);
  A style_sum[STYLES][WIDTH] = {}, bias_sum[WIDTH] = {}, strength_sum = 0;
  // All threads of a warp take the same number of turns: they meet in the sums over channels.
  for (std::int64_t base = part * w.chunk; base < end; base += kThreads / w.lanes) {
    const std::int64_t pixel = base + thread / w.lanes;
    const bool active = present && pixel < end;
    A q[WIDTH] = {}, pixel_sum = 0;
    if (active) {
      const std::int64_t at = (n * w.pixels + pixel) * w.channels + channel;
      A g[WIDTH], dv[WIDTH], scale[WIDTH], other[WIDTH];
      load<WIDTH>(b.g + at, g);
      if (b.y != nullptr) load<WIDTH>(b.y + at, other);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        dv[i] = b.y != nullptr ? b.act.backward(g[i], other[i]) : g[i];
      }
      blended_scale<WIDTH>(b, w, n, pixel, channel, scale);
      if (b.recover) {
        recover<WIDTH>(b, n, pixel, channel, g, other, dv, scale, q);
      } else if (b.u != nullptr) {
        load<WIDTH>(b.u + at, other);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) q[i] = dv[i] * other[i];
      }
#pragma unroll
      for (int k = 0; k < STYLES; ++k) {
        const std::int64_t style = b.first_style + k;
        if (style >= b.styles) continue;
        const A r =
            b.regions != nullptr ? b.regions[(n * b.styles + style) * w.pixels + pixel] : A(1);
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) style_sum[k][i] += r * q[i];
      }
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) {
        bias_sum[i] += dv[i];
        pixel_sum += dv[i];
        scale[i] *= dv[i];
      }
      if (b.out != nullptr) store<WIDTH>(b.out + at, scale);
    }
    if (b.pixel_sums != nullptr || b.strength_sums != nullptr) {
      pixel_sum = lanes_sum(pixel_sum, w.lanes);
      if (lane == 0 && pixel < end) {
        if (b.pixel_sums != nullptr) {
          b.pixel_sums[(run * w.images + n) * w.pixels + pixel] = pixel_sum;
        }
        if (b.strength_sums != nullptr) {
          strength_sum += b.noise[n * b.noise_stride + pixel] * pixel_sum;
        }
      }
    }
    if (b.region_sums != nullptr) {
#pragma unroll 1
      for (std::int64_t k = 0; k < b.styles; ++k) {
        const std::int64_t row = n * b.styles + k;
        A total = 0;
        if (active) {
          A one[WIDTH];
          load<WIDTH>(b.scale + row * w.channels + channel, one);
#pragma unroll
          for (int i = 0; i < WIDTH; ++i) total += one[i] * q[i];
        }
        total = lanes_sum(total, w.lanes);
        if (lane == 0 && pixel < end) {
          b.region_sums[(run * w.images * b.styles + row) * w.pixels + pixel] = total;
        }
      }
    }
  }
  if (b.channel_sums != nullptr) {
    A* target = b.channel_sums + blockIdx.x * (STYLES + 1) * w.channels + channel;
#pragma unroll
    for (int k = 0; k < STYLES; ++k) {
      store_block_sum<WIDTH>(sums, style_sum[k], w.lanes, present, target + k * w.channels);
    }
    store_block_sum<WIDTH>(sums, bias_sum, w.lanes, present, target + STYLES * w.channels);
  }
  if (b.strength_sums != nullptr) {
    strength_sum = block_sum<kThreads>(strength_sum);
    if (thread == 0) b.strength_sums[run * gridDim.x + blockIdx.x] = strength_sum;
  }
}

// ---- to RGB: y_o(p) = act(Σ_i W[o, i]·a_i(p)·x_i(p) + bias_o)·gain, a_i(p) = Σ_k r_k(p)·s_k[i]

constexpr int kOutputs = 4;  // at most
constexpr int kPixels = 4;   // pixels of a thread at once: a weight is read once for all of them

// The weight [O, C] and the styles of one image [K, C] come to shared memory first.
template <class T, int WIDTH, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads, 2)
    to_rgb_kernel(const T* __restrict__ x, const A* __restrict__ weight,
                  const A* __restrict__ styles, const A* __restrict__ regions,
                  const A* __restrict__ bias, T* __restrict__ y, Work w, int outputs, int count,
                  Activation<A> act) {
  RWM_DYNAMIC_SHARED(A, shared);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % w.lanes;
  const int channels = static_cast<int>(w.channels);
  const std::int64_t n = w.chunks(blockIdx.x), part = blockIdx.x - n * w.chunks.divisor;
  A* const shared_styles = shared + outputs * channels;
  for (int i = thread; i < outputs * channels; i += kThreads) shared[i] = weight[i];
  for (int i = thread; i < count * channels; i += kThreads) {
    shared_styles[i] = styles[n * count * channels + i];
  }
  __syncthreads();
  const std::int64_t end = min((part + 1) * w.chunk, w.pixels);
  const int step = kThreads / w.lanes * kPixels;
  for (std::int64_t base = part * w.chunk; base < end; base += step) {
    const std::int64_t first = base + thread / w.lanes * kPixels;
    A sum[kPixels][kOutputs] = {};
    for (int channel = lane * WIDTH; channel < channels; channel += w.lanes * WIDTH) {
#pragma unroll
      for (int p = 0; p < kPixels; ++p) {
        if (first + p >= end) continue;
        A values[WIDTH], a[WIDTH] = {};
        load<WIDTH>(x + (n * w.pixels + first + p) * channels + channel, values);
#pragma unroll 1
        for (int k = 0; k < count; ++k) {
          const A r = regions != nullptr ? regions[(n * count + k) * w.pixels + first + p] : A(1);
          A one[WIDTH];
          load<WIDTH>(shared_styles + k * channels + channel, one);
#pragma unroll
          for (int i = 0; i < WIDTH; ++i) a[i] += r * one[i];
        }
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) a[i] *= values[i];
#pragma unroll
        for (int o = 0; o < kOutputs; ++o) {
          if (o >= outputs) continue;
          A row[WIDTH];
          load<WIDTH>(shared + o * channels + channel, row);
#pragma unroll
          for (int i = 0; i < WIDTH; ++i) sum[p][o] += row[i] * a[i];
        }
      }
    }
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        const A total = lanes_sum(sum[p][o], w.lanes);
        // The threads of a pixel share the stores.
        if (o >= outputs || first + p >= end || (p * kOutputs + o) % w.lanes != lane) continue;
        const A v = total + (bias != nullptr ? bias[o] : A(0));
        y[(n * w.pixels + first + p) * outputs + o] = static_cast<T>(act.forward(v));
      }
    }
  }
}

// dx, and the sums Σ_p r_k·dv_o·x_i that give the gradients of weight and styles, and Σ_p dv_o.
template <class T, class A>
struct ToRgbBackward {
  const T* dy;
  const T* y;  // null: dv = dy·gain
  const T* x;
  const A* weight;   // [O, C]
  const A* styles;   // [N, K, C]
  const A* regions;  // [N, K, P]
  T* dx;             // may be null
  A* products;       // [N, chunks, STYLES, outputs, C]; may be null
  A* bias_sums;      // [N, chunks, outputs]; may be null
  int outputs;
  Activation<A> act;
};

template <class T, int WIDTH, int STYLES, class A = accumulate_t<T>>
__global__ void __launch_bounds__(kThreads, WIDTH* STYLES > 8 ? 1 : 2)
    to_rgb_backward_kernel(Work w, ToRgbBackward<T, A> b) {
  RWM_SHARED(A, sums, [kThreads][WIDTH]);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % w.lanes;
  const std::int64_t n = w.chunks(blockIdx.x), part = blockIdx.x - n * w.chunks.divisor;
  const std::int64_t channel = (std::int64_t{blockIdx.y} * w.lanes + lane) * WIDTH;
  const bool present = channel < w.channels;
  const std::int64_t end = min((part + 1) * w.chunk, w.pixels);
  A product[STYLES][kOutputs][WIDTH] = {}, bias_sum[kOutputs] = {};
  for (std::int64_t base = part * w.chunk; base < end; base += kThreads / w.lanes) {
    const std::int64_t pixel = base + thread / w.lanes;
    if (!present || pixel >= end) continue;
    A r[STYLES], dv[kOutputs], values[WIDTH], da[WIDTH] = {}, a[WIDTH] = {};
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) {
      if (o >= b.outputs) continue;
      const std::int64_t at = (n * w.pixels + pixel) * b.outputs + o;
      const A dy = static_cast<A>(b.dy[at]);
      dv[o] = b.y != nullptr ? b.act.backward(dy, static_cast<A>(b.y[at])) : dy * b.act.gain;
      bias_sum[o] += dv[o];
      A row[WIDTH];
      load<WIDTH>(b.weight + o * w.channels + channel, row);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) da[i] += dv[o] * row[i];
    }
#pragma unroll
    for (int k = 0; k < STYLES; ++k) {
      const std::int64_t row = n * STYLES + k;
      r[k] = b.regions != nullptr ? b.regions[row * w.pixels + pixel] : A(1);
      A one[WIDTH];
      load<WIDTH>(b.styles + row * w.channels + channel, one);
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) a[i] += r[k] * one[i];
    }
    const std::int64_t at = (n * w.pixels + pixel) * w.channels + channel;
    if (b.dx != nullptr) {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) a[i] *= da[i];
      store<WIDTH>(b.dx + at, a);
    }
    if (b.products == nullptr) continue;
    load<WIDTH>(b.x + at, values);
#pragma unroll
    for (int k = 0; k < STYLES; ++k) {
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        if (o >= b.outputs) continue;
#pragma unroll
        for (int i = 0; i < WIDTH; ++i) product[k][o][i] += r[k] * dv[o] * values[i];
      }
    }
  }
  if (b.products != nullptr) {
    A* target = b.products + blockIdx.x * STYLES * b.outputs * w.channels + channel;
#pragma unroll
    for (int k = 0; k < STYLES; ++k) {
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        if (o >= b.outputs) continue;
        A* row = target + (k * b.outputs + o) * w.channels;
        store_block_sum<WIDTH>(sums, product[k][o], w.lanes, present, row);
      }
    }
  }
  if (b.bias_sums == nullptr || blockIdx.y != 0) return;
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
    if (o >= b.outputs) continue;
    // Every thread of a pixel has the sum: the first one's counts.
    const A total = block_sum<kThreads>(lane == 0 ? bias_sum[o] : A(0));
    if (thread == 0) b.bias_sums[blockIdx.x * b.outputs + o] = total;
  }
}

}  // namespace rwm::modulated_conv2d
