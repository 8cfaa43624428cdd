// Compiled once per instruction set (common/each_isa.h). Channels are innermost everywhere; see winograd.h for the algorithm.

#include "modulated_conv2d/scale_kernels.h"

// Rows of a register tile: with two vectors a row the accumulators fill 12 of 16 registers, or 24 of AVX-512's 32.
template <class V>
struct RegisterTile {
  static constexpr int rows = V::width == 16 ? 12 : 6;
  static constexpr std::int64_t columns = 2 * V::width;
};

// c[r, :] (+)= sum_k a[r·lda + k·step] · b[k·ldb + :], r < Rows, over two vectors of columns.
template <int Rows, bool Add, class V, class A>
RWM_INLINE void multiply_rows(const A* a, std::int64_t lda, std::int64_t step, const A* b, std::int64_t ldb, A* c, std::int64_t ldc,
                              std::int64_t depth) {
  V acc[Rows][2];
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
    acc[r][0] = Add ? V::load(c + r * ldc) : V::zero();
    acc[r][1] = Add ? V::load(c + r * ldc + V::width) : V::zero();
  }
  for (std::int64_t k = 0; k < depth; ++k) {
    const V b0 = V::load(b), b1 = V::load(b + V::width);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const V x = V::set(a[r * lda]);
      acc[r][0] = fma(x, b0, acc[r][0]);
      acc[r][1] = fma(x, b1, acc[r][1]);
    }
    a += step;
    b += ldb;
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
    acc[r][0].store(c + r * ldc);
    acc[r][1].store(c + r * ldc + V::width);
  }
}

template <bool Add, class V, class A>
void multiply(const A* a, std::int64_t lda, std::int64_t step, const A* b, std::int64_t ldb, A* c, std::int64_t ldc, std::int64_t rows,
              std::int64_t depth) {
  constexpr int full = RegisterTile<V>::rows;
  std::int64_t r = 0;
  for (; r + full <= rows; r += full) multiply_rows<full, Add, V>(a + r * lda, lda, step, b, ldb, c + r * ldc, ldc, depth);
  for (; r + 3 <= rows; r += 3) multiply_rows<3, Add, V>(a + r * lda, lda, step, b, ldb, c + r * ldc, ldc, depth);
  for (; r < rows; ++r) multiply_rows<1, Add, V>(a + r * lda, lda, step, b, ldb, c + r * ldc, ldc, depth);
}

// Bᵀ d, six numbers to six.
template <class V>
RWM_INLINE void input_points(const V* d, V* out) {
  using A = typename V::Lane;
  const V a = V::set(A(0.70710678118654752440)), b = V::set(A(1.41421356237309504880));
  const V two = V::set(A(-2)), half = V::set(A(-0.5)), sum_ = V::set(A(-2.5));
  const V e1 = fma(two, d[2], d[4]), o1 = fma(two, d[1], d[3]), e2 = fma(half, d[2], d[4]), o2 = fma(half, d[1], d[3]);
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

template <class Plan>
RWM_INLINE void locate(const Plan& p, std::int64_t t, std::int64_t& n, std::int64_t& ty, std::int64_t& tx) {
  tx = t % p.tiles_x;
  ty = t / p.tiles_x % p.tiles_y;
  n = t / p.tiles_x / p.tiles_y;
}

// Bᵀ(a·x)B of one tile and one vector of channels, into 36 places `step` apart. shares: the regions at each of the 36 pixels, [K, 36].
template <class V, bool Regions, class T, class A, class Count>
RWM_INLINE void input_tile(const T* const* source, const A* scale, const A* shares, std::int64_t styles, std::int64_t channels, std::int64_t c,
                           A* to, std::int64_t step, Count count) {
  const V one = scale != nullptr ? V::load(scale + c, count) : V::set(A(1));
  V e[6][6];
  for (int i = 0; i < 6; ++i) {
    V row[6];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      V a = one;
      if (Regions) {
        a = V::zero();
        for (std::int64_t k = 0; k < styles; ++k) a = fma(V::set(shares[k * 36 + i * 6 + j]), V::load(scale + k * channels + c, count), a);
      }
      row[j] = a * V::load(source[i * 6 + j] + c, count);
    }
    input_points(row, e[i]);
  }
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) {
    V column[6], out[6];
    for (int i = 0; i < 6; ++i) column[i] = e[i][j];
    input_points(column, out);
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) out[i].store(to + (i * 6 + j) * step + c, count);
  }
}

