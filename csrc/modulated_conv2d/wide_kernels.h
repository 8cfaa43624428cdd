// Compiled once per instruction set, as part of a kernel file: no include guard. The wide side of
// resampling layers: patches of 9×9 pixels, eight apart, so that neighbours share a row or a
// column.

// The 81 points of tiles [first, last) of a wide image [N, h, w, C].
template <class A, class Plan>
void transform_wide(const Plan& p, const A* x, std::int64_t h, std::int64_t w, std::int64_t C,
                    const std::int32_t* places, std::int64_t first, std::int64_t last, A* points,
                    Grid grid) {
  using V = Vec<A>;
  for (std::int64_t t = first; t < last; ++t, points += grid.row) {
    std::int64_t n, ty, tx;
    locate(p, t, n, ty, tx);
    const std::int64_t rows = h - ty * 8, columns = w - tx * 8;
    const A* corner = x + ((n * h + ty * 8) * w + tx * 8) * C;
    each_channel<V>(C, [&](std::int64_t c, auto count) __attribute__((always_inline)) {
      V e[9][9];
      for (int i = 0; i < 9; ++i) {
        V row[9];
        for (int j = 0; j < 9; ++j)
          row[j] =
              i < rows && j < columns ? V::load(corner + (i * w + j) * C + c, count) : V::zero();
        wide_points(row, e[i]);
      }
      for (int j = 0; j < 9; ++j) {
        V column[9], out[9];
        for (int i = 0; i < 9; ++i) column[i] = e[i][j];
        wide_points(column, out);
        for (int i = 0; i < 9; ++i) out[i].store(points + places[9 * i + j] * grid.step + c, count);
      }
    });
  }
}

// The pixels of the tile in row ty and column tx: the first row and column are added to what the
// tiles before left there.
template <class V, class A, class Plan, class Count>
RWM_INLINE void add_wide_tile(const Plan& p, const A* m, const std::int32_t* places,
                              std::int64_t step, A* to, std::int64_t ty, std::int64_t tx,
                              Count count) {
  const std::int64_t rows = p.out_h - ty * 8, columns = p.out_w - tx * 8;
  V e[9][9];
  for (int i = 0; i < 9; ++i) {
    V row[9];
    for (int j = 0; j < 9; ++j) row[j] = V::load(m + places[9 * i + j] * step);
    wide_sums(row, e[i]);
  }
  for (int j = 0; j < 9 && j < columns; ++j) {
    V column[9], out[9];
    for (int i = 0; i < 9; ++i) column[i] = e[i][j];
    wide_sums(column, out);
    for (int i = 0; i < 9 && i < rows; ++i) {
      A* at = to + (i * p.out_w + j) * p.out_c;
      const bool add = (i == 0 && ty > 0) || (j == 0 && tx > 0);
      (add ? V::load(at, count) + out[i] : out[i]).store(at, count);
    }
  }
}

// Channels [begin, end) of tiles [first, last) of a wide image [N, h, w, C] from their 81 products.
// Tiles come in order.
template <class A, class Plan>
void add_wide(const Plan& p, const A* m, Grid grid, A* y, const std::int32_t* places,
              std::int64_t first, std::int64_t last, std::int64_t begin, std::int64_t end) {
  using V = Vec<A>;
  const std::int64_t h = p.out_h, w = p.out_w, C = p.out_c;
  for (std::int64_t t = first; t < last; ++t, m += grid.row) {
    std::int64_t n, ty, tx;
    locate(p, t, n, ty, tx);
    A* corner = y + ((n * h + ty * 8) * w + tx * 8) * C;
    each_channel<V>(end - begin, [&](std::int64_t i, auto count) __attribute__((always_inline)) {
      const std::int64_t c = begin + i;
      add_wide_tile<V>(p, m + c, places, grid.step, corner + c, ty, tx, count);
    });
  }
}
