// y = clamp(act(t)·gain), act(t) = t or slope·t where t <= 0, and its derivative read from y.
#pragma once

#include "bias_act/records.h"
#include "common/cuda.cuh"

namespace rwm::cuda {

template <class A>
struct Activation : ActivationSettings<A> {
  using ActivationSettings<A>::slope, ActivationSettings<A>::gain, ActivationSettings<A>::clamp;

  __device__ __forceinline__ A forward(A t) const {
    const A y = (t > A(0) ? t : t * slope) * gain;
    return y > clamp ? clamp : y < -clamp ? -clamp : y;
  }
  __device__ __forceinline__ A backward(A dy, A y) const {
    const A dt = dy * gain;
    return fabs(y) >= clamp ? A(0) : y > A(0) ? dt : dt * slope;
  }
};

template <class T>
Activation<accumulate_t<T>> activation(const records::Activation& a) {
  return {activation_settings<T>(a)};
}

}  // namespace rwm::cuda
