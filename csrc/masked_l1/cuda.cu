// Launches of masked_l1: picks the order of memory and the width of the accesses.
#include "common/cuda_registry.h"
#include "masked_l1/kernel.cuh"

namespace rwm::masked_l1 {
namespace {

const char* const kOp = "masked_l1";

// f(T, M, width): the element types, and 16-byte accesses where they are possible. float64 is for
// checks, not for speed: one element at a time.
template <class F>
void with_types(int dtype, int mask_dtype, bool wide, const F& f) {
  cuda::dispatch(dtype, kOp, [&](auto image) {
    using T = typename decltype(image)::type;
    dispatch_beside<T>(mask_dtype, [&](auto mask) {
      if constexpr (sizeof(T) < 8) {
        if (wide) return f(image, mask, std::integral_constant<int, kWidth<T>>{});
      }
      f(image, mask, std::integral_constant<int, 1>{});
    });
  });
}

// The largest multiple that vectors of any type may need: 8 elements of 2 bytes.
constexpr std::int64_t kWidest = 8;

dim3 grid_for(const Shape& shape, std::int64_t items, int width) {
  const std::int64_t y = std::min(shape.images, kMaxBlocks);
  return dim3(
      blocks_for(ceil_div(items, width), kThreads, std::max<std::int64_t>(1, kMaxBlocks / y)),
      static_cast<unsigned>(y));
}

double inverse(const Shape& shape) {
  return 1.0 / (static_cast<double>(shape.images) * shape.channels * shape.spots);
}

// signs may be 0; partials has kMaxBlocks elements; the ticket is 0 and comes back as 0.
void forward(Pointer h, Pointer g, Pointer a, Pointer m, Pointer signs, Pointer partials,
             Pointer ticket, Pointer loss, std::int64_t images, std::int64_t channels,
             std::int64_t spots, bool pixels, int dtype, int mask_dtype, int device,
             Pointer stream) {
  const Shape shape{images, channels, spots};
  const std::int64_t run = pixels ? channels * spots : spots;
  const bool wide = run % kWidest == 0 && aligned(h, g, a, m, signs);
  const Launcher launch(kOp, device, stream);
  with_types(dtype, mask_dtype, wide, [&](auto image, auto mask, auto width) {
    using T = typename decltype(image)::type;
    using M = typename decltype(mask)::type;
    using A = accumulate_t<T>;
    constexpr int kW = decltype(width)::value;
    const auto kernel = pixels ? forward_pixels<T, M, kW> : forward_planes<T, M, kW>;
    launch(kernel, grid_for(shape, run, kW), kThreads, 0, as<T>(h), as<T>(g), as<T>(a), as<M>(m),
           as<std::uint8_t>(signs), as<A>(partials), as<unsigned>(ticket), as<A>(loss), shape,
           Divider(channels), inverse(shape));
  });
}

void backward(Pointer dloss, Pointer signs, Pointer m, Pointer dh, Pointer dg, Pointer da,
              std::int64_t images, std::int64_t channels, std::int64_t spots, bool pixels,
              int dtype, int mask_dtype, int device, Pointer stream) {
  const Shape shape{images, channels, spots};
  const std::int64_t run = pixels ? channels * spots : spots;
  const bool wide = run % kWidest == 0 && aligned(signs, m, dh, dg, da);
  const Launcher launch(kOp, device, stream);
  with_types(dtype, mask_dtype, wide, [&](auto image, auto mask, auto width) {
    using T = typename decltype(image)::type;
    using M = typename decltype(mask)::type;
    constexpr int kW = decltype(width)::value;
    const auto kernel = pixels ? backward_pixels<T, M, kW> : backward_planes<T, M, kW>;
    launch(kernel, grid_for(shape, run, kW), kThreads, 0, as<accumulate_t<T>>(dloss),
           as<std::uint8_t>(signs), as<M>(m), as<T>(dh), as<T>(dg), as<T>(da), shape,
           Divider(channels), inverse(shape));
  });
}

void mask_backward(Pointer dloss, Pointer h, Pointer g, Pointer a, Pointer m, Pointer dm,
                   std::int64_t images, std::int64_t channels, std::int64_t spots, bool pixels,
                   int dtype, int mask_dtype, int device, Pointer stream) {
  const Shape shape{images, channels, spots};
  const bool wide = !pixels && spots % kWidest == 0 && aligned(h, g, a, m, dm);
  const Launcher launch(kOp, device, stream);
  with_types(dtype, mask_dtype, wide, [&](auto image, auto mask, auto width) {
    using T = typename decltype(image)::type;
    using M = typename decltype(mask)::type;
    constexpr int kW = decltype(width)::value;
    launch(mask_backward_planes<T, M, kW>, grid_for(shape, spots, kW), kThreads, 0,
           as<accumulate_t<T>>(dloss), as<T>(h), as<T>(g), as<T>(a), as<M>(m), as<M>(dm), shape,
           pixels ? 1 : spots, pixels ? channels : 1, inverse(shape));
  });
}

}  // namespace

RWM_CUDA_FUNCTION(masked_l1_forward, forward);
RWM_CUDA_FUNCTION(masked_l1_backward, backward);
RWM_CUDA_FUNCTION(masked_l1_mask_backward, mask_backward);

}  // namespace rwm::masked_l1
