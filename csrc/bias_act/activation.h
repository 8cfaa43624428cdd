// Compiled once per instruction set, as part of a kernel file: no include guard.
//
// y = clamp(act(t)·gain), act(t) = t or slope·t where t <= 0, and its derivative, read from y.

template <class V>
struct ActivationOf {
  V slope, gain, clamp;

  template <class Settings>
  RWM_INLINE explicit ActivationOf(const Settings& s)
      : slope(V::set(s.slope)), gain(V::set(s.gain)), clamp(V::set(s.clamp)) {}

  RWM_INLINE V forward(V t) const {
    const V y = where_positive(t, t, t * slope) * gain;
    return min(clamp, max(V::zero() - clamp, y));  // NaN stays NaN
  }
  RWM_INLINE V backward(V dy, V y) const {
    const V dt = dy * gain;
    return where_at_most(clamp, abs(y), V::zero(), where_positive(y, dt, dt * slope));
  }
};
