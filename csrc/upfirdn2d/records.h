// What Python hands to upfirdn2d.
#pragma once

#include <cstdlib>

#include "common/records.h"

namespace rwm::records {

// Images [images, y, x, channels], channels innermost; planes are images of one channel. Per axis,
// out[o] = Σ_j taps[j] · upsampled[o·down + j − pad], upsampled[i·up] = in[i].
struct Resampling {
  std::int64_t images, channels;
  Pair in_size, out_size, up, down, pad, taps;  // pad: before the first sample
  int dtype;

  void validate() const {
    elements("Resampling: all inputs", {images, channels, in_size.first, in_size.second});
    elements("Resampling: all outputs", {images, channels, out_size.first, out_size.second});
    check_least("Resampling", "up", up, 1);
    check_least("Resampling", "down", down, 1);
    check_least("Resampling", "taps", taps, 1);
    elements("Resampling: all taps", {taps.first, taps.second});
    for (const auto& [size, factor] : {std::pair(in_size, up), std::pair(out_size, down)}) {
      elements("Resampling: a side times its factor", {size.first, factor.first});
      elements("Resampling: a side times its factor", {size.second, factor.second});
    }
    check(std::max(std::abs(pad.first), std::abs(pad.second)) < kMostElements,
          "Resampling: pad must fit memory, got ", pad.first, ", ", pad.second);
    check_dtype("Resampling", "dtype", dtype);
  }
};

}  // namespace rwm::records
