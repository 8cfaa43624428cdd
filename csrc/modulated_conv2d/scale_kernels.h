// Compiled once per instruction set, as part of a kernel file: no include guard.

#include "bias_act/activation.h"

// f(c, All{}) for whole vectors of channels, f(c, count) for the rest.
template <class V, class F>
RWM_INLINE void each_channel(std::int64_t channels, const F& f) {
  std::int64_t c = 0;
  for (; c + V::width <= channels; c += V::width) f(c, All{});
  if (c < channels) f(c, channels - c);
}

// The scale at a pixel, for one vector of channels.
template <class V, bool Regions, class A>
struct ScaleAt {
  const A *scale, *shares;
  std::int64_t styles, channels, plane;
  V one;

  template <class Count>
  RWM_INLINE ScaleAt(const Blend<A>& b, std::int64_t n, std::int64_t pixel, std::int64_t plane_,
                     std::int64_t channels_, std::int64_t c, Count count)
      : scale(b.scale != nullptr ? b.scale + n * b.styles * channels_ + c : nullptr),
        shares(Regions ? b.regions + n * b.styles * plane_ + pixel : nullptr), styles(b.styles),
        channels(channels_), plane(plane_),
        one(scale != nullptr ? V::load(scale, count) : V::set(A(1))) {}

  template <class Count>
  RWM_INLINE V at(std::int64_t offset, Count count) const {
    if (!Regions) return one;
    V b = V::zero();
    for (std::int64_t k = 0; k < styles; ++k)
      b = fma(V::set(shares[k * plane + offset]), V::load(scale + k * channels, count), b);
    return b;
  }
};

// total[:] += sum over rows of from[row, :].
template <class A>
void add_rows(A* total, const A* from, std::int64_t rows, std::int64_t size) {
  using V = Vec<A>;
  for (std::int64_t r = 0; r < rows; ++r)
    each_channel<V>(size, [&](std::int64_t i, auto count) __attribute__((always_inline)) {
      (V::load(total + i, count) + V::load(from + r * size + i, count)).store(total + i, count);
    });
}
