// Compiled once per instruction set (common/each_isa.h): everything around a convolution that is
// not ours. Channels are innermost.
//
// All of them go through a few pixels of one image at a time, vector of channels by vector: scales
// are loaded once for the few, and sums over pixels are touched once.

#include "modulated_conv2d/scale_kernels.h"

constexpr std::int64_t kFew = 8;

// z = a·x for pixels [first, last) of image n; x, z [N, H·W, C].
template <bool Regions, class T, class A>
void scale_pixels(const T* x, T* z, const Blend<A>& a, std::int64_t n, std::int64_t first,
                  std::int64_t last, std::int64_t plane, std::int64_t channels) {
  using V = Vec<A>;
  for (std::int64_t p = first; p < last; p += kFew) {
    const std::int64_t few = last - p < kFew ? last - p : kFew, at = (n * plane + p) * channels;
    each_channel<V>(channels, [&](std::int64_t c, auto count) __attribute__((always_inline)) {
      const ScaleAt<V, Regions, A> s(a, n, p, plane, channels, c, count);
      for (std::int64_t i = 0; i < few; ++i)
        (s.at(i, count) * V::load(x + at + i * channels + c, count))
            .store(z + at + i * channels + c, count);
    });
  }
}

// dx = a·dz and sums[k, c] += sum_p r_k·x·dz, for pixels [first, last) of image n. dx or sums may
// be absent.
template <bool Regions, class T, class A>
void adjoint_pixels(const T* dz, const T* x, T* dx, A* sums, const Blend<A>& a, std::int64_t n,
                    std::int64_t first, std::int64_t last, std::int64_t plane,
                    std::int64_t channels) {
  using V = Vec<A>;
  for (std::int64_t p = first; p < last; p += kFew) {
    const std::int64_t few = last - p < kFew ? last - p : kFew, at = (n * plane + p) * channels;
    each_channel<V>(channels, [&](std::int64_t c, auto count) __attribute__((always_inline)) {
      const ScaleAt<V, Regions, A> s(a, n, p, plane, channels, c, count);
      V total = V::zero();
      for (std::int64_t i = 0; i < few; ++i) {
        const V g = V::load(dz + at + i * channels + c, count);
        if (dx != nullptr) (s.at(i, count) * g).store(dx + at + i * channels + c, count);
        if (sums == nullptr) continue;
        const V product = g * V::load(x + at + i * channels + c, count);
        total = total + product;
        for (std::int64_t k = 0; Regions && k < a.styles; ++k)
          fma(V::set(s.shares[k * plane + i]), product, V::load(sums + k * channels + c, count))
              .store(sums + k * channels + c, count);
      }
      if (sums != nullptr && !Regions) (V::load(sums + c, count) + total).store(sums + c, count);
    });
  }
}

// y = clamp(act(b·u + noise + bias)·gain) for pixels [first, last) of image n.
template <bool Regions, class T, class A>
void epilogue_pixels(const T* u, T* y, const Epilogue<T, A>& e, std::int64_t n, std::int64_t first,
                     std::int64_t last, std::int64_t plane, std::int64_t channels) {
  using V = Vec<A>;
  const ActivationOf<V> act(e.activation);
  for (std::int64_t p = first; p < last; p += kFew) {
    const std::int64_t few = last - p < kFew ? last - p : kFew, at = (n * plane + p) * channels;
    const A* noise = e.noise != nullptr ? e.noise + n * e.noise_step + p : nullptr;
    each_channel<V>(channels, [&](std::int64_t c, auto count) __attribute__((always_inline)) {
      const ScaleAt<V, Regions, A> b(e.blend, n, p, plane, channels, c, count);
      const V bias = e.bias != nullptr ? V::load(e.bias + c, count) : V::zero();
      for (std::int64_t i = 0; i < few; ++i) {
        const V add = noise != nullptr ? bias + V::set(noise[i] * e.strength) : bias;
        act.forward(fma(b.at(i, count), V::load(u + at + i * channels + c, count), add))
            .store(y + at + i * channels + c, count);
      }
    });
  }
}

