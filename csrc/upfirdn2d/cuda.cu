// Launches of upfirdn2d, and of the epilogue of a modulated convolution, alone or after a filter.
#include <cmath>
#include <cstdlib>

#include "common/cuda_registry.h"
#include "modulated_conv2d/records.h"
#include "upfirdn2d/kernel.cuh"
#include "upfirdn2d/records.h"

namespace rwm::upfirdn2d {
namespace {

using records::Resampling;

const char* const kOp = "upfirdn2d";

template <class T>
using Strip = void (*)(const T*, const accumulate_t<T>*, const accumulate_t<T>*, T*, Geometry,
                       Strips, Epilogue<accumulate_t<T>>);

template <class T, int WIDTH, bool EPILOGUE>
Strip<T> strip(bool up, bool down) {
  if (up) return strip_kernel<T, 2, 1, WIDTH, EPILOGUE>;
  if (down) return strip_kernel<T, 1, 2, WIDTH, EPILOGUE>;
  return strip_kernel<T, 1, 1, WIDTH, EPILOGUE>;
}

template <class T>
Strip<T> strip(bool up, bool down, bool wide, bool epilogue) {
  if (epilogue) return wide ? strip<T, kWidth<T>, true>(up, down) : strip<T, 1, true>(up, down);
  return wide ? strip<T, kWidth<T>, false>(up, down) : strip<T, 1, false>(up, down);
}

int in_32_bits(std::int64_t value) {
  check(std::abs(value) < (std::int64_t{1} << 31), kOp, ": an image counts in 32 bits, got ",
        value);
  return static_cast<int>(value);
}

Geometry geometry(const Resampling& r) {
  for (const auto& [side, factor] : {std::pair(r.in_size, r.up), std::pair(r.out_size, r.down)}) {
    in_32_bits(side.first * factor.first + std::abs(r.pad.first));
    in_32_bits(side.second * factor.second + std::abs(r.pad.second));
  }
  return {r.images,
          r.channels,
          in_32_bits(r.in_size.first),
          in_32_bits(r.in_size.second),
          in_32_bits(r.out_size.first),
          in_32_bits(r.out_size.second),
          in_32_bits(r.pad.second),
          in_32_bits(r.pad.first)};
}

template <class T, class A = accumulate_t<T>>
Epilogue<A> epilogue_of(const records::Epilogue& e, std::int64_t pixels) {
  const auto& act = e.activation;
  const bool active = act.slope != 1 || act.gain != 1 || std::isfinite(act.clamp);
  return {as<A>(e.blend.scale),
          as<A>(e.blend.regions),
          as<A>(e.noise),
          as<A>(e.strength),
          as<A>(e.bias),
          e.blend.styles,
          e.noise_per_image ? pixels : 0,
          active,
          activation<T>(act)};
}

// A separable filter: as many taps_x as taps_y, up to kTaps, as correlations; both factors are one
// of 1 and 2 up or down. `rows` output rows, an even number, go to one thread.
void separable(const Resampling& r, Pointer x, Pointer taps_x, Pointer taps_y, Pointer y, int rows,
               const records::Epilogue& after, int device, Pointer stream) {
  const std::int64_t taps = r.taps.second;
  const bool up = r.up.first == 2, down = r.down.first == 2;
  const records::Pair one{1, 1}, two{2, 2};
  const bool known = taps == r.taps.first && taps <= kTaps && (r.up == (up ? two : one)) &&
                     (r.down == (down ? two : one)) && !(up && down);
  check(known && rows > 0 && rows % 2 == 0, kOp, ": no strip kernel for ", taps, " taps, factors ",
        r.up.first, " and ", r.down.first, ", rows ", rows);
  const Geometry g = geometry(r);
  const Launcher launch(kOp, device, stream);
  cuda::dispatch(r.dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    if constexpr (sizeof(T) == 8) {
      check(false, kOp, ": the strip kernels do not serve float64");
    } else {
      const auto e = epilogue_of<T>(after, r.out_size.first * r.out_size.second);
      const bool epilogue =
          e.active || e.scale != nullptr || e.noise != nullptr || e.bias != nullptr;
      const bool wide = g.channels % kWidth<T> == 0 && aligned(x, y, after.blend.scale, after.bias);
      const std::int64_t vectors = g.channels / (wide ? kWidth<T> : 1),
                         line = vectors * g.out_width;
      const int early = up ? g.pad_y & 1 : 0;
      const std::int64_t strips = ceil_div(g.out_height + early, rows);
      launch(strip<T>(up, down, wide, epilogue),
             dim3(static_cast<unsigned>(ceil_div(g.images * strips * line, kThreads))), kThreads, 0,
             as<T>(x), as<A>(taps_x), as<A>(taps_y), as<T>(y), g,
             Strips{static_cast<int>(taps), rows, Divider(line), Divider(vectors), Divider(strips)},
             e);
    }
  });
}

// Any filter: taps [taps y, taps x], as a correlation.
void general(const Resampling& r, Pointer x, Pointer taps, Pointer y, int device, Pointer stream) {
  const Launcher launch(kOp, device, stream);
  const Geometry g = geometry(r);
  const General f{in_32_bits(r.up.second),  in_32_bits(r.up.first),    in_32_bits(r.down.second),
                  in_32_bits(r.down.first), in_32_bits(r.taps.second), in_32_bits(r.taps.first)};
  const std::int64_t line = g.channels * g.out_width, plane = line * g.out_height;
  cuda::dispatch(r.dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(general_kernel<T>, dim3(static_cast<unsigned>(ceil_div(g.images * plane, kThreads))),
           kThreads, 0, as<T>(x), as<accumulate_t<T>>(taps), as<T>(y), g, Divider(plane),
           Divider(line), Divider(g.channels), f);
  });
}

// What follows a convolution, alone.
void epilogue(const records::Images& images, Pointer x, Pointer y, const records::Epilogue& after,
              int device, Pointer stream) {
  const Launcher launch(kOp, device, stream);
  cuda::dispatch(images.dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWide = sizeof(T) == 8 ? 1 : kWidth<T>;
    const bool wide = images.channels % kWide == 0 && aligned(x, y, after.blend.scale, after.bias);
    const std::int64_t vectors = images.channels / (wide ? kWide : 1);
    const std::int64_t plane = vectors * images.pixels;
    launch(wide ? epilogue_kernel<T, kWide> : epilogue_kernel<T, 1>,
           dim3(static_cast<unsigned>(ceil_div(images.batch * plane, kThreads))), kThreads, 0,
           as<T>(x), as<T>(y), images.batch, images.pixels, images.channels, Divider(plane),
           Divider(vectors), epilogue_of<T>(after, images.pixels));
  });
}

}  // namespace

RWM_CUDA_FUNCTION(upfirdn2d_separable, separable);
RWM_CUDA_FUNCTION(upfirdn2d_general, general);
RWM_CUDA_FUNCTION(upfirdn2d_epilogue, epilogue);

}  // namespace rwm::upfirdn2d
