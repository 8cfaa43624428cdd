// Rows as weighted sums of rows, and the band matrix along them: the loops of cpu.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "crop_patches/bands.h"
#include "crop_patches/lanes.h"

namespace rwm::crop_patches {

// Eight rows that are weighted sums of rows: row r is the sum over k of weight[k][r] times the row
// at at[k][r].
template <class T, class A>
struct RowSums {
  std::int64_t taps = 0;
  std::vector<const T*> at;
  std::vector<A> weight;
  std::vector<T> zeros;  // the row that rows without taps read

  // For rows of `size` numbers that are sums of at most `taps_`.
  void start(std::int64_t taps_, std::int64_t size) {
    taps = taps_;
    zeros.resize(std::max<std::int64_t>(size, zeros.size()), T(0));
    at.assign(taps * kLanes, zeros.data());
    weight.assign(taps * kLanes, A(0));
  }

  // Unused taps repeat the last one with weight 0: they read nothing that the row does not.
  void set(std::int64_t row, const T* first, std::int64_t stride, const A* weights,
           std::int64_t count) {
    for (std::int64_t k = 0; k < taps; ++k) {
      at[k * kLanes + row] = count ? first + std::min(k, count - 1) * stride : zeros.data();
      weight[k * kLanes + row] = k < count ? weights[k] : A(0);
    }
  }
};

// The band matrix along x, for elements: the `inner` channels of a position are adjacent.
template <class A>
struct Columns {
  std::int64_t taps = 0;
  std::int64_t step = 1;             // elements from tap to tap
  std::int64_t before = 0;           // zeros at the start of a buffer
  std::int64_t in = 0;               // elements of an input row, which follows
  std::int64_t room = 0;             // elements of the buffer, with zeros at the end
  std::int64_t out = 0, padded = 0;  // elements of an output row; the same in whole vectors
  std::vector<std::int64_t> from;    // [padded] first input of each output
  std::vector<A> weight;             // [taps][padded]

  // The input row has `inputs` positions; position 0 of the band is `shift` of them, and may be −1.
  Columns() = default;
  Columns(const Band<A>& band, std::int64_t inner, std::int64_t inputs, std::int64_t shift)
      : taps(band.taps), step(inner), before(shift < 0 ? inner : 0), in(inputs * inner) {
    out = static_cast<std::int64_t>(band.start.size()) * inner;
    padded = num_chunks(out, kLanes) * kLanes;
    room = before + num_chunks(in, kLanes) * kLanes + taps * inner;
    from.assign(padded, before + in);
    weight.assign(taps * padded, A(0));
    std::int64_t e = 0;
    for (std::size_t o = 0; o < band.start.size(); ++o) {
      for (std::int64_t c = 0; c < inner; ++c, ++e) {
        if (band.count[o]) from[e] = before + (band.start[o] + shift) * inner + c;
        for (std::int64_t k = 0; k < taps; ++k) weight[k * padded + e] = band.weight[o * taps + k];
      }
    }
  }
};

// ---- Eight rows at a time

// v[e][r] = element first + e of row r.
template <bool WHOLE, class T, class A>
RWM_INLINE void sum_rows(const T* const* at, const A* weight, std::int64_t taps, std::int64_t first,
                         std::int64_t count, Lanes<A> (&v)[kLanes]) {
#pragma GCC unroll 8
  for (int r = 0; r < 8; ++r) v[r] = Lanes<A>{};
  for (std::int64_t k = 0; k < taps; ++k, at += kLanes, weight += kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      const T* p = at[r] + first;
      v[r] += weight[r] * (WHOLE ? load<A>(p) : load_some<A>(p, count));
    }
  }
  transpose(v);
}

// buffer[e][r] = element e of row r, with zeros around.
template <class T, class A>
struct FillBuffer {
  static RWM_INLINE void run(const T* const* at, const A* weight, std::int64_t taps,
                             std::int64_t before, std::int64_t in, std::int64_t room, A* buffer) {
    for (std::int64_t e = 0; e < before; ++e) store<A>(buffer + e * kLanes, Lanes<A>{});
    A* out = buffer + before * kLanes;
    Lanes<A> v[kLanes];
    std::int64_t e = 0;
    for (; e + kLanes <= in; e += kLanes, out += kLanes * kLanes) {
      sum_rows<true>(at, weight, taps, e, kLanes, v);
#pragma GCC unroll 8
      for (int q = 0; q < 8; ++q) store<A>(out + q * kLanes, v[q]);
    }
    if (e < in) {
      sum_rows<false>(at, weight, taps, e, in - e, v);
      for (int q = 0; q < 8; ++q, out += kLanes) store<A>(out, v[q]);
    }
    for (; out < buffer + room * kLanes; out += kLanes) store<A>(out, Lanes<A>{});
  }
};