// The input transform of tiles [first, last) into points [36, room, ld], tile t at row t - first, columns (input phase, channel). `zeros` is
// a pixel outside the image; shares is scratch for [K, 36].
template <class T, class A, class Plan, class B>
void transform_input(const Plan& p, const T* x, const T* zeros, const B& blend, std::int64_t first, std::int64_t last, A* points,
                     std::int64_t room, std::int64_t ld, A* shares) {
  using V = Vec<A>;
  const std::int64_t C = p.in_c, K = blend.styles, plane = p.in_h * p.in_w;
  for (std::int64_t t = first; t < last; ++t) {
    std::int64_t n, ty, tx;
    locate(p, t, n, ty, tx);
    for (std::int64_t phase = 0; phase < p.in_step * p.in_step; ++phase) {
      const T* source[36];
      for (std::int64_t q = 0; q < 36; ++q) {
        const std::int64_t y = (ty * 4 + q / 6 + p.off_y) * p.in_step + phase / p.in_step;
        const std::int64_t z = (tx * 4 + q % 6 + p.off_x) * p.in_step + phase % p.in_step;
        const bool inside = y >= 0 && y < p.in_h && z >= 0 && z < p.in_w;
        source[q] = inside ? x + (n * plane + y * p.in_w + z) * C : zeros;
        if (blend.regions != nullptr)
          for (std::int64_t k = 0; k < K; ++k) shares[k * 36 + q] = inside ? blend.regions[(n * K + k) * plane + y * p.in_w + z] : A(0);
      }
      const A* scale = blend.scale != nullptr ? blend.scale + n * K * C : nullptr;
      A* to = points + (t - first) * ld + phase * C;
      const auto step = [&](std::int64_t c, auto count) __attribute__((always_inline)) {
        if (blend.regions != nullptr) return input_tile<V, true>(source, scale, shares, K, C, c, to, room * ld, count);
        return input_tile<V, false>(source, scale, shares, K, C, c, to, room * ld, count);
      };
      each_channel<V>(C, step);
    }
  }
}

// A du Aᵀ of tiles [first, last) into points [36, room, ld]; du [N, H, W, O] is read at the output phases, columns (phase, o).
template <class T, class A, class Plan>
void transform_gradient(const Plan& p, const T* du, std::int64_t first, std::int64_t last, A* points, std::int64_t room, std::int64_t ld) {
  using V = Vec<A>;
  const std::int64_t C = p.out_c;
  for (std::int64_t t = first; t < last; ++t) {
    std::int64_t n, ty, tx;
    locate(p, t, n, ty, tx);
    for (std::int64_t phase = 0; phase < p.out_step * p.out_step; ++phase) {
      A* to = points + (t - first) * ld + phase * C;
      const auto step = [&](std::int64_t c, auto count) __attribute__((always_inline)) {
        V d[4][4], e[4][6];
        for (int i = 0; i < 4; ++i)
          for (int j = 0; j < 4; ++j) {
            const std::int64_t y = (ty * 4 + i) * p.out_step + phase / p.out_step, z = (tx * 4 + j) * p.out_step + phase % p.out_step;
            const bool inside = y < p.out_h && z < p.out_w;
            d[i][j] = inside ? V::load(du + ((n * p.out_h + y) * p.out_w + z) * C + c, count) : V::zero();
          }
        for (int i = 0; i < 4; ++i) gradient_points(d[i], e[i]);
        for (int j = 0; j < 6; ++j) {
          V column[4], out[6];
          for (int i = 0; i < 4; ++i) column[i] = e[i][j];
          gradient_points(column, out);
          for (int i = 0; i < 6; ++i) out[i].store(to + (i * 6 + j) * room * ld + c, count);
        }
      };
      each_channel<V>(C, step);
    }
  }
}

// u of one tile and one vector of channels: Aᵀ m A.
template <class V, class A>
RWM_INLINE void output_tile(const A* m, std::int64_t step, V (*u)[4]) {
  V half[6][4];
  for (int i = 0; i < 6; ++i) {
    V row[6];
    for (int j = 0; j < 6; ++j) row[j] = V::load(m + (i * 6 + j) * step);
    output_points(row, half[i]);
  }
  for (int j = 0; j < 4; ++j) {
    V column[6], out[4];
    for (int i = 0; i < 6; ++i) column[i] = half[i][j];
    output_points(column, out);
    for (int i = 0; i < 4; ++i) u[i][j] = out[i];
  }
}

