// Compiled once per instruction set (common/each_isa.h): the passes of a layer's second derivative,
// for one style an image. Channels are innermost.

#include "modulated_conv2d/scale_kernels.h"

constexpr std::int64_t kRun = 8;  // pixels that share the loads of scales

// e = a·p + t·x and, if wanted, z = a·x, for pixels [first, last) of image n. p may be absent.
template <class A>
void combine_pixels(const Combination<A>& s, std::int64_t n, std::int64_t first, std::int64_t last,
                    std::int64_t plane, std::int64_t channels) {
  using V = Vec<A>;
  for (std::int64_t q = first; q < last; q += kRun) {
    const std::int64_t run = last - q < kRun ? last - q : kRun, at = (n * plane + q) * channels;
    each_channel<V>(channels, [&](std::int64_t c, auto count) __attribute__((always_inline)) {
      const V a = V::load(s.a + n * channels + c, count),
              t = V::load(s.t + n * channels + c, count);
      for (std::int64_t i = 0; i < run; ++i) {
        const std::int64_t o = at + i * channels + c;
        const V x = V::load(s.x + o, count);
        const V ap = s.p != nullptr ? a * V::load(s.p + o, count) : V::zero();
        fma(t, x, ap).store(s.e + o, count);
        if (s.z != nullptr) (a * x).store(s.z + o, count);
      }
    });
  }
}

// For pixels [first, last) of image n, with dv = act'(dy, y) and m·dy = dv:
//   d_dy = m·(b·f + h·u), du = b·dv, hdv = h·dv, sums[0, o] += sum_p dv·f, sums[1, o] += sum_p
//   dv·u.
// u is given, or read back: m·u = (m·v - m·add)/b, m·v = y, or 0 where y is clamped. Without h,
// neither u nor hdv is there; d_dy may be absent.
template <class A>
void twice_pixels(const Twice<A>& s, A* sums, const Epilogue<A, A>& e, std::int64_t n,
                  std::int64_t first, std::int64_t last, std::int64_t plane,
                  std::int64_t channels) {
  using V = Vec<A>;
  const ActivationOf<V> act(e.activation);
  for (std::int64_t q = first; q < last; q += kRun) {
    const std::int64_t run = last - q < kRun ? last - q : kRun, at = (n * plane + q) * channels;
    const A* noise = e.noise != nullptr ? e.noise + n * e.noise_step + q : nullptr;
    each_channel<V>(channels, [&](std::int64_t c, auto count) __attribute__((always_inline)) {
      const V b = ScaleAt<V, false, A>(e.blend, n, q, plane, channels, c, count).one;
      const V bias = e.bias != nullptr ? V::load(e.bias + c, count) : V::zero();
      const V h = s.h != nullptr ? V::load(s.h + n * channels + c, count) : V::zero();
      const V part = where_positive(abs(b), b, V::set(A(1)));
      V with_f = V::zero(), with_u = V::zero();
      for (std::int64_t i = 0; i < run; ++i) {
        const std::int64_t o = at + i * channels + c;
        const V g = V::load(s.dy + o, count), out = V::load(s.y + o, count),
                f = V::load(s.f + o, count), dv = act.backward(g, out);
        with_f = fma(dv, f, with_f);
        (b * dv).store(s.du + o, count);
        V cotangent = b * f, rest = V::zero();
        if (s.h != nullptr) {
          (h * dv).store(s.hdv + o, count);
          if (s.u != nullptr) {
            const V u = V::load(s.u + o, count);
            with_u = fma(dv, u, with_u);
            cotangent = fma(h, u, cotangent);
          } else {
            const V add = noise != nullptr ? bias + V::set(noise[i] * e.strength) : bias;
            const V free = where_at_most(act.clamp, abs(out), V::zero(), out);
            with_u = with_u + (g * free - dv * add) / part;
            cotangent = cotangent - h / part * add;
            rest = h / part * free;
          }
        }
        if (s.d_dy != nullptr) (act.backward(cotangent, out) + rest).store(s.d_dy + o, count);
      }
      (V::load(sums + c, count) + with_f).store(sums + c, count);
      (V::load(sums + channels + c, count) + with_u).store(sums + channels + c, count);
    });
  }
}

// dx += t·dz and sums[c] += sum_p p·dz, where g = a·dz, for pixels [first, last) of image n; the
// ratio is t/a, p and dx may be absent.
template <class A>
void unscale_pixels(const Unscaling<A>& s, A* sums, std::int64_t n, std::int64_t first,
                    std::int64_t last, std::int64_t plane, std::int64_t channels) {
  using V = Vec<A>;
  for (std::int64_t q = first; q < last; q += kRun) {
    const std::int64_t run = last - q < kRun ? last - q : kRun, at = (n * plane + q) * channels;
    each_channel<V>(channels, [&](std::int64_t c, auto count) __attribute__((always_inline)) {
      const V ratio = V::load(s.ratio + n * channels + c, count);
      V total = V::zero();
      for (std::int64_t i = 0; i < run; ++i) {
        const std::int64_t o = at + i * channels + c;
        const V g = V::load(s.g + o, count);
        if (s.p != nullptr) total = fma(g, V::load(s.p + o, count), total);
        if (s.dx != nullptr) fma(ratio, g, V::load(s.dx + o, count)).store(s.dx + o, count);
      }
      (V::load(sums + c, count) + total).store(sums + c, count);
    });
  }
}
