// Element types: the codes Python passes, 16-bit storage types with their conversions, and the
// accumulation type of each.
#pragma once

#include <cstdint>
#include <cstring>

#include "check.h"

namespace rwm {

// The numbers are the contract with rwm_fast/ops/_extension.py (DTYPE_CODES).
enum class DType : int { f32 = 0, bf16 = 1, f16 = 2, f64 = 3 };

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// Conversions are written without branches, so that a loop over them vectorises at any instruction
// set.
struct bf16 {
  std::uint16_t bits;

  bf16() = default;
  bf16(float value) {
    const auto u = bit_cast<std::uint32_t>(value);
    const std::uint32_t rounded =
        (u + 0x7FFFu + ((u >> 16) & 1u)) >> 16;  // to nearest, ties to even
    bits = static_cast<std::uint16_t>(value != value ? 0x7FC0u : rounded);
  }
  operator float() const { return bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }
};

struct f16 {
  std::uint16_t bits;

  f16() = default;
  f16(float value) {
    const auto u = bit_cast<std::uint32_t>(value);
    const std::uint32_t sign = (u >> 16) & 0x8000u, magnitude = u & 0x7FFFFFFFu;
    // Exponent rebias by 127 - 15, then round the 13 dropped bits to nearest, ties to even.
    const std::uint32_t normal =
        (magnitude - (112u << 23) + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    // Below 2^-14: adding 0.5 leaves the rounded half mantissa in the low bits of the sum.
    const std::uint32_t subnormal =
        bit_cast<std::uint32_t>(bit_cast<float>(magnitude) + 0.5f) - bit_cast<std::uint32_t>(0.5f);
    std::uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
    half = magnitude >= 0x477FF000u ? 0x7C00u : half;  // 65520 and above round to infinity
    half = magnitude > 0x7F800000u ? 0x7E00u : half;   // NaN
    bits = static_cast<std::uint16_t>(sign | half);
  }
  operator float() const {
    const std::uint32_t sign = static_cast<std::uint32_t>(bits & 0x8000u) << 16;
    // The half's exponent and mantissa read as a float are 2^112 too small, subnormals included.
    const float scaled = bit_cast<float>(static_cast<std::uint32_t>(bits & 0x7FFFu) << 13) *
                         bit_cast<float>(239u << 23);
    const std::uint32_t special =
        (bits & 0x7C00u) == 0x7C00u ? 0x7F800000u : 0u;  // infinity and NaN
    return bit_cast<float>(bit_cast<std::uint32_t>(scaled) | special | sign);
  }
};

// Sums run in float32 or better.
template <class T>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};
template <class T>
using accumulate_t = typename accumulate<T>::type;

template <class T>
struct TypeTag {
  using type = T;
};

// dispatch(dtype, "masked_l1", [&](auto tag) { using T = typename decltype(tag)::type; ... });
template <class F>
auto dispatch(DType dtype, const char* op, const F& f) {
  switch (dtype) {
    case DType::bf16: return f(TypeTag<bf16>{});
    case DType::f16: return f(TypeTag<f16>{});
    case DType::f64: return f(TypeTag<double>{});
    default: check(dtype == DType::f32, op, ": unknown dtype code ", static_cast<int>(dtype));
  }
  return f(TypeTag<float>{});
}

// Tensors arrive as integers (Tensor.data_ptr()); 0 stands for an absent tensor.
using Pointer = std::uintptr_t;

template <class T>
inline T* as(Pointer p) {
  return reinterpret_cast<T*>(p);
}

}  // namespace rwm