// v[r][q] = element first + q of row r: the band matrix along x, applied to the buffer.
template <class A>
RWM_INLINE void sum_columns(const std::int64_t* from, const A* weight, std::int64_t taps,
                            std::int64_t padded, std::int64_t step, const A* buffer,
                            Lanes<A> (&v)[kLanes]) {
  const A* x[kLanes];
#pragma GCC unroll 8
  for (int q = 0; q < 8; ++q) {
    x[q] = buffer + from[q] * kLanes;
    v[q] = weight[q] * load<A>(x[q]);
  }
  for (std::int64_t k = 1; k < taps; ++k) {
    weight += padded;
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q) v[q] += weight[q] * load<A>(x[q] + k * step * kLanes);
  }
  transpose(v);
}

// Rows r < count of `out` from the buffer: written in whole vectors and one short one, or added to.
// `out` then has room for whole vectors.
template <class T, class A, bool ADD>
struct EmptyBuffer {
  static RWM_INLINE void run(const std::int64_t* from, const A* weight, std::int64_t taps,
                             std::int64_t padded, std::int64_t step, const A* buffer, T* out,
                             std::int64_t stride, std::int64_t size, std::int64_t count) {
    Lanes<A> v[kLanes];
    for (std::int64_t e = 0; e < size; e += kLanes, out += kLanes) {
      sum_columns(from + e, weight + e, taps, padded, step, buffer, v);
      if (ADD) {
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) store<A>(out + r * stride, load<A>(out + r * stride) + v[r]);
      } else if (count == kLanes && e + kLanes <= size) {
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) store<A>(out + r * stride, v[r]);
      } else {
        for (int r = 0; r < count; ++r) {
          store_some<A>(out + r * stride, v[r], std::min(kLanes, size - e));
        }
      }
    }
  }
};

// rows -> buffer -> out.
template <bool ADD, class T, class A, class Out>
void eight_rows(const RowSums<T, A>& rows, const Columns<A>& columns, A* buffer, Out* out,
                std::int64_t stride, std::int64_t count) {
  run_best<FillBuffer<T, A>>(rows.at.data(), rows.weight.data(), rows.taps, columns.before,
                             columns.in, columns.room, buffer);
  run_best<EmptyBuffer<Out, A, ADD>>(columns.from.data(), columns.weight.data(), columns.taps,
                                     columns.padded, columns.step, static_cast<const A*>(buffer),
                                     out, stride, columns.out, count);
}

// ---- One row of many channels at a time

// x[e] += weight · y[e]
template <class T, class A>
struct AddScaled {
  static RWM_INLINE void run(A* __restrict__ x, const T* __restrict__ y, std::int64_t size,
                             A weight) {
    for (std::int64_t e = 0; e < size; ++e) x[e] += weight * static_cast<A>(y[e]);
  }
};

template <class T, class A>
struct Convert {
  static RWM_INLINE void run(const A* __restrict__ x, T* __restrict__ y, std::int64_t size) {
    for (std::int64_t i = 0; i < size; ++i) y[i] = static_cast<T>(x[i]);
  }
};

// sums[o·inner + c] += Σ_k x.weight[o][k] · line[(x.start[o] + k)·inner + c], where line is row 0
// of `rows`; line position 0 is input position `left` of the band.
template <class T, class A>
void one_row(const RowSums<T, A>& rows, const Band<A>& x, std::int64_t inner, std::int64_t inputs,
             std::int64_t left, std::vector<A>& line, A* sums) {
  line.assign(inputs * inner, A(0));
  for (std::int64_t k = 0; k < rows.taps; ++k) {
    const A weight = rows.weight[k * kLanes];
    if (weight != A(0)) {
      run_best<AddScaled<T, A>>(line.data(), rows.at[k * kLanes], inputs * inner, weight);
    }
  }
  for (std::size_t o = 0; o < x.start.size(); ++o) {
    for (std::int64_t k = 0; k < x.count[o]; ++k) {
      const std::int64_t from = x.start[o] + k - left;
      if (from < 0 || from >= inputs) continue;
      run_best<AddScaled<A, A>>(sums + o * inner, static_cast<const A*>(line.data()) + from * inner,
                                inner, x.weight[o * x.taps + k]);
    }
  }
}

}  // namespace rwm::crop_patches