// The epilogue's derivative for pixels [first, last) of image n:
//   dv = act'(dy, y), du = b·dv, sums[0, o] += sum_p dv, sums[1 + k, o] += sum_p r_k·dv·u,
//   noise_sums[p] = sum_o dv.
// u is given, or read back: dv·u = (dy·y - dv·(noise + bias))/b, since act'(v)·v = act(v); 0 where
// y is clamped or b is 0. du, noise_sums and the products may be absent.
template <bool Regions, class T, class A>
void epilogue_backward_pixels(const EpilogueGradients<T, A>& gradients, A* sums,
                              const Epilogue<T, A>& e, std::int64_t n, std::int64_t first,
                              std::int64_t last, std::int64_t plane, std::int64_t channels) {
  using V = Vec<A>;
  const T *dy = gradients.dy, *y = gradients.y, *u = gradients.u;
  T* du = gradients.du;
  A* noise_sums = gradients.noise_sums;
  const ActivationOf<V> act(e.activation);
  for (std::int64_t p = first; p < last; p += kFew) {
    const std::int64_t few = last - p < kFew ? last - p : kFew, at = (n * plane + p) * channels;
    const A* noise = e.noise != nullptr ? e.noise + n * e.noise_step + p : nullptr;
    V over_channels[kFew];
    for (std::int64_t i = 0; i < few; ++i) over_channels[i] = V::zero();
    each_channel<V>(channels, [&](std::int64_t c, auto count) __attribute__((always_inline)) {
      const ScaleAt<V, Regions, A> scale(e.blend, n, p, plane, channels, c, count);
      const V bias = e.bias != nullptr ? V::load(e.bias + c, count) : V::zero();
      V total = V::zero(), total_product = V::zero();
      for (std::int64_t i = 0; i < few; ++i) {
        const std::int64_t o = at + i * channels + c;
        const V g = V::load(dy + o, count), out = V::load(y + o, count), dv = act.backward(g, out);
        const V b = scale.at(i, count);
        total = total + dv;
        if (noise_sums != nullptr) over_channels[i] = over_channels[i] + dv;
        if (du != nullptr) (b * dv).store(du + o, count);
        if (!gradients.products) continue;
        V product;
        if (u != nullptr) {
          product = dv * V::load(u + o, count);
        } else {
          const V add = noise != nullptr ? bias + V::set(noise[i] * e.strength) : bias;
          product = where_at_most(act.clamp, abs(out), V::zero(), g * out) - dv * add;
          if (Regions) product = product / where_positive(abs(b), b, V::set(A(1)));
        }
        total_product = total_product + product;
        for (std::int64_t k = 0; Regions && k < e.blend.styles; ++k) {
          A* to = sums + (1 + k) * channels + c;
          fma(V::set(scale.shares[k * plane + i]), product, V::load(to, count)).store(to, count);
        }
      }
      (V::load(sums + c, count) + total).store(sums + c, count);
      if (gradients.products && !Regions) {
        const V whole =
            u != nullptr ? total_product
                         : total_product / where_positive(abs(scale.one), scale.one, V::set(A(1)));
        (V::load(sums + channels + c, count) + whole).store(sums + channels + c, count);
      }
    });
    for (std::int64_t i = 0; i < few && noise_sums != nullptr; ++i)
      noise_sums[n * plane + p + i] = sum(over_channels[i]);
  }
}

// Of n numbers: the largest |x| in each lane, the sum of |x|, and how many are not 0. NaN is in the
// sum alone.
template <class A>
void extent(const A* x, std::int64_t n, A* largest, A& total, A& count) {
  using V = Vec<A>;
  V most = V::zero(), sizes = V::zero(), some = V::zero();
  each_channel<V>(n, [&](std::int64_t i, auto lanes) __attribute__((always_inline)) {
    const V size = abs(V::load(x + i, lanes));
    most = max(most, size);
    sizes = sizes + size;
    some = some + where_positive(size, V::set(A(1)), V::zero());
  });
  most.store(largest);
  total = sum(sizes);
  count = sum(some);
}

