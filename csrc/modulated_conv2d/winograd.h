// What the passes of modulated_conv2d share: shapes, scales and the epilogue as plain numbers and pointers.
//
// Winograd F(4×4, 3×3): a 3×3 correlation on tiles of 4×4 outputs is y = Aᵀ[(G w Gᵀ) ⊙ (Bᵀ d B)]A, summed over channels between the
// transforms: 36 products in place of 144. Points 0, ±√½, ±√2, ∞: the usual 0, ±1, ±2 lose four times as much to rounding.
//
// Resampling layers are correlations of the same kind on phases. Filter and kernel together span at most 6 taps, and every second output
// (up 2) or input (down 2) meets at most 3 of them. So `up` writes 2×2 output phases and `down` reads 2×2 input phases, and the filter
// lives in the weights: there is no filter pass and no image between.
#pragma once

#include <cstdint>

#include "bias_act/activation_settings.h"

namespace rwm {

constexpr std::int64_t kPoints = 36;  // 6×6 values a tile

struct WinogradPlan {
  std::int64_t batch, in_h, in_w, in_c, out_h, out_w, out_c;
  std::int64_t in_step, out_step;  // phases along each axis: 1 or 2
  std::int64_t off_y, off_x;       // first row and column of a tile's patch, in pixels of a phase, from tile·4
  std::int64_t tiles_y, tiles_x;

  std::int64_t depth() const { return in_step * in_step * in_c; }
  std::int64_t columns() const { return out_step * out_step * out_c; }
  std::int64_t tiles() const { return batch * tiles_y * tiles_x; }
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
  A* products = nullptr;  // [tiles, output phases, K, O]: sum_p r_k·x·u over a tile
};

}  // namespace rwm