// Where the pixels of a tile lie: offsets in pixels, and how much of the tile is inside the image.
struct Window {
  std::int64_t image, corner, row, column, rows, columns;
};

template <class V, bool Whole, bool Regions, class T, class A, class E, class Count>
RWM_INLINE void write_activated(const Window& w, const V (*u)[4], T* y, const E& e, std::int64_t n, std::int64_t plane, std::int64_t O,
                                std::int64_t o, Count count) {
  const ScaleAt<V, Regions, A> b(e.blend, n, w.corner, plane, O, o, count);
  const ActivationOf<V> act(e.activation);
  const A* noise = e.noise != nullptr ? e.noise + n * e.noise_step + w.corner : nullptr;
  const V bias = e.bias != nullptr ? V::load(e.bias + o, count) : V::zero();
  T* to = y + (w.image + w.corner) * O + o;
  for (std::int64_t i = 0; i < (Whole ? 4 : w.rows); ++i)
    for (std::int64_t j = 0; j < (Whole ? 4 : w.columns); ++j) {
      const std::int64_t at = i * w.row + j * w.column;
      const V add = noise != nullptr ? bias + V::set(noise[at]) : bias;
      act.forward(fma(b.at(at, count), u[i][j], add)).store(to + at * O, count);
    }
}

// dx = b·dz, and the products sum_p r_k·x·dz of a tile, to row `row`. y or the products may be absent.
template <class V, bool Regions, class T, class A, class E, class Count>
RWM_INLINE void write_adjoint(const Window& w, const V (*u)[4], T* y, const E& e, std::int64_t n, std::int64_t row, std::int64_t plane,
                              std::int64_t O, std::int64_t o, Count count) {
  const ScaleAt<V, Regions, A> b(e.blend, n, w.corner, plane, O, o, count);
  const std::int64_t K = e.blend.styles, offset = (w.image + w.corner) * O + o;
  A* sums = e.products != nullptr ? e.products + row * K * O + o : nullptr;
  for (std::int64_t k = 0; Regions && sums != nullptr && k < K; ++k) V::zero().store(sums + k * O, count);
  V product = V::zero();
  for (std::int64_t i = 0; i < w.rows; ++i)
    for (std::int64_t j = 0; j < w.columns; ++j) {
      const std::int64_t at = i * w.row + j * w.column;
      if (y != nullptr) (b.at(at, count) * u[i][j]).store(y + offset + at * O, count);
      if (sums == nullptr) continue;
      const V x = V::load(e.x + offset + at * O, count) * u[i][j];
      product = product + x;
      for (std::int64_t k = 0; Regions && k < K; ++k)
        fma(V::set(b.shares[k * plane + at]), x, V::load(sums + k * O, count)).store(sums + k * O, count);
    }
  if (sums != nullptr && !Regions) product.store(sums, count);
}

// The output transform of tiles [first, last) for channels [o, o + columns) of one output phase, and the epilogue. m is
// [36, room, ld].
template <class T, class A, class Plan, class E>
void transform_output(const Plan& p, const A* m, std::int64_t room, std::int64_t ld, T* y, const E& e, std::int64_t phase, std::int64_t o, std::int64_t columns,
                      std::int64_t first, std::int64_t last) {
  using V = Vec<A>;
  const std::int64_t plane = p.out_h * p.out_w, s = p.out_step;
  for (std::int64_t t = first; t < last; ++t) {
    std::int64_t n, ty, tx;
    locate(p, t, n, ty, tx);
    const std::int64_t y0 = ty * 4 * s + phase / s, x0 = tx * 4 * s + phase % s;
    const std::int64_t rows = (p.out_h - y0 + s - 1) / s, cols = (p.out_w - x0 + s - 1) / s;
    const Window w{n * plane, y0 * p.out_w + x0, s * p.out_w, s, rows < 4 ? rows : 4, cols < 4 ? cols : 4};
    const bool whole = rows >= 4 && cols >= 4;
    const auto step = [&](std::int64_t c, auto count) __attribute__((always_inline)) {
      V u[4][4];
      output_tile(m + (t - first) * ld + c, room * ld, u);
      if (!e.activate) {
        if (e.blend.regions != nullptr) return write_adjoint<V, true, T, A>(w, u, y, e, n, t * s * s + phase, plane, p.out_c, o + c, count);
        return write_adjoint<V, false, T, A>(w, u, y, e, n, t * s * s + phase, plane, p.out_c, o + c, count);
      }
      if (e.blend.regions != nullptr) return write_activated<V, false, true, T, A>(w, u, y, e, n, plane, p.out_c, o + c, count);
      if (whole) return write_activated<V, true, false, T, A>(w, u, y, e, n, plane, p.out_c, o + c, count);
      return write_activated<V, false, false, T, A>(w, u, y, e, n, plane, p.out_c, o + c, count);
    };
    each_channel<V>(columns, step);
  }
}