// q[i] = sum of squares of the `taps` numbers of kernel i.
template <class A, class S>
void add_squares(const A* w, A* q, const S& s, std::int64_t in_c, std::int64_t taps) {
  using V = Vec<A>;
  if (s.in == 1)
    return each_channel<V>(in_c, [&](std::int64_t i, auto count) __attribute__((always_inline)) {
      V total = V::zero();
      for (std::int64_t t = 0; t < taps; ++t) {
        const V v = V::load(w + t * s.tap + i, count);
        total = fma(v, v, total);
      }
      total.store(q + i, count);
    });
  for (std::int64_t i = 0; i < in_c; ++i, w += s.in) {
    A total = 0;
    for (std::int64_t t = 0; t < taps; ++t) total += w[t * s.tap] * w[t * s.tap];
    q[i] = total;
  }
}

// d[k, o] = rsqrt(sum_i s[k, i]²·q[o, i] + eps) for rows k of [first, last).
template <class A>
void demodulate(const A* q, const A* s, A* d, A eps, std::int64_t first, std::int64_t last,
                std::int64_t out_c, std::int64_t in_c) {
  using V = Vec<A>;
  for (std::int64_t k = first; k < last; ++k)
    for (std::int64_t o = 0; o < out_c; ++o) {
      V total = V::zero();
      each_channel<V>(in_c, [&](std::int64_t i, auto count) __attribute__((always_inline)) {
        const V style = V::load(s + k * in_c + i, count);
        total = fma(style * style, V::load(q + o * in_c + i, count), total);
      });
      d[k * out_c + o] = A(1) / __builtin_sqrt(sum(total) + eps);
    }
}

// With dq = -½ d³ dd: ds[k, i] += 2 s[k, i]·sum_o dq[k, o]·q[o, i], for rows k of [first, last).
template <class A>
void demodulate_backward_styles(const A* q, const A* s, const A* d, const A* dd, A* ds,
                                std::int64_t first, std::int64_t last, std::int64_t out_c,
                                std::int64_t in_c) {
  using V = Vec<A>;
  for (std::int64_t k = first; k < last; ++k)
    each_channel<V>(in_c, [&](std::int64_t i, auto count) __attribute__((always_inline)) {
      V total = V::zero();
      for (std::int64_t o = 0; o < out_c; ++o) {
        const A a = d[k * out_c + o];
        total =
            fma(V::set(-a * a * a * dd[k * out_c + o]), V::load(q + o * in_c + i, count), total);
      }
      fma(total, V::load(s + k * in_c + i, count), V::load(ds + k * in_c + i, count))
          .store(ds + k * in_c + i, count);
    });
}

// scale[o, i] = sum_k dq[k, o]·s[k, i]², for output channels [first, last): dW = 2 W·scale.
template <class A>
void demodulate_backward_weights(const A* s, const A* d, const A* dd, A* scale, std::int64_t rows,
                                 std::int64_t first, std::int64_t last, std::int64_t out_c,
                                 std::int64_t in_c) {
  using V = Vec<A>;
  for (std::int64_t o = first; o < last; ++o)
    each_channel<V>(in_c, [&](std::int64_t i, auto count) __attribute__((always_inline)) {
      V total = V::zero();
      for (std::int64_t k = 0; k < rows; ++k) {
        const A a = d[k * out_c + o];
        const V style = V::load(s + k * in_c + i, count);
        total = fma(V::set(A(-0.5) * a * a * a * dd[k * out_c + o]), style * style, total);
      }
      total.store(scale + o * in_c + i, count);
    });
}
