// What the CPU's files of modulated_conv2d share.
#pragma once

#include <algorithm>
#include <type_traits>

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

template <class F>
void with_float_images(const Images& s, const F& f) {
  if (static_cast<DType>(s.dtype) == DType::f64) return f(TypeTag<double>{});
  check(static_cast<DType>(s.dtype) == DType::f32, kOp, ": float32 or float64 expected");
  f(TypeTag<float>{});
}

// Pixels a chunk: enough for a thread, at most 1024 so that sums stay short, and the same whatever
// the number of threads.
inline std::int64_t chunk_of(const Images& s) {
  const std::int64_t worth = (kPass + s.channels - 1) / std::max<std::int64_t>(s.channels, 1);
  return std::max<std::int64_t>(1, std::min<std::int64_t>({worth, 1024, s.pixels}));
}

inline std::int64_t chunks_of(const Images& s) { return num_chunks(s.pixels, chunk_of(s)); }

// f(index, n, first, last) for chunks of the pixels of each image.
template <class F>
void each_chunk(const Images& s, const F& f) {
  const std::int64_t chunk = chunk_of(s), chunks = chunks_of(s);
  const std::int64_t grain =
      std::max<std::int64_t>(1, kPass / std::max<std::int64_t>(1, chunk * s.channels));
  parallel_for(0, s.batch * chunks, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i)
      f(i, i / chunks, i % chunks * chunk, std::min(s.pixels, (i % chunks + 1) * chunk));
  });
}

}  // namespace rwm
