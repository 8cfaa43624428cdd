// What Python hands to bias_act, and an activation as the kernels take it.
#pragma once

#include <limits>

#include "common/records.h"

namespace rwm {
namespace records {

// [outer, channels, inner]; inner 1: rows with the channels innermost.
struct Planes {
  std::int64_t outer, channels, inner;
  int dtype;

  void validate() const {
    elements("Planes: all numbers", {outer, channels, inner});
    check_dtype("Planes", "dtype", dtype);
  }

  std::int64_t size() const { return outer * channels * inner; }
};

// clamp(act(t)·gain), act(t) = t or slope·t where t <= 0. Infinity is no clamp, which Python calls
// None.
struct Activation {
  double slope = 1, gain = 1, clamp = std::numeric_limits<double>::infinity();

  void validate() const {
    check(clamp >= 0, "Activation: clamp must be None or at least 0, got ", clamp);
  }
};

}  // namespace records

template <class A>
struct ActivationSettings {
  A slope, gain, clamp;  // a clamp that is not a number is none: no comparison with it holds
};

// A clamp is rounded to the storage type, so that the backward pass recognises a clamped result.
template <class T>
ActivationSettings<accumulate_t<T>> activation_settings(const records::Activation& a) {
  using A = accumulate_t<T>;
  const A limit = a.clamp < std::numeric_limits<double>::infinity()
                      ? static_cast<A>(static_cast<T>(static_cast<A>(a.clamp)))
                      : std::numeric_limits<A>::quiet_NaN();
  return {static_cast<A>(a.slope), static_cast<A>(a.gain), limit};
}

}  // namespace rwm
