// A convolution by its definition, of any kernel and stride: patches of pixels as rows of a matrix, times weights.
//
// u[n, o, y, x] = sum over i, j, c of a[n, c]·image[n, c, y·stride - pad_y + i, x·stride - pad_x + j]·w[o, c, i, j], zeros outside the image.
// The patches of some pixels are gathered at a time and stay in a cache; no matrix of all of them is made.
#pragma once

#include <algorithm>
#include <cstdint>

namespace rwm {

struct DirectPlan {
  std::int64_t batch, in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w, stride, pad_y, pad_x;

  std::int64_t pixels() const { return batch * out_h * out_w; }
  std::int64_t run() const { return kernel_w * in_c; }  // numbers of a kernel's row, neighbours in a channels_last image
  std::int64_t depth() const { return kernel_h * run(); }
};

// Whole panels of columns, and a row of them that does not map a column of a matrix to one set of a cache.
constexpr std::int64_t padded(std::int64_t columns, std::int64_t wide) { return (columns + wide - 1) / wide * wide; }
constexpr std::int64_t spread(std::int64_t row) { return row % 256 == 0 ? row + 16 : row; }

}  // namespace rwm