// Tiles [first, last): input transform, 36 products with each panel of the weights, output transform. points [36, room, ld >= depth],
// m [36, room, columns of a panel] and shares [K, 36] are scratch; weights are [output phase, panel, 36, slab].
template <class T, class A, class Plan, class E>
void winograd_block(const Plan& p, const T* x, const T* zeros, const Blend<A>& blend, const A* weights, std::int64_t slab, T* y, const E& e,
                    A* points, A* m, A* shares, std::int64_t room, std::int64_t ld, std::int64_t first, std::int64_t last) {
  using V = Vec<A>;
  constexpr std::int64_t wide = RegisterTile<V>::columns;
  const std::int64_t depth = p.depth(), panels = (p.out_c + wide - 1) / wide;
  transform_input<T, A>(p, x, zeros, blend, first, last, points, room, ld, shares);
  for (std::int64_t phase = 0; phase < p.out_step * p.out_step; ++phase)
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      const A* w = weights + (phase * panels + panel) * 36 * slab;
      for (std::int64_t q = 0; q < 36; ++q)
        multiply<false, V>(points + q * room * ld, ld, 1, w + q * slab, wide, m + q * room * wide, wide, last - first, depth);
      const std::int64_t o = panel * wide, left = p.out_c - o;
      transform_output<T, A>(p, m, room, wide, y, e, phase, o, left < wide ? left : wide, first, last);
    }
}

template <class A>
std::int64_t panel_columns() {
  return RegisterTile<Vec<A>>::columns;
}

// G w, three numbers to six.
template <class V>
RWM_INLINE void weight_points(V w0, V w1, V w2, V* out) {
  using A = typename V::Lane;
  const V e1 = V::set(A(-2.0 / 3)) * fma(V::set(A(0.5)), w2, w0), o1 = V::set(A(-0.47140452079103168293)) * w1;  // -√½·2/3
  const V e2 = V::set(A(1.0 / 6)) * fma(V::set(A(2)), w2, w0), o2 = V::set(A(0.23570226039551584147)) * w1;       // √2/6
  out[0] = w0;
  out[1] = e1 + o1;
  out[2] = e1 - o1;
  out[3] = e2 + o2;
  out[4] = e2 - o2;
  out[5] = w2;
}

// taps[phase]: 3×3 matrices that fold the filter into the kernel, for one axis; null: none.
template <class V, class A>
RWM_INLINE void fold(const A* taps, V* w, std::int64_t step) {
  const V a = w[0], b = w[step], c = w[2 * step];
  for (std::int64_t i = 0; i < 3; ++i)
    w[i * step] = fma(V::set(taps[i * 3]), a, fma(V::set(taps[i * 3 + 1]), b, V::set(taps[i * 3 + 2]) * c));
}

