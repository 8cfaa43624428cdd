// Compiled once per instruction set, as part of a kernel file: no include guard. Matrix products on
// register tiles.

// Rows of a register tile: with two vectors a row the accumulators fill 12 of 16 registers, or 24
// of AVX-512's 32.
template <class V>
struct RegisterTile {
  static constexpr int rows = V::width == 16 ? 12 : 6;
  static constexpr std::int64_t columns = 2 * V::width;
};

// c[r, :] (+)= sum_k a[r·lda + k·step] · b[k·ldb + :], r < Rows, over two vectors of columns.
template <int Rows, bool Add, class V, class A>
RWM_INLINE void multiply_rows(const A* a, std::int64_t lda, std::int64_t step, const A* b,
                              std::int64_t ldb, A* c, std::int64_t ldc, std::int64_t depth) {
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

// Any number of rows; what is left of whole tiles goes in tiles as large as possible, for few rows
// wait for their own sums.
template <bool Add, class V, class A>
void multiply(const A* a, std::int64_t lda, std::int64_t step, const A* b, std::int64_t ldb, A* c,
              std::int64_t ldc, std::int64_t rows, std::int64_t depth) {
  constexpr int full = RegisterTile<V>::rows;
  std::int64_t r = 0;
  for (; r + full <= rows; r += full)
    multiply_rows<full, Add, V>(a + r * lda, lda, step, b, ldb, c + r * ldc, ldc, depth);
  for (; r + 6 <= rows; r += 6)
    multiply_rows<6, Add, V>(a + r * lda, lda, step, b, ldb, c + r * ldc, ldc, depth);
  a += r * lda;
  c += r * ldc;
  switch (rows - r) {
    case 5: return multiply_rows<5, Add, V>(a, lda, step, b, ldb, c, ldc, depth);
    case 4: return multiply_rows<4, Add, V>(a, lda, step, b, ldb, c, ldc, depth);
    case 3: return multiply_rows<3, Add, V>(a, lda, step, b, ldb, c, ldc, depth);
    case 2: return multiply_rows<2, Add, V>(a, lda, step, b, ldb, c, ldc, depth);
    case 1: return multiply_rows<1, Add, V>(a, lda, step, b, ldb, c, ldc, depth);
    default: return;
  }
}

// One panel of columns of m = points·weights, for the points that share a slab of weights.
template <class A>
void multiply_panel(const A* points, Grid from, const A* weights, A* m, Grid to, std::int64_t first,
                    std::int64_t count, std::int64_t tiles, std::int64_t depth) {
  using V = Vec<A>;
  constexpr std::int64_t wide = RegisterTile<V>::columns;
  for (std::int64_t q = first; q < first + count; ++q)
    multiply<false, V>(points + q * from.step, from.row, 1, weights, wide, m + q * to.step, to.row,
                       tiles, depth);
}

// One panel of columns of the gradient of a slab [rows, ld]: (+)= sum over its `count` points and
// tiles of gradients[t, :]ᵀ·points[t, columns].
template <class A>
void multiply_gradients(const A* gradients, Grid left, const A* points, Grid right, A* products,
                        std::int64_t ld, std::int64_t count, std::int64_t tiles, std::int64_t rows,
                        bool add) {
  using V = Vec<A>;
  for (std::int64_t q = 0; q < count; ++q) {
    const A *a = gradients + q * left.step, *b = points + q * right.step;
    if (add || q > 0) {
      multiply<true, V>(a, 1, left.row, b, right.row, products, ld, rows, tiles);
    } else {
      multiply<false, V>(a, 1, left.row, b, right.row, products, ld, rows, tiles);
    }
  }
}

template <class A>
std::int64_t panel_columns() {
  return RegisterTile<Vec<A>>::columns;
}
