// Launches of bias_act.
#include "bias_act/kernel.cuh"
#include "common/cuda_registry.h"

namespace rwm::bias_act {
namespace {

const char* const kOp = "bias_act";

// f(T, width): 16-byte accesses where they are possible; float64 is for checks, not for speed.
template <class F>
void with_width(int dtype, bool wide, const F& f) {
  cuda::dispatch(dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    if constexpr (sizeof(T) < 8) {
      if (wide) return f(tag, std::integral_constant<int, kWidth<T>>{});
    }
    f(tag, std::integral_constant<int, 1>{});
  });
}

std::int64_t width_of(int dtype) { return static_cast<DType>(dtype) == DType::f32 ? 4 : 8; }

unsigned blocks_of(std::int64_t vectors) {
  return static_cast<unsigned>(ceil_div(vectors, kThreads));
}

// inner = 1: rows of channels; else planes of `inner` elements. The bias, if any, has the
// accumulation type; a clamp that is not a number is none.
void forward(Pointer x, Pointer bias, Pointer y, std::int64_t outer, std::int64_t channels,
             std::int64_t inner, double slope, double gain, double clamp, int dtype, int device,
             Pointer stream) {
  const Launcher launch(kOp, device, stream);
  const bool rows = inner == 1;
  const bool wide = (rows ? channels : inner) % width_of(dtype) == 0 && aligned(x, y, bias);
  const std::int64_t size = outer * channels * inner;
  with_width(dtype, wide, [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    constexpr int kW = decltype(width)::value;
    launch(rows ? forward_kernel<T, kW, true> : forward_kernel<T, kW, false>,
           dim3(blocks_of(size / kW)), kThreads, 0, as<T>(x), as<accumulate_t<T>>(bias), as<T>(y),
           size, Divider(channels), Divider(inner), activation<T>(slope, gain, clamp));
  });
}

// dx may be 0. Partials has `chunks` rows of channels for each image (planes) or in all (rows).
void backward(Pointer dy, Pointer y, Pointer dx, Pointer dbias, Pointer partials,
              std::int64_t outer, std::int64_t channels, std::int64_t inner, std::int64_t chunks,
              double slope, double gain, double clamp, int dtype, int device, Pointer stream) {
  const Launcher launch(kOp, device, stream);
  const bool rows = inner == 1;
  const bool wide =
      (rows ? channels : inner) % width_of(dtype) == 0 && aligned(dy, y, dx, partials);
  const std::int64_t size = outer * channels * inner;
  with_width(dtype, wide, [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    constexpr int kW = decltype(width)::value;
    const auto act = activation<T>(slope, gain, clamp);
    if (dbias == 0) {
      launch(backward_elements<T, kW>, dim3(blocks_of(size / kW)), kThreads, 0, as<T>(dy), as<T>(y),
             as<T>(dx), size, act);
      return;
    }
    if (rows) {
      int lanes = 1;
      while (lanes < kWarp && lanes * kW < channels) lanes *= 2;
      const dim3 grid(static_cast<unsigned>(chunks),
                      static_cast<unsigned>(ceil_div(channels, lanes * kW)));
      launch(backward_rows<T, kW>, grid, kThreads, 0, as<T>(dy), as<T>(y), as<T>(dx),
             as<A>(partials), outer, channels, ceil_div(outer, chunks), lanes, act);
      launch_sum_partials(launch, as<A>(partials), as<A>(dbias), 1, chunks, channels);
      return;
    }
    const std::int64_t planes = outer * channels, chunk = ceil_div(inner, chunks * kW) * kW;
    const bool small = inner <= kWarp * kW * 4;  // a warp is done in four steps
    const std::int64_t groups = planes * chunks, per_block = small ? kThreads / kWarp : 1;
    launch(small ? backward_planes<T, kW, kWarp> : backward_planes<T, kW, kThreads>,
           dim3(static_cast<unsigned>(ceil_div(groups, per_block))), kThreads, 0, as<T>(dy),
           as<T>(y), as<T>(dx), as<A>(partials), planes, Divider(channels), inner, chunk,
           Divider(chunks), act);
    launch_sum_partials(launch, as<A>(partials), as<A>(dbias), 1, outer * chunks, channels);
  });
}

}  // namespace

RWM_CUDA_FUNCTION(bias_act_forward, forward);
RWM_CUDA_FUNCTION(bias_act_backward, backward);

}  // namespace rwm::bias_act
