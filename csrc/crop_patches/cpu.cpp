// crop_patches and its adjoint on the CPU.
//
// Both are two band matrices (bands.h) applied to a plane: first along y, which is a weighted sum
// of whole rows, then along x. The second is made of whole vectors too, by working on eight rows at
// a time: their sums are transposed in registers, so that the eight values at one x lie side by
// side and share a weight. Where channels are innermost and many, they take the place of the eight
// rows.
//
// The image is read in place. The adjoint gathers: every pixel of the gradient is summed in float32
// or better, over the patches in order, and written once; the result does not depend on the number
// of threads.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "crop_patches/bands.h"
#include "crop_patches/lanes.h"

namespace {
using namespace rwm;
using namespace rwm::crop_patches;

constexpr std::int64_t kGrain = 1 << 14;   // numbers written by a thread's piece, at least
constexpr std::int64_t kManyChannels = 8;  // innermost channels that fill a vector by themselves

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

// ---- The operators

// A plane is what shares its rows: a channel, or all channels where they are innermost.
struct Shape {
  std::int64_t images, patches, planes, inner, height, width, size;

  std::int64_t image_row() const { return width * inner; }
  std::int64_t patch_row() const { return size * inner; }
  std::int64_t image_plane() const { return height * image_row(); }
  std::int64_t patch_plane() const { return size * patch_row(); }
  bool many_channels() const { return inner >= kManyChannels; }
};

std::vector<double> boxes_as_double(Pointer boxes, int dtype, std::int64_t count) {
  present("crop_patches", count, {boxes});
  std::vector<double> values(count);
  if (dtype == static_cast<int>(DType::f64)) {
    std::copy_n(as<const double>(boxes), count, values.begin());
  } else {
    check(dtype == static_cast<int>(DType::f32), "crop_patches: boxes of dtype code ", dtype);
    std::copy_n(as<const float>(boxes), count, values.begin());
  }
  return values;
}

// Rows first … first + 7 of a patch as sums of image rows; what is outside the image is left out.
template <class T, class A>
void image_rows(const Shape& s, const Band<A>& y, const T* plane, std::int64_t first,
                std::int64_t size, RowSums<T, A>& rows) {
  rows.start(2, size);
  for (std::int64_t i = first; i < std::min(first + kLanes, s.size); ++i) {
    if (!y.count[i]) continue;
    const std::int64_t top = y.low + y.start[i];
    const std::int64_t begin = std::max<std::int64_t>(0, top), end = std::min(s.height, top + 2);
    rows.set(i - first, plane + begin * s.image_row(), s.image_row(),
             &y.weight[2 * i + begin - top], end - begin);
  }
}

template <class T>
struct Scratch {
  using A = accumulate_t<T>;
  RowSums<T, A> rows;
  std::vector<A> line, sums;

  // Room for eight rows, where no vector crosses a cache line.
  A* buffer(const Columns<A>& columns) {
    constexpr std::size_t kCacheLine = 64;
    std::size_t size = columns.room * kLanes * sizeof(A) + kCacheLine;
    if (bytes.size() < size) bytes.resize(size);
    void* start = bytes.data();
    return static_cast<A*>(std::align(kCacheLine, size - kCacheLine, start, size));
  }

 private:
  std::vector<unsigned char> bytes;
};

template <class T, class A = accumulate_t<T>>
void crop(const Shape& s, const double* box, const T* image, T* patch, Scratch<T>& scratch) {
  const Band<A> x = sampling<A>(box[0], box[2], s.size, s.width);
  const Band<A> y = sampling<A>(box[1], box[3], s.size, s.height);
  // The window inside the image; empty where no point is inside, for x.low is the width then. It is
  // widened to whole vectors if the image is large enough.
  std::int64_t left = std::max<std::int64_t>(0, x.low);
  std::int64_t inputs = std::max<std::int64_t>(0, std::min(s.width, x.low + x.pixels) - left);
  const std::int64_t whole = num_chunks(inputs, kLanes) * kLanes;
  if (whole <= s.width && !s.many_channels()) inputs = whole;
  left = std::min(left, s.width - inputs);
  const std::int64_t step = s.many_channels() ? 1 : kLanes;
  Columns<A> columns;
  if (!s.many_channels()) columns = Columns<A>(x, s.inner, inputs, x.pixels ? x.low - left : 0);
  A* const buffer = scratch.buffer(columns);
  for (std::int64_t c = 0; c < s.planes; ++c, image += s.image_plane(), patch += s.patch_plane()) {
    for (std::int64_t i = 0; i < s.size; i += step) {
      image_rows(s, y, image + left * s.inner, i, inputs * s.inner, scratch.rows);
      T* const out = patch + i * s.patch_row();
      if (s.many_channels()) {
        scratch.sums.assign(s.patch_row(), A(0));
        one_row(scratch.rows, x, s.inner, inputs, left - x.low, scratch.line, scratch.sums.data());
        run_best<Convert<T, A>>(static_cast<const A*>(scratch.sums.data()), out, s.patch_row());
      } else {
        eight_rows<false>(scratch.rows, columns, buffer, out, s.patch_row(),
                          std::min(kLanes, s.size - i));
      }
    }
  }
}

// The transposed bands of one box.
template <class A>
struct Window {
  Band<A> x, y;
  Columns<A> columns;

  Window() = default;
  Window(const Shape& s, const double* box)
      : x(transposed(sampling<A>(box[0], box[2], s.size, s.width), s.width)),
        y(transposed(sampling<A>(box[1], box[3], s.size, s.height), s.height)) {
    if (!s.many_channels()) columns = Columns<A>(x, s.inner, s.size, 0);
  }

