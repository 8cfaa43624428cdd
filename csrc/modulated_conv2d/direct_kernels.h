// Compiled once per instruction set (common/each_isa.h); see direct.h.

#include "modulated_conv2d/scale_kernels.h"
#include "modulated_conv2d/product_kernels.h"

// to[:] = from[:], times a[:] if there is one.
template <class V, class A>
RWM_INLINE void copy_row(const A* from, const A* a, A* to, std::int64_t size) {
  each_channel<V>(size, [&](std::int64_t c, auto count) __attribute__((always_inline)) {
    const V x = V::load(from + c, count);
    (a != nullptr ? x * V::load(a + c, count) : x).store(to + c, count);
  });
}

template <class V, class A>
RWM_INLINE void clear_row(A* to, std::int64_t size) {
  each_channel<V>(size, [&](std::int64_t c, auto count)
                            __attribute__((always_inline)) { V::zero().store(to + c, count); });
}

// One patch: what of it is inside the image, times a[c] if there is one; zeros for the rest and
// from there to `ld`.
template <class A>
RWM_INLINE void gather_patch(const DirectPlan& p, const A* image, const A* a, std::int64_t top,
                             std::int64_t left, A* to, std::int64_t ld) {
  using V = Vec<A>;
  const std::int64_t begin = left < 0 ? (left < -p.kernel_w ? p.kernel_w : -left) : 0,
                     room = p.in_w - left;
  const std::int64_t end = room < p.kernel_w ? (room > begin ? room : begin) : p.kernel_w;
  for (std::int64_t i = top; i < top + p.kernel_h; ++i, to += p.run()) {
    if (i < 0 || i >= p.in_h || begin == end) {
      clear_row<V>(to, p.run());
      continue;
    }
    const A* from = image + (i * p.in_w + left) * p.in_c;
    if (begin > 0) clear_row<V>(to, begin * p.in_c);
    if (a == nullptr) {
      copy_row<V, A>(from + begin * p.in_c, nullptr, to + begin * p.in_c, (end - begin) * p.in_c);
    } else {
      for (std::int64_t j = begin; j < end; ++j)
        copy_row<V>(from + j * p.in_c, a, to + j * p.in_c, p.in_c);
    }
    if (end < p.kernel_w) clear_row<V>(to + end * p.in_c, (p.kernel_w - end) * p.in_c);
  }
  clear_row<V>(to, ld - p.depth());
}

// The patches of pixels [first, last), a row of p.depth() numbers each.
template <class A>
void gather_patches(const DirectPlan& p, const A* image, const A* a, std::int64_t first,
                    std::int64_t last, A* patches, std::int64_t ld) {
  std::int64_t x = first % p.out_w, y = first / p.out_w % p.out_h, n = first / p.out_w / p.out_h;
  for (std::int64_t m = first; m < last; ++m, patches += ld) {
    const A* scale = a != nullptr ? a + n * p.in_c : nullptr;
    gather_patch(p, image + n * p.in_h * p.in_w * p.in_c, scale, y * p.stride - p.pad_y,
                 x * p.stride - p.pad_x, patches, ld);
    if (++x < p.out_w) continue;
    x = 0;
    if (++y < p.out_h) continue;
    y = 0, ++n;
  }
}

// A panel in the order the products read it: to[k·wide + l] is the number at from[l] + k·step, 0
// for the columns from `some` on.
template <class A>
RWM_INLINE void pack_panel(const A* w, std::int64_t step, const std::int64_t* from,
                           std::int64_t some, std::int64_t depth, A* to) {
  constexpr std::int64_t wide = RegisterTile<Vec<A>>::columns;
  for (std::int64_t k = 0; k < depth; ++k, to += wide)
    for (std::int64_t l = 0; l < wide; ++l) to[l] = l < some ? w[from[l] + k * step] : A(0);
}

