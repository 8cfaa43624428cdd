// y = clamp(act(t)·gain), act(t) = t or slope·t where t <= 0, and its derivative read from y.
#pragma once

#include "common/cuda.cuh"

namespace rwm::cuda {

// A clamp that is not a number is none: no comparison with it holds.
template <class A>
struct Activation {
  A slope, gain, clamp;

  __device__ __forceinline__ A forward(A t) const {
    const A y = (t > A(0) ? t : t * slope) * gain;
    return y > clamp ? clamp : y < -clamp ? -clamp : y;
  }
  __device__ __forceinline__ A backward(A dy, A y) const {
    const A dt = dy * gain;
    return fabs(y) >= clamp ? A(0) : y > A(0) ? dt : dt * slope;
  }
};

// The clamp is rounded as the results are, so that the backward pass recognises a clamped one.
template <class T>
Activation<accumulate_t<T>> activation(double slope, double gain, double clamp) {
  using A = accumulate_t<T>;
  const A rounded = static_cast<A>(static_cast<T>(static_cast<A>(clamp)));
  return {static_cast<A>(slope), static_cast<A>(gain), rounded};
}

}  // namespace rwm::cuda
