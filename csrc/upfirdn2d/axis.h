// One axis of upfirdn2d: which inputs reach an output, and through which taps.
//
// out[o] = sum_j taps[j] * upsampled[o * down + j - pad], upsampled[i * up] = in[i]. Output o takes
// inputs begin[o], begin[o] + 1, … (count[o] of them, clipped to the image) through taps first[o],
// first[o] + up, …
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace rwm {

struct Axis {
  std::int64_t in, out, up, down, pad, taps;
  std::vector<std::int64_t> begin, first, count;

  Axis(std::int64_t in_, std::int64_t out_, std::int64_t up_, std::int64_t down_, std::int64_t pad_,
       std::int64_t taps_)
      : in(in_), out(out_), up(up_), down(down_), pad(pad_), taps(taps_), begin(out_), first(out_),
        count(out_) {
    for (std::int64_t o = 0; o < out; ++o) {
      const std::int64_t at = o * down - pad;  // of tap 0, in the upsampled image
      const std::int64_t low = ceil_div(std::max<std::int64_t>(at, 0), up);
      const std::int64_t high = std::min(in, floor_div(at + taps - 1, up) + 1);
      begin[o] = low;
      first[o] = low * up - at;
      count[o] = std::max<std::int64_t>(0, high - low);
    }
  }

  static std::int64_t floor_div(std::int64_t a, std::int64_t b) {
    return a >= 0 ? a / b : -((-a + b - 1) / b);
  }
  static std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return -floor_div(-a, b); }
};

}  // namespace rwm
