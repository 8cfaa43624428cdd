// Arguments of modulated_conv2d's functions that come as tuples of whole numbers.
#pragma once

#include "common/check.h"
#include "common/dtype.h"
#include "common/registry.h"
#include "modulated_conv2d/winograd.h"

namespace rwm {

inline void integers(const char* op, const char* what, const py::tuple& from, std::int64_t* to, std::size_t count) {
  check(from.size() == count, op, ": ", what, " must be ", count, " numbers, got ", from.size());
  try {
    for (std::size_t i = 0; i < count; ++i) to[i] = from[i].cast<std::int64_t>();
  } catch (const py::cast_error&) {
    throw py::type_error(std::string(op) + ": " + what + " must be whole numbers of 64 bits");
  }
}

// The strides of kernels [out_c, in_c, taps], contiguous or with the input channels innermost.
inline KernelStrides kernel_strides(const char* op, const py::tuple& strides, std::int64_t out_c, std::int64_t in_c, std::int64_t taps) {
  std::int64_t s[3];
  integers(op, "strides", strides, s, 3);
  const std::int64_t kernels = elements(op, {out_c, in_c, taps}) == 0 ? 0 : in_c * taps;
  const bool planes = s[1] == taps && s[2] == 1, channels = s[1] == 1 && s[2] == in_c;
  check(kernels == 0 || (s[0] == kernels && (planes || channels)), op, ": kernels must be contiguous or channels_last");
  return {s[0], s[1], s[2]};
}

// f(TypeTag) of float or double. 16-bit images come in as float32: CPUs that compute in them have matrix units, and torch's convolution uses
// those.
template <class F>
auto with_float(int dtype, const F& f) {
  if (static_cast<DType>(dtype) == DType::f64) return f(TypeTag<double>{});
  check(static_cast<DType>(dtype) == DType::f32, "modulated_conv2d: the convolutions take float32 or float64");
  return f(TypeTag<float>{});
}

}  // namespace rwm
