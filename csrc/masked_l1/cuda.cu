// Launches of masked_l1: picks the order of memory and the width of the accesses.
#include "common/cuda_registry.h"
#include "masked_l1/kernel.cuh"

namespace rwm::masked_l1 {
namespace {

using records::MaskedImages;

const char* const kOp = "masked_l1";

// The largest multiple that vectors of any type may need: 8 elements of 2 bytes.
constexpr std::int64_t kWidest = 8;

// f(T, M, width): the element types, and 16-byte accesses where runs of `run` elements at aligned
// addresses allow them. float64 is for checks, not for speed: one element at a time.
template <class F>
void with_types(const MaskedImages& m, std::int64_t run, bool are_aligned, const F& f) {
  cuda::dispatch(m.dtype, kOp, [&](auto image) {
    using T = typename decltype(image)::type;
    dispatch_beside<T>(m.mask_dtype, [&](auto mask) {
      if constexpr (sizeof(T) < 8) {
        if (run % kWidest == 0 && are_aligned) {
          return f(image, mask, std::integral_constant<int, kWidth<T>>{});
        }
      }
      f(image, mask, std::integral_constant<int, 1>{});
    });
  });
}

dim3 grid_for(const MaskedImages& m, std::int64_t items, int width) {
  const std::int64_t y = std::min(m.images, kMaxBlocks);
  return dim3(
      blocks_for(ceil_div(items, width), kThreads, std::max<std::int64_t>(1, kMaxBlocks / y)),
      static_cast<unsigned>(y));
}

// Elements that follow one another and have a mask.
std::int64_t run_of(const MaskedImages& m) { return m.pixels ? m.channels * m.spots : m.spots; }

// signs may be 0. The workspace is 16 bytes with the ticket, which is 0 and comes back as 0, and
// kMaxBlocks partial sums.
void forward(const MaskedImages& images, Pointer h, Pointer g, Pointer a, Pointer m, Pointer signs,
             Pointer loss, Pointer workspace, int device, Pointer stream) {
  const std::int64_t run = run_of(images);
  const Launcher launch(kOp, device, stream);
  with_types(images, run, aligned(h, g, a, m, signs), [&](auto image, auto mask, auto width) {
    using T = typename decltype(image)::type;
    using M = typename decltype(mask)::type;
    using A = accumulate_t<T>;
    constexpr int kW = decltype(width)::value;
    launch(images.pixels ? forward_pixels<T, M, kW> : forward_planes<T, M, kW>,
           grid_for(images, run, kW), kThreads, 0, as<T>(h), as<T>(g), as<T>(a), as<M>(m),
           as<std::uint8_t>(signs), as<A>(workspace + 16), as<unsigned>(workspace), as<A>(loss),
           Shape(images));
  });
}

void backward(const MaskedImages& images, Pointer dloss, Pointer signs, Pointer m, Pointer dh,
              Pointer dg, Pointer da, int device, Pointer stream) {
  const std::int64_t run = run_of(images);
  const Launcher launch(kOp, device, stream);
  with_types(images, run, aligned(signs, m, dh, dg, da), [&](auto image, auto mask, auto width) {
    using T = typename decltype(image)::type;
    using M = typename decltype(mask)::type;
    constexpr int kW = decltype(width)::value;
    launch(images.pixels ? backward_pixels<T, M, kW> : backward_planes<T, M, kW>,
           grid_for(images, run, kW), kThreads, 0, as<accumulate_t<T>>(dloss),
           as<std::uint8_t>(signs), as<M>(m), as<T>(dh), as<T>(dg), as<T>(da), Shape(images));
  });
}

void mask_backward(const MaskedImages& images, Pointer dloss, Pointer h, Pointer g, Pointer a,
                   Pointer m, Pointer dm, int device, Pointer stream) {
  const bool fits = !images.pixels && aligned(h, g, a, m, dm);
  const Launcher launch(kOp, device, stream);
  with_types(images, images.spots, fits, [&](auto image, auto mask, auto width) {
    using T = typename decltype(image)::type;
    using M = typename decltype(mask)::type;
    constexpr int kW = decltype(width)::value;
    launch(mask_backward_planes<T, M, kW>, grid_for(images, images.spots, kW), kThreads, 0,
           as<accumulate_t<T>>(dloss), as<T>(h), as<T>(g), as<T>(a), as<M>(m), as<M>(dm),
           Shape(images), images.pixels ? 1 : images.spots, images.pixels ? images.channels : 1);
  });
}

}  // namespace

RWM_CUDA_FUNCTION(masked_l1_forward, forward);
RWM_CUDA_FUNCTION(masked_l1_backward, backward);
RWM_CUDA_FUNCTION(masked_l1_mask_backward, mask_backward);

}  // namespace rwm::masked_l1
