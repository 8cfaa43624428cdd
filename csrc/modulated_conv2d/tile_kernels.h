// Compiled once per instruction set, as part of a kernel file: no include guard. Tiles with a
// stride of 1, and the narrow side of resampling layers: 4×4 pixels, or the 6×6 that a tile reads.
// Channels are innermost everywhere.

template <class Plan>
RWM_INLINE void locate(const Plan& p, std::int64_t t, std::int64_t& n, std::int64_t& ty,
                       std::int64_t& tx) {
  tx = t % p.tiles_x;
  ty = t / p.tiles_x % p.tiles_y;
  n = t / p.tiles_x / p.tiles_y;
}

// A square patch of an image: where its pixels are, or `zeros`; with the regions at each of them,
// [K, Side²].
template <int Side, class A>
struct Patch {
  const A* source[Side * Side];
  const A* scale;
  const A* shares;
  std::int64_t styles, channels;

  template <class B>
  RWM_INLINE Patch(const A* x, const A* zeros, const B& blend, A* room, std::int64_t n,
                   std::int64_t y0, std::int64_t x0, std::int64_t h, std::int64_t w, std::int64_t c)
      : scale(blend.scale != nullptr ? blend.scale + n * blend.styles * c : nullptr),
        shares(blend.regions != nullptr ? room : nullptr), styles(blend.styles), channels(c) {
    for (std::int64_t q = 0; q < Side * Side; ++q) {
      const std::int64_t y = y0 + q / Side, z = x0 + q % Side;
      const bool inside = y >= 0 && y < h && z >= 0 && z < w;
      source[q] = inside ? x + ((n * h + y) * w + z) * c : zeros;
      if (shares != nullptr)
        for (std::int64_t k = 0; k < styles; ++k)
          room[k * Side * Side + q] =
              inside ? blend.regions[((n * styles + k) * h + y) * w + z] : A(0);
    }
  }

  template <class V, bool Regions, class Count>
  RWM_INLINE V load(std::int64_t q, V one, std::int64_t c, Count count) const {
    V a = one;
    if (Regions) {
      a = V::zero();
      for (std::int64_t k = 0; k < styles; ++k)
        a = fma(V::set(shares[k * Side * Side + q]), V::load(scale + k * channels + c, count), a);
    }
    return a * V::load(source[q] + c, count);
  }
};