  bool meets(std::int64_t first, std::int64_t count) const {
    return x.pixels > 0 && first < y.low + y.pixels && first + count > y.low;
  }
};

// Rows first … first + 7 of the image as sums of patch rows.
template <class T, class A>
void patch_rows(const Shape& s, const Band<A>& y, const T* plane, std::int64_t first,
                RowSums<T, A>& rows) {
  rows.start(y.taps, s.patch_row());
  const std::int64_t begin = std::max(first, y.low);
  for (std::int64_t i = begin; i < std::min(first + kLanes, y.low + y.pixels); ++i) {
    const std::int64_t o = i - y.low;
    rows.set(i - first, plane + y.start[o] * s.patch_row(), s.patch_row(), &y.weight[o * y.taps],
             y.count[o]);
  }
}

// `count` rows of one plane of the image's gradient: up to eight, or one of many channels.
template <class T, class A = accumulate_t<T>>
void uncrop(const Shape& s, const Window<A>* windows, const T* patches, T* image,
            std::int64_t first, std::int64_t count, Scratch<T>& scratch) {
  const std::int64_t stride = s.image_row() + kLanes;
  scratch.sums.assign(stride * kLanes, A(0));
  for (std::int64_t p = 0; p < s.patches; ++p) {
    const Window<A>& window = windows[p];
    if (!window.meets(first, count)) continue;
    patch_rows(s, window.y, patches + p * s.planes * s.patch_plane(), first, scratch.rows);
    A* const out = scratch.sums.data() + window.x.low * s.inner;
    if (s.many_channels()) {
      one_row(scratch.rows, window.x, s.inner, s.size, 0, scratch.line, out);
    } else {
      A* const buffer = scratch.buffer(window.columns);
      eight_rows<true>(scratch.rows, window.columns, buffer, out, stride, count);
    }
  }
  for (std::int64_t r = 0; r < count; ++r) {
    run_best<Convert<T, A>>(static_cast<const A*>(scratch.sums.data()) + r * stride,
                            image + (first + r) * s.image_row(), s.image_row());
  }
}

// Both sides have a pixel in every plane, or there is nothing to sample and nowhere to gather.
Shape shape_of(std::int64_t images, std::int64_t patches, std::int64_t channels,
               std::int64_t height, std::int64_t width, std::int64_t size, bool channels_last,
               Pointer image, Pointer crops) {
  const char* const op = "crop_patches";
  check(std::min({channels, height, width, size}) > 0, op, ": planes must have pixels");
  present(op, elements(op, {images, channels, height, width}), {image});
  present(op, elements(op, {images, patches, channels, size, size}), {crops});
  return {images, patches, channels_last ? 1 : channels, channels_last ? channels : 1, height,
          width,  size};
}

void forward(Pointer image, Pointer boxes, Pointer patches, std::int64_t images,
             std::int64_t num_patches, std::int64_t channels, std::int64_t height,
             std::int64_t width, std::int64_t size, bool channels_last, int dtype,
             int boxes_dtype) {
  const Shape s = shape_of(images, num_patches, channels, height, width, size, channels_last, image,
                           patches);
  const std::vector<double> corners = boxes_as_double(boxes, boxes_dtype, images * num_patches * 4);
  dispatch(static_cast<DType>(dtype), "crop_patches", [&](auto tag) {
    using T = typename decltype(tag)::type;
    const std::int64_t image_size = s.planes * s.image_plane();
    const std::int64_t patch_size = s.planes * s.patch_plane();
    const std::int64_t grain = std::max<std::int64_t>(1, kGrain / patch_size);
    parallel_for(0, images * num_patches, grain, [&](std::int64_t begin, std::int64_t end) {
      Scratch<T> scratch;
      for (std::int64_t i = begin; i < end; ++i) {
        crop(s, &corners[4 * i], as<const T>(image) + i / num_patches * image_size,
             as<T>(patches) + i * patch_size, scratch);
      }
    });
  });
}

void adjoint(Pointer patches, Pointer boxes, Pointer image, std::int64_t images,
             std::int64_t num_patches, std::int64_t channels, std::int64_t height,
             std::int64_t width, std::int64_t size, bool channels_last, int dtype,
             int boxes_dtype) {
  const Shape s = shape_of(images, num_patches, channels, height, width, size, channels_last, image,
                           patches);
  const std::vector<double> corners = boxes_as_double(boxes, boxes_dtype, images * num_patches * 4);
  dispatch(static_cast<DType>(dtype), "crop_patches", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    std::vector<Window<A>> windows(images * num_patches);
    parallel_for(0, images * num_patches, 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) windows[i] = Window<A>(s, &corners[4 * i]);
    });
    const std::int64_t step = s.many_channels() ? 1 : kLanes, blocks = num_chunks(height, step);
    const std::int64_t grain = std::max<std::int64_t>(1, kGrain / (step * s.image_row()));
    parallel_for(0, images * s.planes * blocks, grain, [&](std::int64_t begin, std::int64_t end) {
      Scratch<T> scratch;
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t first = i % blocks * step, plane = i / blocks, n = plane / s.planes;
        const std::int64_t patch_plane = n * num_patches * s.planes + plane % s.planes;
        uncrop(s, &windows[n * num_patches], as<const T>(patches) + patch_plane * s.patch_plane(),
               as<T>(image) + plane * s.image_plane(), first, std::min(step, height - first),
               scratch);
      }
    });
  });
}

}  // namespace

RWM_BIND(crop_patches) {
  const py::call_guard<py::gil_scoped_release> unlocked;
  m.def("crop_patches_forward", &forward, unlocked);
  m.def("crop_patches_adjoint", &adjoint, unlocked);
}
