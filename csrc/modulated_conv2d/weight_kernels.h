// Compiled once per instruction set, as part of a kernel file: no include guard. Kernels to weights
// of products, and back.

template <bool Wide, class V>
RWM_INLINE void taps_to_points(const V* w, V* out) {
  if (Wide) return stride_weight_points(w, out);
  return weight_points(w, out);
}

template <bool Wide, class V>
RWM_INLINE void points_to_taps(const V* m, V* out) {
  if (Wide) return stride_weight_sums(m, out);
  return weight_gradient_points(m, out);
}

// One panel of the weights of all 36 products: out + slab·step + k·columns, k < depth. The kernel
// from k to column n lies at w + k·sk + n·sn, nine numbers `tap` apart, read backwards if `flip`.
template <bool Wide, class A>
void transform_weights(const A* w, std::int64_t sk, std::int64_t sn, std::int64_t tap,
                       std::int64_t depth, std::int64_t columns, bool flip, std::int64_t panel,
                       A* out, std::int64_t step) {
  using V = Vec<A>;
  constexpr std::int64_t wide = RegisterTile<V>::columns;
  for (std::int64_t k = 0; k < depth; ++k)
    for (std::int64_t half = 0; half < 2; ++half) {
      const std::int64_t n0 = panel * wide + half * V::width, left = columns - n0,
                         some = left < V::width ? (left > 0 ? left : 0) : V::width;
      const A* from = w + k * sk + n0 * sn;
      V v[9], rows[6][3];
      if (sn == 1) {
        for (std::int64_t q = 0; q < 9; ++q) v[flip ? 8 - q : q] = V::load(from + q * tap, some);
      } else {
        A raw[9][V::width] = {};
        for (std::int64_t l = 0; l < some; ++l)
          for (std::int64_t q = 0; q < 9; ++q) raw[q][l] = from[l * sn + q * tap];
        for (int q = 0; q < 9; ++q) v[q] = V::load(raw[flip ? 8 - q : q]);
      }
      for (int j = 0; j < 3; ++j) {
        const V taps[3] = {v[j], v[3 + j], v[6 + j]};
        V column[6];
        taps_to_points<Wide>(taps, column);
        for (int i = 0; i < 6; ++i) rows[i][j] = column[i];
      }
      A* to = out + k * wide + half * V::width;
      for (int i = 0; i < 6; ++i) {
        V row[6];
        taps_to_points<Wide>(rows[i], row);
        for (int j = 0; j < 6; ++j) row[j].store(to + (i * 6 + j) * step);
      }
    }
}

// dw[o, i, :] = Gᵀ P G + 2·w[o, i, :]·scale[o, i], for output channels [first, last) and all
// inputs; P is [36, grid.step], rows o of grid.row, columns i.
template <bool Wide, class A, class S>
void finish_weight_gradient(const A* products, Grid grid, std::int64_t in_c, bool flip, const A* w,
                            const A* scale, A* dw, const S& s, std::int64_t first,
                            std::int64_t last) {
  using V = Vec<A>;
  for (std::int64_t o = first; o < last; ++o)
    each_channel<V>(in_c, [&](std::int64_t i, auto count) __attribute__((always_inline)) {
      V rows[3][6], v[9];
      for (int j = 0; j < 6; ++j) {
        V column[6], out[3];
        for (int q = 0; q < 6; ++q)
          column[q] = V::load(products + (q * 6 + j) * grid.step + o * grid.row + i);
        points_to_taps<Wide>(column, out);
        for (int q = 0; q < 3; ++q) rows[q][j] = out[q];
      }
      for (int q = 0; q < 3; ++q) points_to_taps<Wide>(rows[q], v + 3 * q);
      const V factor = scale != nullptr ? V::load(scale + o * in_c + i, count) : V::zero();
      const std::int64_t at = o * s.out + i * s.in,
                         some = in_c - i < V::width ? in_c - i : V::width;
      if (s.in == 1) {
        for (int q = 0; q < 9; ++q) {
          const std::int64_t p = at + (flip ? 8 - q : q) * s.tap;
          (scale != nullptr ? fma(factor + factor, V::load(w + p, count), v[q]) : v[q])
              .store(dw + p, count);
        }
        return;
      }
      A raw[9][V::width], factors[V::width];
      for (int q = 0; q < 9; ++q) v[q].store(raw[flip ? 8 - q : q]);
      (factor + factor).store(factors);
      for (std::int64_t l = 0; l < some; ++l)
        for (std::int64_t q = 0; q < 9; ++q) {
          const std::int64_t p = at + l * s.in + q * s.tap;
          dw[p] = scale != nullptr ? raw[q][l] + factors[l] * w[p] : raw[q][l];
        }
    });
}
