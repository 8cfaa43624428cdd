// A convolution by its definition, of any kernel and stride: patches of pixels as rows of a matrix,
// times weights.
//
// u[n, o, y, x] = sum over i, j, c of a[n, c]·image[n, c, y·stride - pad_y + i, x·stride - pad_x +
// j]·w[o, c, i, j], zeros outside the image. The patches of some pixels are gathered at a time and
// stay in a cache; no matrix of all of them is made.
#pragma once

#include "modulated_conv2d/records.h"

namespace rwm {

struct DirectPlan {
  std::int64_t batch, in_h, in_w, in_c, out_h, out_w, out_c, kernel_h, kernel_w, stride, pad_y,
      pad_x;
  records::Kernels kernels;

  DirectPlan(const records::Kernels& kernels, std::int64_t batch, records::Pair in_size,
             records::Pair out_size, std::int64_t stride, records::Pair padding)
      : batch(batch), in_h(in_size.first), in_w(in_size.second), in_c(kernels.in_c),
        out_h(out_size.first), out_w(out_size.second), out_c(kernels.out_c),
        kernel_h(kernels.size.first), kernel_w(kernels.size.second), stride(stride),
        pad_y(padding.first), pad_x(padding.second), kernels(kernels) {
    records::check_least("DirectPlan", "batch", batch, 0);
    records::check_least("DirectPlan", "in_size", in_size, 0);
    records::check_least("DirectPlan", "out_size", out_size, 0);
    records::check_least("DirectPlan", "stride", stride, 1);
    records::check_least("DirectPlan", "padding", padding, 1 - kMostElements);
    check(std::max(pad_y, pad_x) < kMostElements, "DirectPlan: padding must fit memory, got ",
          pad_y, ", ", pad_x);
    elements("DirectPlan: the input", {batch, in_h, in_w, in_c});
    elements("DirectPlan: the output", {batch, out_h, out_w, out_c});
    elements("DirectPlan: out_size times stride", {std::max(out_h, out_w) + 1, stride});
  }

  // Of what depends on the kernels alone.
  explicit DirectPlan(const records::Kernels& kernels)
      : DirectPlan(kernels, 0, {0, 0}, {0, 0}, 1, {0, 0}) {}

  std::int64_t pixels() const { return batch * out_h * out_w; }
  std::int64_t inputs() const { return batch * in_h * in_w * in_c; }
  std::int64_t run() const {
    return kernel_w * in_c;
  }  // numbers of a kernel's row, neighbours in a channels_last image
  std::int64_t depth() const { return kernel_h * run(); }
};

// Whole panels of columns, and a row of them that does not map a column of a matrix to one set of a
// cache.
constexpr std::int64_t padded(std::int64_t columns, std::int64_t wide) {
  return (columns + wide - 1) / wide * wide;
}
constexpr std::int64_t spread(std::int64_t row) { return row % 256 == 0 ? row + 16 : row; }

}  // namespace rwm
