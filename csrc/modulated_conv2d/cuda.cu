// Launches of the passes around a modulated convolution.
#include "common/cuda_registry.h"
#include "modulated_conv2d/kernel.cuh"

namespace rwm::modulated_conv2d {
namespace {

const char* const kOp = "modulated_conv2d";

// float64 is for checks, not for speed: one element at a time.
template <class T>
constexpr int kWide = sizeof(T) == 8 ? 1 : kWidth<T>;

// f(T, width).
template <class F>
void with_width(int dtype, std::int64_t channels, bool are_aligned, const F& f) {
  cuda::dispatch(dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (are_aligned && channels % kWide<T> == 0) {
      f(tag, std::integral_constant<int, kWide<T>>{});
    } else {
      f(tag, std::integral_constant<int, 1>{});
    }
  });
}

Work work(std::int64_t images, std::int64_t pixels, std::int64_t channels, std::int64_t chunks,
          int width) {
  int lanes = 1;
  while (lanes < kWarp && lanes * width < channels) lanes *= 2;
  return {images, pixels, channels, ceil_div(pixels, chunks), lanes, Divider(chunks)};
}

dim3 grid_for(const Work& w, int width) {
  return dim3(static_cast<unsigned>(w.images * w.chunks.divisor),
              static_cast<unsigned>(ceil_div(w.channels, w.lanes * width)));
}

// See Backward. `summed` styles (1 or 2) from first_style on go into channel_sums; an activation only
// with y. `wide`: 16-byte accesses; the caller decides, since the number of runs depends on it.
void backward(Pointer g, Pointer y, Pointer u, Pointer scale, Pointer regions, Pointer noise,
              Pointer strength, Pointer bias, Pointer out, Pointer channel_sums,
              Pointer pixel_sums, Pointer region_sums, Pointer strength_sums, std::int64_t images,
              std::int64_t pixels, std::int64_t channels, std::int64_t chunks, std::int64_t styles,
              std::int64_t first_style, int summed, std::int64_t noise_stride, bool recover,
              bool wide, double slope, double gain, double clamp, int dtype, int device,
              Pointer stream) {
  check(summed == 1 || summed == 2, kOp, ": cannot sum ", summed, " styles at once");
  check(!wide || aligned(g, y, u, scale, bias, out, channel_sums), kOp, ": misaligned tensors");
  const Launcher launch(kOp, device, stream);
  with_width(dtype, channels, wide, [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    constexpr int kW = decltype(width)::value;
    const Work w = work(images, pixels, channels, chunks, kW);
    const Backward<T, A> b{as<T>(g), as<T>(y), as<T>(u), as<A>(scale), as<A>(regions), as<A>(noise),
                           as<A>(strength), as<A>(bias), as<T>(out), as<A>(channel_sums),
                           as<A>(pixel_sums), as<A>(region_sums), as<A>(strength_sums), styles,
                           first_style, noise_stride, recover, activation<T>(slope, gain, clamp)};
    launch(summed == 1 ? backward_kernel<T, kW, 1> : backward_kernel<T, kW, 2>, grid_for(w, kW),
           kThreads, 0, w, b);
  });
}

// out[g, c] = Σ_r partials[g, r, c], in float32 or float64.
void sum(Pointer partials, Pointer out, std::int64_t groups, std::int64_t rows,
         std::int64_t columns, int dtype, int device, Pointer stream) {
  const Launcher launch(kOp, device, stream);
  if (static_cast<DType>(dtype) == DType::f64) {
    launch_sum_partials(launch, as<double>(partials), as<double>(out), groups, rows, columns);
  } else {
    launch_sum_partials(launch, as<float>(partials), as<float>(out), groups, rows, columns);
  }
}

// Weight [outputs, channels] and styles [images, count, channels] in the accumulation type; both must fit
// in shared memory (to_rgb_fits in Python).
void to_rgb(Pointer x, Pointer weight, Pointer styles, Pointer regions, Pointer bias, Pointer y,
            std::int64_t images, std::int64_t pixels, std::int64_t channels, std::int64_t chunks,
            int outputs, int count, double slope, double gain, double clamp, int dtype, int device,
            Pointer stream) {
  check(outputs >= 1 && outputs <= kOutputs, kOp, ": to_rgb has up to ", kOutputs, " outputs");
  const Launcher launch(kOp, device, stream);
  with_width(dtype, channels, aligned(x), [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    constexpr int kW = decltype(width)::value;
    const Work w = work(images, pixels, channels, chunks, kW);
    const std::size_t shared = sizeof(A) * static_cast<std::size_t>((outputs + count) * channels);
    launch(to_rgb_kernel<T, kW>, dim3(static_cast<unsigned>(images * chunks)), kThreads, shared,
           as<T>(x), as<A>(weight), as<A>(styles), as<A>(regions), as<A>(bias), as<T>(y), w,
           outputs, count, activation<T>(slope, gain, clamp));
  });
}

// See ToRgbBackward; one or two styles.
void to_rgb_backward(Pointer dy, Pointer y, Pointer x, Pointer weight, Pointer styles,
                     Pointer regions, Pointer dx, Pointer products, Pointer bias_sums,
                     std::int64_t images, std::int64_t pixels, std::int64_t channels,
                     std::int64_t chunks, int outputs, int count, double slope, double gain,
                     double clamp, int dtype, int device, Pointer stream) {
  check(outputs >= 1 && outputs <= kOutputs, kOp, ": to_rgb has up to ", kOutputs, " outputs");
  check(count == 1 || count == 2, kOp, ": to_rgb_backward serves one or two styles");
  const Launcher launch(kOp, device, stream);
  const bool wide = aligned(x, weight, styles, dx, products);
  with_width(dtype, channels, wide, [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    constexpr int kW = decltype(width)::value;
    const Work w = work(images, pixels, channels, chunks, kW);
    const ToRgbBackward<T, A> b{as<T>(dy), as<T>(y), as<T>(x), as<A>(weight), as<A>(styles),
                                as<A>(regions), as<T>(dx), as<A>(products), as<A>(bias_sums),
                                outputs, activation<T>(slope, gain, clamp)};
    launch(count == 1 ? to_rgb_backward_kernel<T, kW, 1> : to_rgb_backward_kernel<T, kW, 2>,
           grid_for(w, kW), kThreads, 0, w, b);
  });
}

}  // namespace

RWM_CUDA_FUNCTION(modulated_conv2d_backward, backward);
RWM_CUDA_FUNCTION(modulated_conv2d_sum, sum);
RWM_CUDA_FUNCTION(modulated_conv2d_to_rgb, to_rgb);
RWM_CUDA_FUNCTION(modulated_conv2d_to_rgb_backward, to_rgb_backward);

}  // namespace rwm::modulated_conv2d
