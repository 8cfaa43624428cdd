// What the passes of modulated_conv2d share: shapes, scales and the epilogue as plain numbers and pointers.
//
// Winograd F(4×4, 3×3): a 3×3 correlation on tiles of 4×4 outputs is y = Aᵀ[(G w Gᵀ) ⊙ (Bᵀ d B)]A, summed over channels between the
// transforms: 36 products in place of 144. Points 0, ±√½, ±√2, ∞: the usual 0, ±1, ±2 lose four times as much to rounding.
//
// A doubling and its adjoint meet the kernel with a stride of 2: wide[2i + k] and narrow[i]·w[k]. Even places are products of polynomials of 4 and
// 2 coefficients, so 5 points (0, ±1, ½, ∞) do for 8 products; odd places are narrow[i]·w[1], 4 products. So a tile of 4×4 narrow and 9×9
// wide pixels has 9×9 products in place of 144, with only 6×6 different weights: the four odd places along an axis share theirs. One
// bilinear form serves the transposed convolution, the one with a stride, and the gradients of both. Filters are passes of their own:
// folded into the weights they would make 6 taps of 3, and 144 products.
#pragma once

#include <cstdint>

#include "bias_act/activation_settings.h"

namespace rwm {

constexpr std::int64_t kSlabs = 36;  // products with weights of their own: 6×6 an axis each

// Where the 81 products of a resampling tile lie: those that share weights follow one another.
struct WidePlaces {
  std::int32_t of[81] = {};        // of the product at row i and column j of 9, [9·i + j]
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

enum class Stride : std::int64_t { one = 0, up = 1, down = 2 };

struct WinogradPlan {
  std::int64_t batch, in_h, in_w, in_c, out_h, out_w, out_c;
  Stride stride;
  std::int64_t off_y, off_x;  // stride one: first row and column of a tile's patch, from tile·4
  std::int64_t tiles_y, tiles_x;

  std::int64_t tiles() const { return batch * tiles_y * tiles_x; }
  bool wide() const { return stride != Stride::one; }
  std::int64_t points() const { return wide() ? 81 : 36; }
  std::int64_t first(std::int64_t slab) const { return wide() ? kWidePlaces.first[slab] : slab; }
  std::int64_t count(std::int64_t slab) const { return wide() ? kWidePlaces.count[slab] : 1; }
};

// Where the points of a block of tiles lie: point q of tile t at q·step + t·row.
struct Grid {
  std::int64_t step;  // from point to point
  std::int64_t row;   // from tile to tile
};

// A scale for each channel and pixel: sum_k regions[n, k, p]·scale[n, k, c]. Without regions there is one style: scale[n, c]; without a scale
// it is 1.
template <class A>
struct Blend {
  const A* scale = nullptr;    // [N, K, C]
  const A* regions = nullptr;  // [N, K, H, W]
  std::int64_t styles = 1;     // K
};

// y = clamp(act(b·u + noise + bias)·gain); without `activate`, y = b·u and the products the gradient of b's vectors needs.
template <class T, class A>
struct Epilogue {
  Blend<A> blend;               // b
  const A* noise = nullptr;     // [N or 1, H, W], times its strength
  std::int64_t noise_step = 0;  // from one image to the next
  const A* bias = nullptr;      // [O]
  ActivationSettings<A> activation{A(1), A(1), A(0)};
  bool activate = false;
  const T* x = nullptr;   // [N, H, W, O]
  A* products = nullptr;  // [tiles, K, O]: sum_p r_k·x·u over a tile
};

// 3×3 kernels in memory: that from input channel i to output channel o at o·out + i·in, its nine numbers `tap` apart.
struct KernelStrides {
  std::int64_t out, in, tap;
};

}  // namespace rwm
