// Launches of crop_patches. Boxes come in the accumulation type; patches of one image follow one
// another.
#include "common/cuda_registry.h"
#include "crop_patches/kernel.cuh"
#include "crop_patches/records.h"

namespace rwm::crop_patches {
namespace {

const char* const kOp = "crop_patches";

Strides strides(const records::Crops& c, std::int64_t pixels) {
  return c.channels_last ? Strides{1, c.channels} : Strides{pixels, 1};
}

// Images of fewer than 2³¹ pixels a plane and channels: what a record may hold and ints count.
Geometry geometry(const records::Crops& c) {
  const auto [height, width] = c.image_size;
  const bool wide = static_cast<DType>(c.dtype) == DType::f64;
  check(c.boxes_dtype == static_cast<int>(wide ? DType::f64 : DType::f32), kOp,
        ": boxes must have the accumulation type");
  for (const std::int64_t number : {c.patches, c.channels, height}) {
    check(number < records::kMostOfRow, kOp, ": sizes must be below ", records::kMostOfRow,
          ", got ", number);
  }
  return {static_cast<int>(c.patches), static_cast<int>(c.channels), static_cast<int>(height),
          static_cast<int>(width),     static_cast<int>(c.size),     strides(c, height * width),
          strides(c, c.size * c.size)};
}

void forward(const records::Crops& c, Pointer image, Pointer boxes, Pointer patches, int device,
             Pointer stream) {
  const Launcher launch(kOp, device, stream);
  const Geometry g = geometry(c);
  const std::int64_t count = c.images * c.patches;
  cuda::dispatch(c.dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWide = sizeof(T) == 8 ? 1 : kWidth<T>;  // float64 is for checks, not for speed
    const bool wide = !c.channels_last && c.size % kWide == 0 && aligned(patches);
    const std::int64_t groups = c.size * c.size / (wide ? kWide : 1);
    launch(wide ? forward_kernel<T, kWide> : forward_kernel<T, 1>,
           dim3(static_cast<unsigned>(ceil_div(count * groups, kThreads))), kThreads, 0,
           as<T>(image), as<Box<accumulate_t<T>>>(boxes), as<T>(patches), count, Divider(c.patches),
           Divider(groups), Divider(c.size), g);
  });
}

void adjoint(const records::Crops& c, Pointer dpatches, Pointer boxes, Pointer dimage, int device,
             Pointer stream) {
  const Launcher launch(kOp, device, stream);
  const Geometry g = geometry(c);
  const std::int64_t across = ceil_div(g.width, kTileWidth);
  const std::int64_t tiles = across * ceil_div(g.height, kTileHeight);
  const dim3 grid(static_cast<unsigned>(c.images * tiles),
                  static_cast<unsigned>(ceil_div(g.channels, kChunk)));
  cuda::dispatch(c.dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(adjoint_kernel<T>, grid, kThreads, 0, as<T>(dpatches), as<Box<accumulate_t<T>>>(boxes),
           as<T>(dimage), Divider(across), Divider(tiles), g);
  });
}

}  // namespace

RWM_CUDA_FUNCTION(crop_patches_forward, forward);
RWM_CUDA_FUNCTION(crop_patches_adjoint, adjoint);

}  // namespace rwm::crop_patches
