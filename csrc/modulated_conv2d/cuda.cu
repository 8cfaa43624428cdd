// Launches of the passes around a modulated convolution.
#include "common/cuda_registry.h"
#include "modulated_conv2d/kernel.cuh"
#include "modulated_conv2d/records.h"

namespace rwm::modulated_conv2d {
namespace {

using records::Blend;
using records::Epilogue;
using records::Images;

const char* const kOp = "modulated_conv2d";

// float64 is for checks, not for speed: one element at a time.
template <class T>
constexpr int kWide = sizeof(T) == 8 ? 1 : kWidth<T>;

// f(T, width).
template <class F>
void with_width(const Images& images, bool are_aligned, const F& f) {
  cuda::dispatch(images.dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if (are_aligned && images.channels % kWide<T> == 0) {
      f(tag, std::integral_constant<int, kWide<T>>{});
    } else {
      f(tag, std::integral_constant<int, 1>{});
    }
  });
}

Work work(const Images& images, std::int64_t chunks, int width) {
  int lanes = 1;
  while (lanes < kWarp && lanes * width < images.channels) lanes *= 2;
  return {images.batch, images.pixels,  images.channels, ceil_div(images.pixels, chunks),
          lanes,        Divider(chunks)};
}

dim3 grid_for(const Work& w, int width) {
  return dim3(static_cast<unsigned>(w.images * w.chunks.divisor),
              static_cast<unsigned>(ceil_div(w.channels, w.lanes * width)));
}

// See Backward. An activation only with y; `recover`: u is read back from it.
void backward(const Images& images, Pointer g, Pointer y, Pointer u, bool recover,
              const Epilogue& e, const records::Sums& sums, int device, Pointer stream) {
  check(!sums.wide || aligned(g, y, u, e.blend.scale, e.bias, sums.out, sums.channels), kOp,
        ": misaligned tensors");
  const Launcher launch(kOp, device, stream);
  with_width(images, sums.wide, [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    constexpr int kW = decltype(width)::value;
    const Work w = work(images, sums.chunks, kW);
    const Backward<T, A> b{as<T>(g),
                           as<T>(y),
                           as<T>(u),
                           as<A>(e.blend.scale),
                           as<A>(e.blend.regions),
                           as<A>(e.noise),
                           as<A>(e.strength),
                           as<A>(e.bias),
                           as<T>(sums.out),
                           as<A>(sums.channels),
                           as<A>(sums.pixels),
                           as<A>(sums.regions),
                           as<A>(sums.strength),
                           e.blend.styles,
                           sums.first_style,
                           e.noise_per_image ? images.pixels : 0,
                           recover,
                           activation<T>(e.activation)};
    launch(sums.summed == 1 ? backward_kernel<T, kW, 1> : backward_kernel<T, kW, 2>,
           grid_for(w, kW), kThreads, 0, w, b);
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

// Weight [outputs, channels] and the styles of an image, in the accumulator's type, must fit in
// shared memory together (`serves` in cuda/to_rgb.py). Of `after`, bias and activation.
void to_rgb(const Images& images, Pointer x, Pointer weight, Pointer y, int outputs,
            std::int64_t chunks, const Blend& before, const Epilogue& after, int device,
            Pointer stream) {
  check(outputs >= 1 && outputs <= kOutputs, kOp, ": to_rgb has up to ", kOutputs, " outputs");
  records::check_least(kOp, "chunks", chunks, 1);
  present(kOp, 1, {before.scale});
  const Launcher launch(kOp, device, stream);
  with_width(images, aligned(x), [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    constexpr int kW = decltype(width)::value;
    const Work w = work(images, chunks, kW);
    const int styles = static_cast<int>(before.styles);
    const std::size_t shared =
        sizeof(A) * static_cast<std::size_t>((outputs + styles) * images.channels);
    launch(to_rgb_kernel<T, kW>, dim3(static_cast<unsigned>(images.batch * chunks)), kThreads,
           shared, as<T>(x), as<A>(weight), as<A>(before.scale), as<A>(before.regions),
           as<A>(after.bias), as<T>(y), w, outputs, styles, activation<T>(after.activation));
  });
}

// See ToRgbBackward; one or two styles. y may be 0 where the activation is linear and has no clamp.
void to_rgb_backward(const Images& images, Pointer dy, Pointer y, Pointer x, Pointer weight,
                     const Blend& before, const records::Activation& act,
                     const records::RgbSums& sums, int device, Pointer stream) {
  check(sums.outputs <= kOutputs, kOp, ": to_rgb has up to ", kOutputs, " outputs");
  present(kOp, 1, {before.scale});
  check(before.styles <= 2, kOp, ": to_rgb_backward serves one or two styles");
  const Launcher launch(kOp, device, stream);
  with_width(images, aligned(x, weight, before.scale, sums.dx, sums.products),
             [&](auto tag, auto width) {
               using T = typename decltype(tag)::type;
               using A = accumulate_t<T>;
               constexpr int kW = decltype(width)::value;
               const Work w = work(images, sums.chunks, kW);
               const ToRgbBackward<T, A> b{as<T>(dy),
                                           as<T>(y),
                                           as<T>(x),
                                           as<A>(weight),
                                           as<A>(before.scale),
                                           as<A>(before.regions),
                                           as<T>(sums.dx),
                                           as<A>(sums.products),
                                           as<A>(sums.bias),
                                           sums.outputs,
                                           activation<T>(act)};
               launch(before.styles == 1 ? to_rgb_backward_kernel<T, kW, 1>
                                         : to_rgb_backward_kernel<T, kW, 2>,
                      grid_for(w, kW), kThreads, 0, w, b);
             });
}

}  // namespace

RWM_CUDA_FUNCTION(modulated_conv2d_backward, backward);
RWM_CUDA_FUNCTION(modulated_conv2d_sum, sum);
RWM_CUDA_FUNCTION(modulated_conv2d_to_rgb, to_rgb);
RWM_CUDA_FUNCTION(modulated_conv2d_to_rgb_backward, to_rgb_backward);

}  // namespace rwm::modulated_conv2d