// Bᵀ(a·x)B of one tile and one vector of channels.
template <class V, bool Regions, class A, class Count>
RWM_INLINE void input_tile(const Patch<6, A>& patch, std::int64_t c, A* to, std::int64_t step,
                           Count count) {
  const V one = patch.scale != nullptr ? V::load(patch.scale + c, count) : V::set(A(1));
  V e[6][6];
  for (int i = 0; i < 6; ++i) {
    V row[6];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) row[j] = patch.template load<V, Regions>(i * 6 + j, one, c, count);
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

// The 81 points of 4×4 narrow pixels.
template <class V, bool Regions, class A, class Count>
RWM_INLINE void narrow_tile(const Patch<4, A>& patch, const std::int32_t* places, std::int64_t c,
                            A* to, std::int64_t step, Count count) {
  const V one = patch.scale != nullptr ? V::load(patch.scale + c, count) : V::set(A(1));
  V e[4][9];
  for (int i = 0; i < 4; ++i) {
    V row[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) row[j] = patch.template load<V, Regions>(i * 4 + j, one, c, count);
    narrow_points(row, e[i]);
  }
  for (int j = 0; j < 9; ++j) {
    V column[4], out[9];
    for (int i = 0; i < 4; ++i) column[i] = e[i][j];
    narrow_points(column, out);
    for (int i = 0; i < 9; ++i) out[i].store(to + places[9 * i + j] * step + c, count);
  }
}

// Tiles [first, last) of x, scaled, as points; tile t is row t - first. `zeros` is a pixel outside
// the image; shares is scratch for [K, 36].
template <class A, class Plan, class B>
void transform_input(const Plan& p, const A* x, const A* zeros, const B& blend,
                     const std::int32_t* places, std::int64_t first, std::int64_t last, A* points,
                     Grid grid, A* shares) {
  using V = Vec<A>;
  const std::int64_t C = p.in_c;
  for (std::int64_t t = first; t < last; ++t, points += grid.row) {
    std::int64_t n, ty, tx;
    locate(p, t, n, ty, tx);
    if (p.wide()) {
      const Patch<4, A> patch(x, zeros, blend, shares, n, ty * 4, tx * 4, p.in_h, p.in_w, C);
      each_channel<V>(C, [&](std::int64_t c, auto count) __attribute__((always_inline)) {
        if (patch.shares != nullptr)
          return narrow_tile<V, true>(patch, places, c, points, grid.step, count);
        return narrow_tile<V, false>(patch, places, c, points, grid.step, count);
      });
    } else {
      const Patch<6, A> patch(x, zeros, blend, shares, n, ty * 4 + p.off_y, tx * 4 + p.off_x,
                              p.in_h, p.in_w, C);
      each_channel<V>(C, [&](std::int64_t c, auto count) __attribute__((always_inline)) {
        if (patch.shares != nullptr) return input_tile<V, true>(patch, c, points, grid.step, count);
        return input_tile<V, false>(patch, c, points, grid.step, count);
      });
    }
  }
}

// A du Aᵀ of tiles [first, last) with a stride of 1; du [N, H, W, O].
template <class A, class Plan>
void transform_gradient(const Plan& p, const A* du, std::int64_t first, std::int64_t last,
                        A* points, Grid grid) {
  using V = Vec<A>;
  const std::int64_t C = p.out_c;
  for (std::int64_t t = first; t < last; ++t, points += grid.row) {
    std::int64_t n, ty, tx;
    locate(p, t, n, ty, tx);
    const std::int64_t rows = p.out_h - ty * 4, columns = p.out_w - tx * 4;
    const A* corner = du + ((n * p.out_h + ty * 4) * p.out_w + tx * 4) * C;
    each_channel<V>(C, [&](std::int64_t c, auto count) __attribute__((always_inline)) {
      V d[4], e[4][6];
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j)
          d[j] = i < rows && j < columns ? V::load(corner + (i * p.out_w + j) * C + c, count)
                                         : V::zero();
        gradient_points(d, e[i]);
      }
      for (int j = 0; j < 6; ++j) {
        V column[4], out[6];
        for (int i = 0; i < 4; ++i) column[i] = e[i][j];
        gradient_points(column, out);
        for (int i = 0; i < 6; ++i) out[i].store(points + (i * 6 + j) * grid.step + c, count);
      }
    });
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

// The same for 4×4 narrow pixels of 81 products.
template <class V, class A>
RWM_INLINE void narrow_output_tile(const A* m, const std::int32_t* places, std::int64_t step,
                                   V (*u)[4]) {
  V half[9][4];
  for (int i = 0; i < 9; ++i) {
    V row[9];
    for (int j = 0; j < 9; ++j) row[j] = V::load(m + places[9 * i + j] * step);
    narrow_sums(row, half[i]);
  }
  for (int j = 0; j < 4; ++j) {
    V column[9], out[4];
    for (int i = 0; i < 9; ++i) column[i] = half[i][j];
    narrow_sums(column, out);
    for (int i = 0; i < 4; ++i) u[i][j] = out[i];
  }
}

// Where the pixels of a tile lie: offsets in pixels, and how much of the tile is inside the image.
struct Window {
  std::int64_t image, corner, row, rows, columns;
};

template <class V, bool Whole, bool Regions, class A, class E, class Count>
RWM_INLINE void write_activated(const Window& w, const V (*u)[4], A* y, const E& e, std::int64_t n,
                                std::int64_t plane, std::int64_t O, std::int64_t o, Count count) {
  const ScaleAt<V, Regions, A> b(e.blend, n, w.corner, plane, O, o, count);
  const ActivationOf<V> act(e.activation);
  const A* noise = e.noise != nullptr ? e.noise + n * e.noise_step + w.corner : nullptr;
  const V bias = e.bias != nullptr ? V::load(e.bias + o, count) : V::zero();
  A* to = y + (w.image + w.corner) * O + o;
  for (std::int64_t i = 0; i < (Whole ? 4 : w.rows); ++i)
    for (std::int64_t j = 0; j < (Whole ? 4 : w.columns); ++j) {
      const std::int64_t at = i * w.row + j;
      const V add = noise != nullptr ? bias + V::set(noise[at] * e.strength) : bias;
      act.forward(fma(b.at(at, count), u[i][j], add)).store(to + at * O, count);
    }
}

// dx = b·dz, and the products sum_p r_k·x·dz of a tile, to row `row`. y or the products may be
// absent.
template <class V, bool Regions, class A, class E, class Count>
RWM_INLINE void write_adjoint(const Window& w, const V (*u)[4], A* y, const E& e, std::int64_t n,
                              std::int64_t row, std::int64_t plane, std::int64_t O, std::int64_t o,
                              Count count) {
  const ScaleAt<V, Regions, A> b(e.blend, n, w.corner, plane, O, o, count);
  const std::int64_t K = e.blend.styles, offset = (w.image + w.corner) * O + o;
  A* sums = e.products != nullptr ? e.products + row * K * O + o : nullptr;
  for (std::int64_t k = 0; Regions && sums != nullptr && k < K; ++k)
    V::zero().store(sums + k * O, count);
  V product = V::zero();
  for (std::int64_t i = 0; i < w.rows; ++i)
    for (std::int64_t j = 0; j < w.columns; ++j) {
      const std::int64_t at = i * w.row + j;
      if (y != nullptr) (b.at(at, count) * u[i][j]).store(y + offset + at * O, count);
      if (sums == nullptr) continue;
      const V x = V::load(e.x + offset + at * O, count) * u[i][j];
      product = product + x;
      for (std::int64_t k = 0; Regions && k < K; ++k)
        fma(V::set(b.shares[k * plane + at]), x, V::load(sums + k * O, count))
            .store(sums + k * O, count);
    }
  if (sums != nullptr && !Regions) product.store(sums, count);
}

// The output transform of tiles [first, last) and the epilogue; m has room for whole vectors of
// channels.
template <class A, class Plan, class E>
void transform_output(const Plan& p, const A* m, Grid grid, A* y, const E& e,
                      const std::int32_t* places, std::int64_t first, std::int64_t last) {
  using V = Vec<A>;
  const std::int64_t plane = p.out_h * p.out_w;
  for (std::int64_t t = first; t < last; ++t, m += grid.row) {
    std::int64_t n, ty, tx;
    locate(p, t, n, ty, tx);
    const std::int64_t rows = p.out_h - ty * 4, columns = p.out_w - tx * 4;
    const Window w{n * plane, ty * 4 * p.out_w + tx * 4, p.out_w, rows < 4 ? rows : 4,
                   columns < 4 ? columns : 4};
    const bool whole = rows >= 4 && columns >= 4;
    each_channel<V>(p.out_c, [&](std::int64_t c, auto count) __attribute__((always_inline)) {
      V u[4][4];
      if (p.wide()) {
        narrow_output_tile(m + c, places, grid.step, u);
      } else {
        output_tile(m + c, grid.step, u);
      }
      if (!e.activate) {
        if (e.blend.regions != nullptr)
          return write_adjoint<V, true, A>(w, u, y, e, n, t, plane, p.out_c, c, count);
        return write_adjoint<V, false, A>(w, u, y, e, n, t, plane, p.out_c, c, count);
      }
      if (e.blend.regions != nullptr)
        return write_activated<V, false, true, A>(w, u, y, e, n, plane, p.out_c, c, count);
      if (whole) return write_activated<V, true, false, A>(w, u, y, e, n, plane, p.out_c, c, count);
      return write_activated<V, false, false, A>(w, u, y, e, n, plane, p.out_c, c, count);
    });
  }
}
