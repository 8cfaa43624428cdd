// Compiled once per instruction set, as part of a kernel file: no include guard. The transforms
// along one axis; see winograd.h.

// ---- 3×3 with a stride of 1

// Bᵀ d, six numbers to six.
template <class V>
RWM_INLINE void input_points(const V* d, V* out) {
  using A = typename V::Lane;
  const V a = V::set(A(0.70710678118654752440)), b = V::set(A(1.41421356237309504880));
  const V two = V::set(A(-2)), half = V::set(A(-0.5)), sum_ = V::set(A(-2.5));
  const V e1 = fma(two, d[2], d[4]), o1 = fma(two, d[1], d[3]), e2 = fma(half, d[2], d[4]),
          o2 = fma(half, d[1], d[3]);
  out[0] = fma(sum_, d[2], d[0] + d[4]);
  out[1] = fma(a, o1, e1);
  out[2] = e1 - a * o1;
  out[3] = fma(b, o2, e2);
  out[4] = e2 - b * o2;
  out[5] = fma(sum_, d[3], d[1] + d[5]);
}

// Aᵀ m, six numbers to four.
template <class V>
RWM_INLINE void output_points(const V* m, V* out) {
  using A = typename V::Lane;
  const V a = V::set(A(0.70710678118654752440));
  const V s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
  out[0] = m[0] + s1 + s2;
  out[1] = a * fma(V::set(A(2)), d2, d1);
  out[2] = fma(V::set(A(0.5)), s1, s2 + s2);
  out[3] = fma(a, fma(V::set(A(4)), d2, V::set(A(0.5)) * d1), m[5]);
}

// A y, four numbers to six: the transpose of output_points.
template <class V>
RWM_INLINE void gradient_points(const V* y, V* out) {
  using A = typename V::Lane;
  const V a = V::set(A(0.70710678118654752440)), b = V::set(A(1.41421356237309504880));
  const V e1 = fma(V::set(A(0.5)), y[2], y[0]), o1 = a * fma(V::set(A(0.5)), y[3], y[1]);
  const V e2 = fma(V::set(A(2)), y[2], y[0]), o2 = b * fma(V::set(A(2)), y[3], y[1]);
  out[0] = y[0];
  out[1] = e1 + o1;
  out[2] = e1 - o1;
  out[3] = e2 + o2;
  out[4] = e2 - o2;
  out[5] = y[3];
}

// G w, three numbers to six.
template <class V>
RWM_INLINE void weight_points(const V* w, V* out) {
  using A = typename V::Lane;
  const V e1 = V::set(A(-2.0 / 3)) * fma(V::set(A(0.5)), w[2], w[0]),
          o1 = V::set(A(-0.47140452079103168293)) * w[1];  // -√½·2/3
  const V e2 = V::set(A(1.0 / 6)) * fma(V::set(A(2)), w[2], w[0]),
          o2 = V::set(A(0.23570226039551584147)) * w[1];  // √2/6
  out[0] = w[0];
  out[1] = e1 + o1;
  out[2] = e1 - o1;
  out[3] = e2 + o2;
  out[4] = e2 - o2;
  out[5] = w[2];
}

// Gᵀ m, six numbers to three: the transpose of weight_points.
template <class V>
RWM_INLINE void weight_gradient_points(const V* m, V* out) {
  using A = typename V::Lane;
  const V s1 = m[1] + m[2], d1 = m[1] - m[2], s2 = m[3] + m[4], d2 = m[3] - m[4];
  out[0] = fma(V::set(A(-2.0 / 3)), s1, fma(V::set(A(1.0 / 6)), s2, m[0]));
  out[1] = fma(V::set(A(-0.47140452079103168293)), d1, V::set(A(0.23570226039551584147)) * d2);
  out[2] = fma(V::set(A(-1.0 / 3)), s1, fma(V::set(A(1.0 / 3)), s2, m[5]));
}

// ---- 3×3 with a stride of 2: points 0, 1, -1, ½, ∞ of the even places, then the four odd ones

// Four narrow numbers to nine.
template <class V>
RWM_INLINE void narrow_points(const V* x, V* out) {
  using A = typename V::Lane;
  const V e = x[0] + x[2], o = x[1] + x[3];
  out[0] = x[0];
  out[1] = e + o;
  out[2] = e - o;
  out[3] = fma(V::set(A(0.5)), fma(V::set(A(0.25)), x[3], x[1]), fma(V::set(A(0.25)), x[2], x[0]));
  out[4] = x[3];
  for (int j = 0; j < 4; ++j) out[5 + j] = x[j];
}

// The transpose: nine numbers to four.
template <class V>
RWM_INLINE void narrow_sums(const V* m, V* out) {
  using A = typename V::Lane;
  const V e = m[1] + m[2], o = m[1] - m[2];
  out[0] = e + m[0] + (m[3] + m[5]);
  out[1] = o + fma(V::set(A(0.5)), m[3], m[6]);
  out[2] = e + fma(V::set(A(0.25)), m[3], m[7]);
  out[3] = o + fma(V::set(A(0.125)), m[3], m[4] + m[8]);
}

// Nine products to nine wide numbers: the even ones are the coefficients of the polynomial through
// the first five.
template <class V>
RWM_INLINE void wide_sums(const V* m, V* out) {
  using A = typename V::Lane;
  const V d = m[1] - m[2], q2 = (m[1] + m[2]) - (m[0] + m[4]);
  const V q3 = fma(
      V::set(A(8.0 / 3)), m[0],
      fma(V::set(A(2.0 / 3)), q2, fma(V::set(A(1.0 / 6)), m[4], fma(V::set(A(4.0 / 3)), d, m[3]))));
  out[0] = m[0];
  out[2] = d - q3;
  out[4] = q2;
  out[6] = q3;
  out[8] = m[4];
  for (int j = 0; j < 4; ++j) out[2 * j + 1] = m[5 + j];
}

// The transpose: nine wide numbers to nine.
template <class V>
RWM_INLINE void wide_points(const V* g, V* out) {
  using A = typename V::Lane;
  const V e3 = g[6] - g[2], e2 = fma(V::set(A(2.0 / 3)), e3, g[4]),
          ed = fma(V::set(A(4.0 / 3)), e3, g[2]);
  out[0] = fma(V::set(A(8.0 / 3)), e3, g[0] - e2);
  out[1] = e2 + ed;
  out[2] = e2 - ed;
  out[3] = e3;
  out[4] = fma(V::set(A(1.0 / 6)), e3, g[8] - e2);
  for (int j = 0; j < 4; ++j) out[5 + j] = g[2 * j + 1];
}

// Three taps to six: the five points of (w0, w2), with the factors of wide_sums in them, and w1.
template <class V>
RWM_INLINE void stride_weight_points(const V* w, V* out) {
  using A = typename V::Lane;
  const V half = V::set(A(0.5));
  out[0] = w[0];
  out[1] = half * (w[0] + w[2]);
  out[2] = half * (w[0] - w[2]);
  out[3] = V::set(A(-8.0 / 3)) * fma(half, w[2], w[0]);
  out[4] = w[2];
  out[5] = w[1];
}

// The transpose: six numbers to three.
template <class V>
RWM_INLINE void stride_weight_sums(const V* m, V* out) {
  using A = typename V::Lane;
  const V half = V::set(A(0.5));
  out[0] = fma(half, m[1] + m[2], fma(V::set(A(-8.0 / 3)), m[3], m[0]));
  out[1] = m[5];
  out[2] = fma(half, m[1] - m[2], fma(V::set(A(-4.0 / 3)), m[3], m[4]));
}
