// Eight numbers side by side, in the compiler's own vector type: it becomes SSE, AVX or NEON as the
// function it is inlined into allows.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "common/dtype.h"
#include "common/isa.h"

#if defined(__GNUC__) && !defined(__clang__)
// These vectors are never passed to a function that is not inlined.
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

namespace rwm::crop_patches {

constexpr std::int64_t kLanes = 8;

template <class A>
struct LanesOf;
template <>
struct LanesOf<float> {
  typedef float type __attribute__((vector_size(32)));
};
template <>
struct LanesOf<double> {
  typedef double type __attribute__((vector_size(64)));
};
template <class A>
using Lanes = typename LanesOf<A>::type;

// bf16 is the upper half of a float; whole vectors are converted by integer arithmetic, as in
// dtype.h.
typedef std::uint32_t Words __attribute__((vector_size(32)));
typedef std::uint16_t Halves __attribute__((vector_size(16)));

template <class A, class T>
RWM_INLINE Lanes<A> load(const T* p) {
  Lanes<A> v;
  if constexpr (sizeof(T) == sizeof(A)) {
    std::memcpy(&v, p, sizeof(v));
  } else if constexpr (std::is_same_v<T, bf16>) {
    Halves raw;
    std::memcpy(&raw, p, sizeof(raw));
    const Words bits = __builtin_convertvector(raw, Words) << 16;
    std::memcpy(&v, &bits, sizeof(v));
  } else {
    A values[kLanes];
    for (std::int64_t i = 0; i < kLanes; ++i) values[i] = static_cast<A>(p[i]);
    std::memcpy(&v, values, sizeof(v));
  }
  return v;
}

template <class A, class T>
RWM_INLINE void store(T* p, const Lanes<A>& v) {
  if constexpr (sizeof(T) == sizeof(A)) {
    std::memcpy(p, &v, sizeof(v));
  } else if constexpr (std::is_same_v<T, bf16>) {
    Words bits;
    std::memcpy(&bits, &v, sizeof(v));
    const Words rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const auto number = v == v;  // all bits set, or none for a NaN
    Words kept;
    std::memcpy(&kept, &number, sizeof(kept));
    const Halves raw = __builtin_convertvector((rounded & kept) | (0x7FC0u & ~kept), Halves);
    std::memcpy(p, &raw, sizeof(raw));
  } else {
    A values[kLanes];
    std::memcpy(values, &v, sizeof(v));
    for (std::int64_t i = 0; i < kLanes; ++i) p[i] = static_cast<T>(values[i]);
  }
}

// The first `count` numbers only; what is not loaded is zero.
template <class A, class T>
RWM_INLINE Lanes<A> load_some(const T* p, std::int64_t count) {
  A values[kLanes] = {};
  for (std::int64_t i = 0; i < count; ++i) values[i] = static_cast<A>(p[i]);
  return load<A>(static_cast<const A*>(values));
}
template <class A, class T>
RWM_INLINE void store_some(T* p, const Lanes<A>& v, std::int64_t count) {
  A values[kLanes];
  store<A>(values, v);
  for (std::int64_t i = 0; i < count; ++i) p[i] = static_cast<T>(values[i]);
}

#if defined(__clang__) || (defined(__GNUC__) && __GNUC__ >= 12)
#define RWM_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef std::int32_t Indices __attribute__((vector_size(32)));
#define RWM_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Indices{__VA_ARGS__})
#endif

// v[i][j] becomes v[j][i].
RWM_INLINE void transpose(Lanes<float> (&v)[kLanes]) {
  Lanes<float> pairs[8], quads[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = RWM_SHUFFLE(v[i], v[i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    pairs[i + 1] = RWM_SHUFFLE(v[i], v[i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int k = 0; k < 2; ++k) {
      quads[i + 2 * k] = RWM_SHUFFLE(pairs[i + k], pairs[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      quads[i + 2 * k + 1] =
          RWM_SHUFFLE(pairs[i + k], pairs[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  }
  for (int i = 0; i < 4; ++i) {
    v[i] = RWM_SHUFFLE(quads[i], quads[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    v[i + 4] = RWM_SHUFFLE(quads[i], quads[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

RWM_INLINE void transpose(Lanes<double> (&v)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const double swapped = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = swapped;
    }
  }
}

}  // namespace rwm::crop_patches
