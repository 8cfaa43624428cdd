// What the passes of modulated_conv2d share: shapes, scales and the epilogue as plain numbers and
// pointers.
//
// Winograd F(4×4, 3×3): a 3×3 correlation on tiles of 4×4 outputs is y = Aᵀ[(G w Gᵀ) ⊙ (Bᵀ d B)]A,
// summed over channels between the transforms: 36 products in place of 144. Points 0, ±√½, ±√2, ∞:
// the usual 0, ±1, ±2 lose four times as much to rounding.
//
// A doubling and its adjoint meet the kernel with a stride of 2: wide[2i + k] and narrow[i]·w[k].
// Even places are products of polynomials of 4 and 2 coefficients, so 5 points (0, ±1, ½, ∞) do for
// 8 products; odd places are narrow[i]·w[1], 4 products. So a tile of 4×4 narrow and 9×9 wide
// pixels has 9×9 products in place of 144, with only 6×6 different weights: the four odd places
// along an axis share theirs. One bilinear form serves the transposed convolution, the one with a
// stride, and the gradients of both. Filters are passes of their own: folded into the weights they
// would make 6 taps of 3, and 144 products.
#pragma once

#include "modulated_conv2d/records.h"

namespace rwm {

constexpr std::int64_t kSlabs = 36;  // products with weights of their own: 6×6 an axis each

// Where the 81 products of a resampling tile lie: those that share weights follow one another.
struct WidePlaces {
  std::int32_t of[81] = {};         // of the product at row i and column j of 9, [9·i + j]
  std::int32_t first[kSlabs] = {};  // of each slab
  std::int32_t count[kSlabs] = {};

  constexpr WidePlaces() {
    std::int32_t next = 0;
    for (int a = 0; a < 6; ++a)
      for (int b = 0; b < 6; ++b) {
        first[6 * a + b] = next;
        for (int i = a; i < (a < 5 ? a + 1 : 9); ++i)
          for (int j = b; j < (b < 5 ? b + 1 : 9); ++j) of[9 * i + j] = next++;
        count[6 * a + b] = next - first[6 * a + b];
      }
  }
};
inline constexpr WidePlaces kWidePlaces;

using records::Kernels;
using records::Pair;

enum class Stride { one, up, down };

// Of a forward pass: stride 1, or a doubling. `offset`: where the patch of the first pixel starts,
// with a stride of 1.
struct WinogradPlan {
  std::int64_t batch, in_h, in_w, in_c, out_h, out_w, out_c;
  Stride stride;
  std::int64_t off_y, off_x;  // stride one: first row and column of a tile's patch, from tile·4
  std::int64_t tiles_y, tiles_x;
  Kernels kernels;

  WinogradPlan(const Kernels& kernels, std::int64_t batch, Pair in_size, Pair out_size,
               std::int64_t up, Pair offset)
      : batch(batch), in_h(in_size.first), in_w(in_size.second), in_c(kernels.in_c),
        out_h(out_size.first), out_w(out_size.second), out_c(kernels.out_c),
        stride(up == 2 ? Stride::up : Stride::one), off_y(offset.first), off_x(offset.second),
        kernels(kernels) {
    check_kernels("WinogradPlan", kernels, up);
    records::check_least("WinogradPlan", "batch", batch, 0);
    records::check_least("WinogradPlan", "in_size", in_size, 0);
    records::check_least("WinogradPlan", "out_size", out_size, 0);
    records::check_least("WinogradPlan", "offset", offset, 1 - kMostElements);
    check(std::max(off_y, off_x) < kMostElements, "WinogradPlan: offset must fit memory, got ",
          off_y, ", ", off_x);
    elements("WinogradPlan: the input", {batch, in_h, in_w, in_c});
    elements("WinogradPlan: the output", {batch, out_h, out_w, out_c});
    if (wide()) check_sides(in_h, out_h), check_sides(in_w, out_w);
    count_tiles();
    adjoint();  // checks its tiles
  }

