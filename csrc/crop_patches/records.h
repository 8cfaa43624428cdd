// What Python hands to crop_patches and its adjoint.
#pragma once

#include "common/records.h"

namespace rwm::records {

constexpr std::int64_t kMostOfRow = 1 << 30;  // numbers along a row are counted in 32 bits

// Images [N, C, H, W] and patches [N, P, C, size, size], or both with the channels innermost.
struct Crops {
  std::int64_t images, patches, channels;
  Pair image_size;
  std::int64_t size;
  bool channels_last;
  int dtype, boxes_dtype;

  void validate() const {
    check_least("Crops", "channels", channels, 1);
    check_least("Crops", "image_size", image_size, 1);
    check_least("Crops", "size", size, 1);
    const auto [height, width] = image_size;
    const std::int64_t row =
        elements("Crops: a row", {std::max(width, size), channels_last ? channels : 1});
    check(row < kMostOfRow, "Crops: rows must have fewer than ", kMostOfRow, " numbers, got ", row);
    elements("Crops: all pixels", {images, channels, height, width});
    elements("Crops: all patches", {images, patches, channels, size, size});
    check_dtype("Crops", "dtype", dtype);
    const auto boxes = static_cast<DType>(boxes_dtype);
    check(boxes == DType::f32 || boxes == DType::f64,
          "Crops: boxes_dtype must be float32 or float64, got code ", boxes_dtype);
  }
};

}  // namespace rwm::records
