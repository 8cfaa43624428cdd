// Launches of upfirdn2d, and of the epilogue of a modulated convolution, alone or after a filter.
#include "common/cuda_registry.h"
#include "upfirdn2d/kernel.cuh"

namespace rwm::upfirdn2d {
namespace {

const char* const kOp = "upfirdn2d";

template <class T>
using Strip = void (*)(const T*, const accumulate_t<T>*, const accumulate_t<T>*, T*, Geometry, int,
                       int, Divider, Divider, Divider, Epilogue<accumulate_t<T>>);

template <class T, int WIDTH, bool EPILOGUE>
Strip<T> strip(int up, int down) {
  if (up == 2) return strip_kernel<T, 2, 1, WIDTH, EPILOGUE>;
  if (down == 2) return strip_kernel<T, 1, 2, WIDTH, EPILOGUE>;
  return strip_kernel<T, 1, 1, WIDTH, EPILOGUE>;
}

template <class T>
Strip<T> strip(int up, int down, bool wide, bool epilogue) {
  if (epilogue) return wide ? strip<T, kWidth<T>, true>(up, down) : strip<T, 1, true>(up, down);
  return wide ? strip<T, kWidth<T>, false>(up, down) : strip<T, 1, false>(up, down);
}

// A separable filter: taps_x and taps_y, `taps` <= kTaps each, as correlations. factor: 2 up, -2
// down, or
// 1. `rows` output rows, an even number, go to one thread. With `active` false and no pointers
// behind it there is no epilogue.
void separable(Pointer x, Pointer taps_x, Pointer taps_y, Pointer y, std::int64_t images,
               std::int64_t channels, int height, int width, int out_height, int out_width,
               int pad_x, int pad_y, int taps, int factor, int rows, Pointer scale, Pointer regions,
               Pointer noise, Pointer strength, Pointer bias, std::int64_t styles,
               std::int64_t noise_stride, bool active, double slope, double gain, double clamp,
               int dtype, int device, Pointer stream) {
  const bool known = factor == 1 || factor == 2 || factor == -2;
  const bool fits = taps >= 1 && taps <= kTaps && known && rows > 0 && rows % 2 == 0;
  check(fits, kOp, ": no strip kernel for ", taps, " taps, factor ", factor, ", rows ", rows);
  const int up = factor == 2 ? 2 : 1, down = factor == -2 ? 2 : 1;
  const bool epilogue = active || scale != 0 || noise != 0 || bias != 0;
  const Geometry g{images, channels, height, width, out_height, out_width, pad_x, pad_y};
  const Launcher launch(kOp, device, stream);
  cuda::dispatch(dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    if constexpr (sizeof(T) == 8) {
      check(false, kOp, ": the strip kernels do not serve float64");
    } else {
      const bool wide = channels % kWidth<T> == 0 && aligned(x, y, scale, bias);
      const std::int64_t vectors = channels / (wide ? kWidth<T> : 1), line = vectors * out_width;
      const int early = up == 2 ? pad_y & 1 : 0;
      const std::int64_t strips = ceil_div(out_height + early, rows);
      const Epilogue<A> e{as<A>(scale),    as<A>(regions), as<A>(noise),
                          as<A>(strength), as<A>(bias),    styles,
                          noise_stride,    active,         activation<T>(slope, gain, clamp)};
      launch(strip<T>(up, down, wide, epilogue),
             dim3(static_cast<unsigned>(ceil_div(images * strips * line, kThreads))), kThreads, 0,
             as<T>(x), as<A>(taps_x), as<A>(taps_y), as<T>(y), g, taps, rows, Divider(line),
             Divider(vectors), Divider(strips), e);
    }
  });
}

// Any filter: taps [taps_high, taps_wide], as a correlation.
void general(Pointer x, Pointer taps, Pointer y, std::int64_t images, std::int64_t channels,
             int height, int width, int out_height, int out_width, int pad_x, int pad_y,
             int taps_wide, int taps_high, int up_x, int up_y, int down_x, int down_y, int dtype,
             int device, Pointer stream) {
  const Launcher launch(kOp, device, stream);
  const Geometry g{images, channels, height, width, out_height, out_width, pad_x, pad_y};
  const General f{up_x, up_y, down_x, down_y, taps_wide, taps_high};
  const std::int64_t line = channels * out_width, plane = line * out_height;
  cuda::dispatch(dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(general_kernel<T>, dim3(static_cast<unsigned>(ceil_div(images * plane, kThreads))),
           kThreads, 0, as<T>(x), as<accumulate_t<T>>(taps), as<T>(y), g, Divider(plane),
           Divider(line), Divider(channels), f);
  });
}

// y = act(scale ⊙ x + strength·noise + bias)·gain, clamped.
void epilogue(Pointer x, Pointer y, std::int64_t images, std::int64_t channels, int height,
              int width, Pointer scale, Pointer regions, Pointer noise, Pointer strength,
              Pointer bias, std::int64_t styles, std::int64_t noise_stride, bool active,
              double slope, double gain, double clamp, int dtype, int device, Pointer stream) {
  const Launcher launch(kOp, device, stream);
  const Geometry g{images, channels, height, width, height, width, 0, 0};
  cuda::dispatch(dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    constexpr int kWide = sizeof(T) == 8 ? 1 : kWidth<T>;
    const bool wide = channels % kWide == 0 && aligned(x, y, scale, bias);
    const std::int64_t vectors = channels / (wide ? kWide : 1), plane = vectors * height * width;
    const Epilogue<A> e{as<A>(scale),    as<A>(regions), as<A>(noise),
                        as<A>(strength), as<A>(bias),    styles,
                        noise_stride,    active,         activation<T>(slope, gain, clamp)};
    launch(wide ? epilogue_kernel<T, kWide> : epilogue_kernel<T, 1>,
           dim3(static_cast<unsigned>(ceil_div(images * plane, kThreads))), kThreads, 0, as<T>(x),
           as<T>(y), g, Divider(plane), Divider(vectors), e);
  });
}

}  // namespace

RWM_CUDA_FUNCTION(upfirdn2d_separable, separable);
RWM_CUDA_FUNCTION(upfirdn2d_general, general);
RWM_CUDA_FUNCTION(upfirdn2d_epilogue, epilogue);

}  // namespace rwm::upfirdn2d