  static void check_kernels(const char* record, const Kernels& kernels, std::int64_t up) {
    const auto [h, w] = kernels.size;
    check(h == 3 && w == 3, record, ": kernels must have size 3, 3, got ", h, ", ", w);
    check(up == 1 || up == 2, record, ": up must be 1 or 2, got ", up);
  }

  // Of the input's gradient: from du to dx.
  WinogradPlan adjoint() const {
    WinogradPlan p = *this;
    std::swap(p.in_h, p.out_h), std::swap(p.in_w, p.out_w), std::swap(p.in_c, p.out_c);
    if (wide()) p.stride = stride == Stride::up ? Stride::down : Stride::up;
    p.off_y = -2 - off_y, p.off_x = -2 - off_x;
    p.count_tiles();
    return p;
  }

  std::int64_t tiles() const { return batch * tiles_y * tiles_x; }
  std::int64_t inputs() const { return batch * in_h * in_w * in_c; }
  std::int64_t outputs() const { return batch * out_h * out_w * out_c; }
  bool wide() const { return stride != Stride::one; }
  std::int64_t points() const { return wide() ? 81 : 36; }
  std::int64_t first(std::int64_t slab) const { return wide() ? kWidePlaces.first[slab] : slab; }
  std::int64_t count(std::int64_t slab) const { return wide() ? kWidePlaces.count[slab] : 1; }

 private:
  void count_tiles() {
    tiles_y = ((stride == Stride::up ? in_h : out_h) + 3) / 4;
    tiles_x = ((stride == Stride::up ? in_w : out_w) + 3) / 4;
    elements("WinogradPlan: the points of all tiles",
             {81, batch, tiles_y, tiles_x, std::max(in_c, out_c)});
  }

  // Three taps with a stride of 2 from a wide side; they may leave its last pixel out.
  static void check_sides(std::int64_t narrow, std::int64_t wide) {
    const bool fits = narrow == 0 || wide == 2 * narrow + 1 || wide == 2 * narrow + 2;
    check(fits, "WinogradPlan: out_size must be 2·in_size + 1 or + 2 with up 2, got ", wide,
          " from ", narrow);
  }
};

// Where the points of a block of tiles lie: point q of tile t at q·step + t·row.
struct Grid {
  std::int64_t step;  // from point to point
  std::int64_t row;   // from tile to tile
};

// Records with the types of a call. T: images, A: everything else.
template <class A>
struct Blend {
  const A* scale = nullptr;
  const A* regions = nullptr;
  std::int64_t styles = 1;

  Blend() = default;
  explicit Blend(const records::Blend& b)
      : scale(as<const A>(b.scale)), regions(as<const A>(b.regions)), styles(b.styles) {}
};

// y = clamp(act(b·u + strength·noise + bias)·gain); without `activate`, y = b·u and the products
// the gradient of b's vectors needs.
template <class T, class A>
struct Epilogue {
  Blend<A> blend;  // b
  const A* noise = nullptr;
  std::int64_t noise_step = 0;  // from one image to the next
  A strength = 1;
  const A* bias = nullptr;
  ActivationSettings<A> activation{A(1), A(1), A(0)};
  bool activate = false;
  const T* x = nullptr;   // [N, H, W, O]
  A* products = nullptr;  // [tiles, K, O]: sum_p r_k·x·u over a tile

  explicit Epilogue(const records::Blend& b) : blend(b) {}
  Epilogue(const records::Epilogue& e, std::int64_t pixels)
      : blend(e.blend), noise(as<const A>(e.noise)), noise_step(e.noise_per_image ? pixels : 0),
        strength(e.strength != 0 ? *as<const A>(e.strength) : A(1)), bias(as<const A>(e.bias)),
        activation(activation_settings<T>(e.activation)), activate(true) {}
};

// What the epilogue's derivative reads and writes; u, du and noise_sums may be absent.
template <class T, class A>
struct EpilogueGradients {
  const T *dy, *y, *u;
  T* du;
  A* noise_sums;
  bool products;  // wanted
};

}  // namespace rwm
