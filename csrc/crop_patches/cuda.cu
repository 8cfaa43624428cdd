// Launches of crop_patches. Boxes come in the accumulation type; patches of one image follow one
// another.
#include "common/cuda_registry.h"
#include "crop_patches/kernel.cuh"

namespace rwm::crop_patches {
namespace {

const char* const kOp = "crop_patches";

Strides strides(bool channels_last, std::int64_t channels, std::int64_t pixels) {
  return channels_last ? Strides{1, channels} : Strides{pixels, 1};
}

void forward(Pointer image, Pointer boxes, Pointer patches, std::int64_t patch_count,
             std::int64_t per_image, int channels, int height, int width, int size,
             bool channels_last, int dtype, int device, Pointer stream) {
  const Launcher launch(kOp, device, stream);
  const Strides in = strides(channels_last, channels, std::int64_t{height} * width);
  const Strides out = strides(channels_last, channels, std::int64_t{size} * size);
  cuda::dispatch(dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    constexpr int kWide = sizeof(T) == 8 ? 1 : kWidth<T>;  // float64 is for checks, not for speed
    const bool wide = !channels_last && size % kWide == 0 && aligned(patches);
    const std::int64_t threads = patch_count * size * size / (wide ? kWide : 1);
    launch(wide ? forward_kernel<T, kWide> : forward_kernel<T, 1>,
           dim3(static_cast<unsigned>(ceil_div(threads, kThreads))), kThreads, 0, as<T>(image),
           as<Box<accumulate_t<T>>>(boxes), as<T>(patches), patch_count, Divider(per_image),
           Divider(std::int64_t{size} * size / (wide ? kWide : 1)), Divider(size), channels, height,
           width, size, in, out);
  });
}

void adjoint(Pointer dpatches, Pointer boxes, Pointer dimage, std::int64_t images, int per_image,
             int channels, int height, int width, int size, bool channels_last, int dtype,
             int device, Pointer stream) {
  const Launcher launch(kOp, device, stream);
  const Strides in = strides(channels_last, channels, std::int64_t{size} * size);
  const Strides out = strides(channels_last, channels, std::int64_t{height} * width);
  const std::int64_t across = ceil_div(width, kTileWidth);
  const std::int64_t tiles = across * ceil_div(height, kTileHeight);
  const dim3 grid(static_cast<unsigned>(images * tiles),
                  static_cast<unsigned>(ceil_div(channels, kChunk)));
  cuda::dispatch(dtype, kOp, [&](auto tag) {
    using T = typename decltype(tag)::type;
    launch(adjoint_kernel<T>, grid, kThreads, 0, as<T>(dpatches), as<Box<accumulate_t<T>>>(boxes),
           as<T>(dimage), per_image, channels, height, width, size, Divider(across), Divider(tiles),
           in, out);
  });
}

}  // namespace

RWM_CUDA_FUNCTION(crop_patches_forward, forward);
RWM_CUDA_FUNCTION(crop_patches_adjoint, adjoint);

}  // namespace rwm::crop_patches
