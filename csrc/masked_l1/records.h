// What Python hands to masked_l1.
#pragma once

#include "common/records.h"

namespace rwm::records {

// Two orders of memory. Planes: images [N, C, S] with a mask value for each (n, s); a mask of the
// images' own shape is the case N = C = 1. Pixels (channels_last): [S, C] with a mask value for
// each s, N = 1.
struct MaskedImages {
  std::int64_t images, channels, spots;
  bool pixels;
  int dtype, mask_dtype;  // the same, or the mask's is float32 beside 16 bits

  void validate() const {
    check_least("MaskedImages", "channels", channels, 1);
    check(!pixels || images == 1, "MaskedImages: images must be 1 in pixel order, got ", images);
    elements("MaskedImages: all numbers", {images, channels, spots});
    check_dtype("MaskedImages", "dtype", dtype);
    const auto type = static_cast<DType>(dtype);
    const bool half = type == DType::f16 || type == DType::bf16;
    check(mask_dtype == dtype || (half && static_cast<DType>(mask_dtype) == DType::f32),
          "MaskedImages: mask_dtype must be dtype, or float32 beside 16 bits, got code ",
          mask_dtype);
  }

  std::int64_t size() const { return images * channels * spots; }
};

}  // namespace rwm::records
