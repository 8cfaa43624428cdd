// Which pixels a box samples along one axis, and with what weights.
//
// Bilinear sampling is separable: patch = Y · image · Xᵀ with two band matrices of two weights a
// row. The adjoint multiplies by their transposes, which are band matrices too: the samples that
// touch a pixel follow one another. A Band holds the rows of such a matrix:
//
//     out[o] = Σ_k weight[o][k] · in[start[o] + k],  k < count[o]
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace rwm::crop_patches {

template <class A>
struct Band {
  std::int64_t low = 0;                    // the first pixel; the others are counted from it
  std::int64_t pixels = 0;                 // how many
  std::int64_t taps = 0;                   // weights a row; unused ones are 0
  std::vector<std::int64_t> start, count;  // of each row
  std::vector<A> weight;                   // [rows][taps]
};

// u_j = (2j + 1)/S − 1, where a patch samples a box that spans [−1, 1].
inline std::vector<double> sample_points(std::int64_t size) {
  std::vector<double> u(size);
  const double samples = static_cast<double>(size);
  for (std::int64_t j = 0; j < size; ++j) u[j] = static_cast<double>(2 * j + 1) / samples - 1;
  return u;
}

// Row j: the two pixels around the sampling point of output j. They may be pixels −1 and `extent`,
// which are outside and read as zero. A point farther out, or not finite, has no inputs.
template <class A>
void sampling(double centre, double half, const std::vector<double>& points, std::int64_t extent,
              Band<A>& band) {
  const std::int64_t outputs = static_cast<std::int64_t>(points.size());
  band.taps = 2;
  band.start.assign(outputs, 0);
  band.count.assign(outputs, 0);
  band.weight.assign(2 * outputs, A(0));
  const double limit = static_cast<double>(extent);
  std::int64_t low = extent, high = 0;
  for (std::int64_t j = 0; j < outputs; ++j) {
    const double x = ((centre + half * points[j] + 1) * limit - 1) / 2;
    if (!(x > -1 && x < limit)) continue;                            // also where x is not a number
    const std::int64_t left = static_cast<std::int64_t>(x + 1) - 1;  // rounded down: x + 1 > 0
    const double right_weight = x - static_cast<double>(left);
    band.start[j] = left;
    band.count[j] = 2;
    band.weight[2 * j] = static_cast<A>(1 - right_weight);
    band.weight[2 * j + 1] = static_cast<A>(right_weight);
    low = std::min(low, left);
    high = std::max(high, left + 2);
  }
  band.low = low;
  band.pixels = std::max<std::int64_t>(0, high - low);
  for (std::int64_t j = 0; j < outputs; ++j) band.start[j] -= band.count[j] ? low : 0;
}

// Row x: the samples that touch pixel low + x, for the pixels inside the image.
template <class A>
Band<A> transposed(const Band<A>& band, std::int64_t extent) {
  Band<A> t;
  const std::int64_t outputs = static_cast<std::int64_t>(band.start.size());
  t.low = std::max<std::int64_t>(0, band.low);
  t.pixels = std::max<std::int64_t>(0, std::min(extent, band.low + band.pixels) - t.low);
  t.start.assign(t.pixels, 0);
  t.count.assign(t.pixels, 0);
  const std::int64_t shift = band.low - t.low;  // 0, or −1 where pixel −1 is left out
  const auto each_touch = [&](const auto& f) {
    for (std::int64_t j = 0; j < outputs; ++j) {
      const std::int64_t x = band.start[j] + shift;
      if (!band.count[j]) continue;
      if (x >= 0) f(j, x, band.weight[2 * j]);
      if (x + 1 < t.pixels) f(j, x + 1, band.weight[2 * j + 1]);
    }
  };
  each_touch([&](std::int64_t j, std::int64_t x, A) {
    if (!t.count[x]) t.start[x] = j;
    t.count[x] = j + 1 - t.start[x];
  });
  for (const std::int64_t count : t.count) t.taps = std::max(t.taps, count);
  t.weight.assign(t.pixels * t.taps, A(0));
  each_touch(
      [&](std::int64_t j, std::int64_t x, A w) { t.weight[x * t.taps + j - t.start[x]] += w; });
  return t;
}

}  // namespace rwm::crop_patches