// Weights of the forward pass: a panel is [p.depth(), wide], its columns output channels.
template <class A, class S>
void pack_forward(const DirectPlan& p, const A* w, const S& s, bool flip, std::int64_t panel,
                  A* to) {
  constexpr std::int64_t wide = RegisterTile<Vec<A>>::columns;
  const std::int64_t taps = p.kernel_h * p.kernel_w, left = p.out_c - panel * wide,
                     some = left < wide ? left : wide;
  for (std::int64_t q = 0; q < taps; ++q) {
    std::int64_t from[wide];
    for (std::int64_t l = 0; l < wide; ++l)
      from[l] = (panel * wide + l) * s.out + (flip ? taps - 1 - q : q) * s.tap;
    pack_panel(w, s.in, from, some, p.in_c, to + q * p.in_c * wide);
  }
}

// Weights of the input's gradient, of one row of the kernels: a panel is [out_c, wide], its columns
// numbers of the row, tap by tap.
template <class A, class S>
void pack_adjoint(const DirectPlan& p, const A* w, const S& s, bool flip, std::int64_t row,
                  std::int64_t panel, A* to) {
  constexpr std::int64_t wide = RegisterTile<Vec<A>>::columns;
  const std::int64_t taps = p.kernel_h * p.kernel_w, left = p.run() - panel * wide,
                     some = left < wide ? left : wide;
  std::int64_t from[wide];
  for (std::int64_t l = 0; l < wide; ++l) {
    const std::int64_t n = panel * wide + l, q = row * p.kernel_w + n / p.in_c;
    from[l] = n % p.in_c * s.in + (flip ? taps - 1 - q : q) * s.tap;
  }
  pack_panel(w, s.out, from, some, p.out_c, to);
}

// c[rows, wide] = a[rows, depth]·panel, so much of the depth at a time that the panel stays in the
// first-level cache.
template <class V, class A>
RWM_INLINE void multiply_deep(const A* a, std::int64_t lda, const A* panel, A* c, std::int64_t ldc,
                              std::int64_t rows, std::int64_t depth) {
  constexpr std::int64_t wide = RegisterTile<V>::columns, most = 4096 / wide;
  multiply<false, V>(a, lda, 1, panel, wide, c, ldc, rows, depth < most ? depth : most);
  for (std::int64_t k = most; k < depth; k += most)
    multiply<true, V>(a + k, lda, 1, panel + k * wide, wide, c, ldc, rows,
                      depth - k < most ? depth - k : most);
}

// u of some pixels, [rows, out_c], from their patches; `tile` has room for [rows, wide].
template <class A>
void multiply_patches(const DirectPlan& p, const A* patches, std::int64_t ld, const A* weights,
                      A* u, std::int64_t rows, A* tile) {
  using V = Vec<A>;
  constexpr std::int64_t wide = RegisterTile<V>::columns;
  for (std::int64_t column = 0; column < p.out_c; column += wide, weights += p.depth() * wide) {
    const bool whole = column + wide <= p.out_c;
    multiply_deep<V>(patches, ld, weights, whole ? u + column : tile, whole ? p.out_c : wide, rows,
                     p.depth());
    if (whole) continue;
    for (std::int64_t r = 0; r < rows; ++r)
      copy_row<V, A>(tile + r * wide, nullptr, u + r * p.out_c + column, p.out_c - column);
  }
}

