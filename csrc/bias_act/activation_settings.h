// The numbers of an activation, as the kernels take them.
#pragma once

#include <limits>

#include "common/dtype.h"

namespace rwm {

template <class A>
struct ActivationSettings {
  A slope, gain, clamp;  // a clamp that is not a number is none: no comparison with it holds
};

// Slope, gain and clamp from Python, where an infinite clamp asks for none. A clamp is rounded to
// the storage type, so that the backward pass recognises a clamped result.
template <class T>
ActivationSettings<accumulate_t<T>> activation_settings(double slope, double gain, double clamp) {
  using A = accumulate_t<T>;
  const A limit = clamp < std::numeric_limits<double>::infinity()
                      ? static_cast<A>(static_cast<T>(static_cast<A>(clamp)))
                      : std::numeric_limits<A>::quiet_NaN();
  return {static_cast<A>(slope), static_cast<A>(gain), limit};
}

}  // namespace rwm
