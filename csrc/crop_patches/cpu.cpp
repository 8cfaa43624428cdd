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
#include "crop_patches/rows.h"

namespace {
using namespace rwm;
using namespace rwm::crop_patches;

constexpr std::int64_t kGrain = 1 << 14;   // numbers written by a thread's piece, at least
constexpr std::int64_t kManyChannels = 8;  // innermost channels that fill a vector by themselves

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
             y.weight.data() + 2 * i + begin - top, end - begin);
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

// Asks for a window of a plane before it is needed: its rows are too short for the processor's prefetchers.
template <class T>
void prefetch_window(const T* corner, std::int64_t stride, std::int64_t rows, std::int64_t size) {
  constexpr std::int64_t kLine = 64 / sizeof(T);
  for (std::int64_t r = 0; r < rows; ++r, corner += stride) {
    for (std::int64_t e = 0; e < size; e += kLine) __builtin_prefetch(corner + e);
  }
}

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
  const std::int64_t top = std::min(s.height, std::max<std::int64_t>(0, y.low));
  const std::int64_t tall = std::max<std::int64_t>(0, std::min(s.height, y.low + y.pixels) - top);
  const std::int64_t window = top * s.image_row() + left * s.inner;
  prefetch_window(image + window, s.image_row(), tall, inputs * s.inner);
  for (std::int64_t c = 0; c < s.planes; ++c, image += s.image_plane(), patch += s.patch_plane()) {
    if (c + 1 < s.planes) {
      prefetch_window(image + s.image_plane() + window, s.image_row(), tall, inputs * s.inner);
    }
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
    rows.set(i - first, plane + y.start[o] * s.patch_row(), s.patch_row(), y.weight.data() + o * y.taps,
             y.count[o]);
  }
}

// Asks for the patch rows that `count` rows of the image need, of all patches at once: one after the
// other, each would wait for memory by itself.
template <class T, class A>
void prefetch_patch_rows(const Shape& s, const Window<A>* windows, const T* patches,
                         std::int64_t first, std::int64_t count) {
  for (std::int64_t p = 0; p < s.patches; ++p) {
    const Window<A>& window = windows[p];
    if (!window.meets(first, count)) continue;
    const Band<A>& y = window.y;
    const std::int64_t top = std::max(first, y.low) - y.low;
    const std::int64_t bottom = std::min(first + count, y.low + y.pixels) - y.low - 1;
    const T* plane = patches + p * s.planes * s.patch_plane();
    const std::int64_t rows = y.start[bottom] + y.count[bottom] - y.start[top];
    prefetch_window(plane + y.start[top] * s.patch_row(), s.patch_row(), rows, s.patch_row());
  }
}

// `count` rows of one plane of the image's gradient: up to eight, or one of many channels.
template <class T, class A = accumulate_t<T>>
void uncrop(const Shape& s, const Window<A>* windows, const T* patches, T* image,
            std::int64_t first, std::int64_t count, Scratch<T>& scratch) {
  const std::int64_t stride = s.image_row() + kLanes;
  scratch.sums.assign(stride * kLanes, A(0));
  if (!s.many_channels()) prefetch_patch_rows(s, windows, patches, first, count);
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
        crop(s, corners.data() + 4 * i, as<const T>(image) + i / num_patches * image_size,
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
      for (std::int64_t i = begin; i < end; ++i) windows[i] = Window<A>(s, corners.data() + 4 * i);
    });
    const std::int64_t step = s.many_channels() ? 1 : kLanes, blocks = num_chunks(height, step);
    const std::int64_t grain = std::max<std::int64_t>(1, kGrain / (step * s.image_row()));
    parallel_for(0, images * s.planes * blocks, grain, [&](std::int64_t begin, std::int64_t end) {
      Scratch<T> scratch;
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t first = i % blocks * step, plane = i / blocks, n = plane / s.planes;
        const std::int64_t patch_plane = n * num_patches * s.planes + plane % s.planes;
        uncrop(s, windows.data() + n * num_patches, as<const T>(patches) + patch_plane * s.patch_plane(),
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