// One panel of weights for one output phase: out [36, slab >= depth·columns], rows (input phase, k), columns n. w(k, n) lies at
// w + k·sk + n·sn, nine numbers, read backwards if `flip`. taps_y, taps_x: for each input phase, see fold.
template <class A>
void transform_weights(const A* w, std::int64_t sk, std::int64_t sn, std::int64_t in_c, std::int64_t out_c, std::int64_t in_step, bool flip,
                       const A* taps_y, const A* taps_x, std::int64_t panel, A* out, std::int64_t slab) {
  using V = Vec<A>;
  constexpr std::int64_t wide = RegisterTile<V>::columns;
  for (std::int64_t phase = 0; phase < in_step * in_step; ++phase)
    for (std::int64_t k = 0; k < in_c; ++k)
      for (std::int64_t half = 0; half < 2; ++half) {
        const std::int64_t n0 = panel * wide + half * V::width;
        A raw[9][V::width];
        for (std::int64_t l = 0; l < V::width; ++l) {
          const A* from = w + k * sk + (n0 + l) * sn;
          if (n0 + l < out_c) {
            for (std::int64_t q = 0; q < 9; ++q) raw[q][l] = from[q];
          } else {
            for (std::int64_t q = 0; q < 9; ++q) raw[q][l] = A(0);
          }
        }
        V v[9], rows[6][3];
        for (int q = 0; q < 9; ++q) v[q] = V::load(raw[flip ? 8 - q : q]);
        if (taps_y != nullptr) {
          for (int j = 0; j < 3; ++j) fold(taps_y + 9 * (phase / in_step), v + j, 3);
          for (int i = 0; i < 3; ++i) fold(taps_x + 9 * (phase % in_step), v + 3 * i, 1);
        }
        for (int j = 0; j < 3; ++j) {
          V column[6];
          weight_points(v[j], v[3 + j], v[6 + j], column);
          for (int i = 0; i < 6; ++i) rows[i][j] = column[i];
        }
        A* to = out + (phase * in_c + k) * wide + half * V::width;
        for (int i = 0; i < 6; ++i) {
          V row[6];
          weight_points(rows[i][0], rows[i][1], rows[i][2], row);
          for (int j = 0; j < 6; ++j) row[j].store(to + (i * 6 + j) * slab);
        }
      }
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

// The transpose of `fold`.
template <class V, class A>
RWM_INLINE void unfold(const A* taps, V* w, std::int64_t step) {
  const V a = w[0], b = w[step], c = w[2 * step];
  for (std::int64_t i = 0; i < 3; ++i) w[i * step] = fma(V::set(taps[i]), a, fma(V::set(taps[3 + i]), b, V::set(taps[6 + i]) * c));
}

// products [depth, ldg] of one point: (+)= sum over tiles of points[t, :]ᵀ·gradients[t, :].
template <bool Add, class A>
void multiply_gradients(const A* points, std::int64_t ldp, const A* gradients, std::int64_t ldg, A* products, std::int64_t tiles,
                        std::int64_t depth) {
  using V = Vec<A>;
  for (std::int64_t n = 0; n < ldg; n += RegisterTile<V>::columns)
    multiply<Add, V>(points, 1, ldp, gradients + n, ldg, products + n, ldg, depth, tiles);
}

// dw[o, i, :] = fold ᵀ(Gᵀ P G) + 2·w[o, i, :]·scale[o, i], for output channels [first, last) and all inputs; P is [36, depth, ld], columns
// (output phase, o). taps_y, taps_x: for each phase of whichever side has two, or null.
template <class A>
void finish_weight_gradient(const A* products, std::int64_t ld, std::int64_t in_c, std::int64_t out_c, std::int64_t in_step,
                            std::int64_t out_step, bool flip, const A* taps_y, const A* taps_x, const A* w, const A* scale, A* dw,
                            std::int64_t first, std::int64_t last) {
  using V = Vec<A>;
  const std::int64_t depth = in_step * in_step * in_c, step = in_step * out_step;  // at most one of them is 2
  for (std::int64_t i = 0; i < in_c; ++i)
    for (std::int64_t o = first; o < last; o += V::width) {
      const std::int64_t some = last - o < V::width ? last - o : V::width;
      V total[9];
      for (int q = 0; q < 9; ++q) total[q] = V::zero();
      for (std::int64_t phase = 0; phase < step * step; ++phase) {
        const A* from = products + ((in_step > 1 ? phase * in_c : 0) + i) * ld + (out_step > 1 ? phase * out_c : 0) + o;
        V rows[3][6], v[9];
        for (int j = 0; j < 6; ++j) {
          V column[6], out[3];
          for (int q = 0; q < 6; ++q) column[q] = V::load(from + (q * 6 + j) * depth * ld, some);
          weight_gradient_points(column, out);
          for (int q = 0; q < 3; ++q) rows[q][j] = out[q];
        }
        for (int q = 0; q < 3; ++q) weight_gradient_points(rows[q], v + 3 * q);
        if (taps_y != nullptr) {
          for (int j = 0; j < 3; ++j) unfold(taps_y + 9 * (phase / step), v + j, 3);
          for (int q = 0; q < 3; ++q) unfold(taps_x + 9 * (phase % step), v + 3 * q, 1);
        }
        for (int q = 0; q < 9; ++q) total[q] = total[q] + v[q];
      }
      A raw[9][V::width];
      for (int q = 0; q < 9; ++q) total[q].store(raw[flip ? 8 - q : q]);
      for (std::int64_t l = 0; l < some; ++l) {
        const std::int64_t at = (o + l) * in_c + i;
        const A factor = scale != nullptr ? 2 * scale[at] : A(0);
        for (std::int64_t q = 0; q < 9; ++q) dw[at * 9 + q] = raw[q][l] + factor * w[at * 9 + q];
      }
    }
}
