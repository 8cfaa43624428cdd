// What the CPU's files of modulated_conv2d share.
#pragma once

#include "common/isa.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "modulated_conv2d/bindings.h"
#include "modulated_conv2d/winograd.h"

namespace rwm {

using records::Images;
using records::KernelStrides;

constexpr const char* kOp = "modulated_conv2d";
constexpr std::int64_t kPass = 1 << 14,
                       kProduct = 1 << 17;  // numbers and multiplications a thread is worth

// f(TypeTag) of float or double, the dtypes of Kernels. 16-bit images come in as float32: CPUs that
// compute in them have matrix units, and torch's convolution uses those.
template <class F>
auto with_float(const records::Kernels& kernels, const F& f) {
  if (static_cast<DType>(kernels.dtype) == DType::f64) return f(TypeTag<double>{});
  return f(TypeTag<float>{});
}

// f(true_type) or f(false_type).
template <class F>
void with_bool(bool value, const F& f) {
  value ? f(std::true_type{}) : f(std::false_type{});
}

}  // namespace rwm