// Row y of dz = convᵀ(du), of images [first, last), times a[n, :] if there is one. `rows` has room
// for the rows of du that count, side by side, `tile` for [their pixels, wide].
template <class A>
void scatter_rows(const DirectPlan& p, const A* du, const A* weights, const A* a, A* dz,
                  std::int64_t first, std::int64_t last, std::int64_t y, A* rows, A* tile) {
  using V = Vec<A>;
  constexpr std::int64_t wide = RegisterTile<V>::columns;
  const std::int64_t panels = (p.run() + wide - 1) / wide, images = last - first,
                     line = p.in_w * p.in_c, count = p.out_w * p.out_c;
  for (std::int64_t n = first; n < last; ++n) clear_row<V>(dz + (n * p.in_h + y) * line, line);
  for (std::int64_t i = 0; i < p.kernel_h; ++i) {
    const std::int64_t from = y + p.pad_y - i, v = from / p.stride;
    if (from < 0 || from % p.stride != 0 || v >= p.out_h) continue;
    const A* left = du + (first * p.out_h + v) * count;
    if (images > 1) {
      for (std::int64_t n = 0; n < images; ++n)
        copy_row<V, A>(left + n * p.out_h * count, nullptr, rows + n * count, count);
      left = rows;
    }
    for (std::int64_t panel = 0; panel < panels; ++panel) {
      multiply_deep<V>(left, p.out_c, weights + (i * panels + panel) * p.out_c * wide, tile, wide,
                       images * p.out_w, p.out_c);
      const std::int64_t column = panel * wide,
                         size = p.run() - column < wide ? p.run() - column : wide;
      for (std::int64_t n = 0; n < images; ++n)
        for (std::int64_t x = 0; x < p.out_w; ++x) {
          const A* t = tile + (n * p.out_w + x) * wide;
          std::int64_t at = (x * p.stride - p.pad_x) * p.in_c + column, begin = 0,
                       end = size;  // what of it is inside the line
          if (at < 0) begin = -at < size ? -at : size;
          if (at + end > line) end = line - at > begin ? line - at : begin;
          A* to = dz + ((first + n) * p.in_h + y) * line + at;
          each_channel<V>(end - begin,
                          [&](std::int64_t c, auto some) __attribute__((always_inline)) {
                            (V::load(to + begin + c, some) + V::load(t + begin + c, some))
                                .store(to + begin + c, some);
                          });
        }
    }
  }
  if (a == nullptr) return;
  for (std::int64_t n = first; n < last; ++n)
    for (std::int64_t x = 0; x < p.in_w; ++x) {
      A* to = dz + ((n * p.in_h + y) * p.in_w + x) * p.in_c;
      copy_row<V>(to, a + n * p.in_c, to, p.in_c);
    }
}

// One panel of columns of dW [out_c, ld]: (+)= sum over some pixels of du[m, :]ᵀ·patches[m,
// columns].
template <class A>
void multiply_direct_gradients(const A* du, std::int64_t row, const A* patches, std::int64_t ld,
                               A* products, std::int64_t to, std::int64_t pixels,
                               std::int64_t out_c, bool add) {
  using V = Vec<A>;
  if (add) return multiply<true, V>(du, 1, row, patches, ld, products, to, out_c, pixels);
  multiply<false, V>(du, 1, row, patches, ld, products, to, out_c, pixels);
}

// Rows of du with `row` numbers from one to the next.
template <class A>
void copy_rows(const A* from, std::int64_t size, A* to, std::int64_t row, std::int64_t count) {
  for (std::int64_t r = 0; r < count; ++r)
    copy_row<Vec<A>, A>(from + r * size, nullptr, to + r * row, size);
}

// dw[o, c, i, j] = products[o, (i, j, c)] + 2·w·scale[o, c], for output channels [first, last).
template <class A, class S>
void finish_direct_gradient(const DirectPlan& p, const A* products, std::int64_t ld, bool flip,
                            const A* w, const A* scale, A* dw, const S& s, std::int64_t first,
                            std::int64_t last) {
  const std::int64_t taps = p.kernel_h * p.kernel_w;
  for (std::int64_t o = first; o < last; ++o)
    for (std::int64_t q = 0; q < taps; ++q)
      for (std::int64_t c = 0; c < p.in_c; ++c) {
        const std::int64_t at = o * s.out + c * s.in + (flip ? taps - 1 - q : q) * s.tap;
        const A more = scale != nullptr ? 2 * w[at] * scale[o * p.in_c + c] : A(0);
        dw[at] = products[o * ld + q * p.in_c + c] + more;
      }
}
