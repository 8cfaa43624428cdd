// The numbers of an activation, as the kernels take them.
#pragma once

#include <limits>

#include "common/dtype.h"

namespace rwm {

template <class A>
struct ActivationSettings {
  A slope, gain, clamp;  // clamp NaN: none, since no comparison with it holds
};

// A clamp is rounded to the storage type, so that a clamped result equals it; infinite asks for none.
template <class T>
ActivationSettings<accumulate_t<T>> activation_settings(double slope, double gain, double clamp) {
  using A = accumulate_t<T>;
  const A limit = clamp < std::numeric_limits<double>::infinity() ? static_cast<A>(static_cast<T>(static_cast<A>(clamp)))
                                                                  : std::numeric_limits<A>::quiet_NaN();
  return {static_cast<A>(slope), static_cast<A>(gain), limit};
}

}  // namespace rwm
