// Launches of bias_act.
#include "bias_act/kernel.cuh"
#include "common/cuda_registry.h"

namespace rwm::bias_act {
namespace {

using records::Planes;

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

// Whether whole vectors end where a row, or a plane, does.
bool is_wide(const Planes& planes) {
  const int width = static_cast<DType>(planes.dtype) == DType::f32 ? 4 : 8;
  return (planes.inner == 1 ? planes.channels : planes.inner) % width == 0;
}

unsigned blocks_of(std::int64_t vectors) {
  return static_cast<unsigned>(ceil_div(vectors, kThreads));
}

// The bias, if any, has the accumulation type.
void forward(const Planes& planes, const records::Activation& act, Pointer x, Pointer bias,
             Pointer y, int device, Pointer stream) {
  const Launcher launch(kOp, device, stream);
  const bool rows = planes.inner == 1;
  const bool wide = is_wide(planes) && aligned(x, y, bias);
  const std::int64_t size = planes.size();
  with_width(planes.dtype, wide, [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    constexpr int kW = decltype(width)::value;
    launch(rows ? forward_kernel<T, kW, true> : forward_kernel<T, kW, false>,
           dim3(blocks_of(size / kW)), kThreads, 0, as<T>(x), as<accumulate_t<T>>(bias), as<T>(y),
           size, Divider(planes.channels), Divider(planes.inner), activation<T>(act));
  });
}

// dx may be 0. Partials has `chunks` rows of channels for each image (planes) or in all (rows).
void backward(const Planes& planes, const records::Activation& activation, Pointer dy, Pointer y,
              Pointer dx, Pointer dbias, Pointer partials, std::int64_t chunks, int device,
              Pointer stream) {
  const Launcher launch(kOp, device, stream);
  const std::int64_t outer = planes.outer, channels = planes.channels, inner = planes.inner;
  const bool wide = is_wide(planes) && aligned(dy, y, dx, partials);
  const std::int64_t size = planes.size();
  with_width(planes.dtype, wide, [&](auto tag, auto width) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    constexpr int kW = decltype(width)::value;
    const auto act = cuda::activation<T>(activation);
    if (dbias == 0) {
      launch(backward_elements<T, kW>, dim3(blocks_of(size / kW)), kThreads, 0, as<T>(dy), as<T>(y),
             as<T>(dx), size, act);
      return;
    }
    if (inner == 1) {
      int lanes = 1;
      while (lanes < kWarp && lanes * kW < channels) lanes *= 2;
      const dim3 grid(static_cast<unsigned>(chunks),
                      static_cast<unsigned>(ceil_div(channels, lanes * kW)));
      launch(backward_rows<T, kW>, grid, kThreads, 0, as<T>(dy), as<T>(y), as<T>(dx),
             as<A>(partials), outer, channels, ceil_div(outer, chunks), lanes, act);
      launch_sum_partials(launch, as<A>(partials), as<A>(dbias), 1, chunks, channels);
      return;
    }
    const std::int64_t count = outer * channels, chunk = ceil_div(inner, chunks * kW) * kW;
    const bool small = inner <= kWarp * kW * 4;  // a warp is done in four steps
    const std::int64_t groups = count * chunks, per_block = small ? kThreads / kWarp : 1;
    launch(small ? backward_planes<T, kW, kWarp> : backward_planes<T, kW, kThreads>,
           dim3(static_cast<unsigned>(ceil_div(groups, per_block))), kThreads, 0, as<T>(dy),
           as<T>(y), as<T>(dx), as<A>(partials), count, Divider(channels), inner, chunk,
           Divider(chunks), act);
    launch_sum_partials(launch, as<A>(partials), as<A>(dbias), 1, outer * chunks, channels);
  });
}

}  // namespace

RWM_CUDA_FUNCTION(bias_act_forward, forward);
RWM_CUDA_FUNCTION(bias_act_backward, backward);

}  // namespace rwm::bias_act
