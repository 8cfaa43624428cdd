// A patch, or a window of the adjoint, as Y · plane · Xᵀ: what kernels.h reads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "crop_patches/bands.h"

namespace rwm::crop_patches {

constexpr std::int64_t kWidest = 16;  // numbers of a vector

// Tap k of row o reads the input row at row_from[k·rows + o], −1 for none. Tap k of element e of
// vector v of a row reads element base[v] + at[e] + k·step of a line, which is an input row between
// zeros.
template <class A>
struct PlanView {
  const std::int64_t* row_from;
  const A *row_weight, *weight;      // [row_taps][rows], [taps][padded]
  const std::int64_t *base, *reach;  // reach: the largest at[e] of the vector
  const std::int32_t* at;            // [padded]
  std::int64_t rows, row_taps, taps, step, out,
      padded;  // out: elements of a row; padded: to whole vectors of any width
  std::int64_t before, in,
      room;  // of a line: zeros in front, elements of an input row, all with zeros behind
};

// Keeps its memory when it is made anew.
template <class A>
class Plan {
 public:
  // Rows of the bands read input rows and positions `y_shift` and `x_shift` farther; what is
  // outside [0, height) × [0, width) is zero. Input rows start at `left` and are `stride` elements
  // apart; a position has `inner` channels side by side.
  void set(const Band<A>& y, std::int64_t y_shift, std::int64_t height, const Band<A>& x,
           std::int64_t x_shift, std::int64_t width, std::int64_t inner, std::int64_t left,
           std::int64_t stride) {
    set_rows(y, y_shift, height, left, stride);
    set_columns(x, x_shift, width, inner);
  }

  // Which elements each vector of `lanes` outputs reads.
  void set_vectors(std::int64_t lanes) {
    const std::int64_t vectors = num_chunks(v_.out, lanes);
    base_.resize(vectors), reach_.resize(vectors), at_.assign(v_.padded, 0);
    for (std::int64_t i = 0; i < vectors; ++i) {
      const std::int64_t begin = i * lanes, end = std::min(v_.out, begin + lanes);
      const auto range = std::minmax_element(from_.data() + begin, from_.data() + end);
      base_[i] = *range.first, reach_[i] = *range.second - *range.first;
      for (std::int64_t e = begin; e < end; ++e)
        at_[e] = static_cast<std::int32_t>(from_[e] - base_[i]);
    }
  }

  PlanView<A> view() const {
    PlanView<A> v = v_;
    v.row_from = row_from_.data(), v.row_weight = row_weight_.data(), v.weight = weight_.data();
    v.base = base_.data(), v.reach = reach_.data(), v.at = at_.data();
    return v;
  }

  bool empty() const { return !v_.rows || !v_.out; }

  // From the first to behind the last element that rows `begin` and end − 1 read: what the rows
  // between them read too.
  std::pair<std::int64_t, std::int64_t> input_of(std::int64_t begin, std::int64_t end) const {
    std::int64_t low = -1, high = -1;
    for (std::int64_t k = 0; k < v_.row_taps; ++k) {
      for (const std::int64_t o : {begin, end - 1}) {
        const std::int64_t from = row_from_[k * v_.rows + o];
        if (from >= 0 && (low < 0 || from < low)) low = from;
        high = std::max(high, from);
      }
    }
    return low < 0 ? std::make_pair<std::int64_t, std::int64_t>(0, 0)
                   : std::make_pair(low, high + v_.in);
  }

 private:
  void set_rows(const Band<A>& y, std::int64_t shift, std::int64_t height, std::int64_t left,
                std::int64_t stride) {
    v_.rows = static_cast<std::int64_t>(y.start.size());
    v_.row_taps = y.taps;
    row_from_.assign(v_.rows * y.taps, -1);
    row_weight_.assign(v_.rows * y.taps, A(0));
    for (std::int64_t o = 0; o < v_.rows; ++o) {
      for (std::int64_t k = 0; k < y.count[o]; ++k) {
        const std::int64_t at = y.start[o] + shift + k;
        if (at < 0 || at >= height) continue;
        row_from_[k * v_.rows + o] = at * stride + left;
        row_weight_[k * v_.rows + o] = y.weight[o * y.taps + k];
      }
    }
  }

  void set_columns(const Band<A>& x, std::int64_t shift, std::int64_t width, std::int64_t inner) {
    const std::int64_t outputs = static_cast<std::int64_t>(x.start.size());
    v_.taps = x.taps, v_.step = v_.before = inner, v_.in = width * inner;
    v_.out = outputs * inner, v_.padded = num_chunks(v_.out, kWidest) * kWidest;
    v_.room = v_.before + v_.in + x.taps * inner + 2 * kWidest;
    from_.resize(v_.out);
    weight_.assign(v_.padded * x.taps, A(0));
    std::int64_t e = 0;
    for (std::int64_t o = 0; o < outputs; ++o) {
      const std::int64_t first = v_.before + (x.count[o] ? (x.start[o] + shift) * inner : v_.in);
      for (std::int64_t c = 0; c < inner; ++c, ++e) {
        from_[e] = first + c;
        for (std::int64_t k = 0; k < x.taps; ++k)
          weight_[k * v_.padded + e] = x.weight[o * x.taps + k];
      }
    }
  }

  PlanView<A> v_{};
  std::vector<std::int64_t> row_from_, from_, base_, reach_;
  std::vector<std::int32_t> at_;
  std::vector<A> row_weight_, weight_;
};

}  // namespace rwm::crop_patches
