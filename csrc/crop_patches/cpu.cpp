// crop_patches and its adjoint on the CPU.
//
// Both are two band matrices (bands.h) applied to planes, Y · plane · Xᵀ, by the same kernels
// (kernels.h): a patch is such a product of the image, and the adjoint adds up such products of the
// patches, with the transposed bands.
//
// The image is read in place. The adjoint gathers: every pixel of the gradient is summed in float32
// or better, over the patches in order, a few rows at a time that stay in the cache; the result
// does not depend on the number of threads.
#include <type_traits>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "crop_patches/plan.h"
#include "crop_patches/records.h"

#define RWM_KERNELS "crop_patches/kernels.h"
#include "common/each_isa.h"

namespace {
using namespace rwm;
using namespace rwm::crop_patches;

const char* const kOp = "crop_patches";

constexpr std::int64_t kGrain = 1 << 14;  // numbers written by a thread's piece, at least

// A plane is what shares its rows: a channel, or all channels where they are innermost.
struct Shape {
  std::int64_t images, patches, planes, inner, height, width, size;

  explicit Shape(const records::Crops& c)
      : images(c.images), patches(c.patches), planes(c.channels_last ? 1 : c.channels),
        inner(c.channels_last ? c.channels : 1), height(c.image_size.first),
        width(c.image_size.second), size(c.size) {}

  std::int64_t image_row() const { return width * inner; }
  std::int64_t patch_row() const { return size * inner; }
  std::int64_t image_plane() const { return height * image_row(); }
  std::int64_t patch_plane() const { return size * patch_row(); }
};

// Four numbers a patch.
std::vector<double> boxes_as_double(Pointer boxes, const records::Crops& c) {
  const std::int64_t count = c.images * c.patches * 4;
  if (static_cast<DType>(c.boxes_dtype) == DType::f32) {
    return {as<const float>(boxes), as<const float>(boxes) + count};
  }
  return {as<const double>(boxes), as<const double>(boxes) + count};
}

template <class A>
std::int64_t vector_lanes() {
  std::int64_t lanes = 0;
  RWM_EACH_ISA(A, crop_lanes<A>(lanes));
  return lanes;
}

// Asks for numbers before they are needed: rows of windows are too short for the processor's
// prefetchers. Always inlined, and so is what calls it: GCC takes a function that only prefetches
// for one without effects, and leaves out the call.
template <class T>
RWM_INLINE void prefetch(const T* from, const T* end) {
  for (; from < end; from += 64 / sizeof(T)) __builtin_prefetch(from);
}

// Applies plans, a block of rows at a time.
template <class T>
class Blocks {
 public:
  using A = accumulate_t<T>;

  // Rows [begin, end) of the product, and `soon(i, n)` before the i-th of n blocks.
  template <bool Add, class U, class Soon>
  void run(const PlanView<A>& plan, const T* plane, std::int64_t begin, std::int64_t end, U* out,
           std::int64_t stride, const Soon& soon) {
    const std::int64_t block = start(plan), blocks = num_chunks(end - begin, block);
    for (std::int64_t i = 0; i < blocks; ++i) {
      soon(i, blocks);
      const std::int64_t first = begin + i * block, rows = std::min(block, end - first);
      const T* zeros = zeros_.data();
      RWM_EACH_ISA(A, crop_rows<Add>(plan, plane, zeros, lines_.data(), first, rows,
                                     out + i * block * stride, stride));
    }
  }

 private:
  static constexpr std::int64_t
      kLines = 4096,
      kMost = 8;  // numbers in all lines, which stay in the nearest cache; lines

  std::int64_t start(const PlanView<A>& plan) {
    const std::int64_t block = std::min(kMost, std::max<std::int64_t>(1, kLines / plan.room));
    lines_.resize(std::max<std::size_t>(lines_.size(), block * plan.room));
    zeros_.resize(std::max<std::size_t>(zeros_.size(), plan.in), T(0));
    for (std::int64_t r = 0; r < block; ++r) {
      A* line = lines_.data() + r * plan.room;
      std::fill(line, line + plan.before, A(0));
      std::fill(line + plan.before + plan.in, line + plan.room, A(0));
    }
    return block;
  }

  std::vector<A> lines_;
  std::vector<T> zeros_;
};

// Crops patch after patch.
template <class T>
class Cropper {
 public:
  using A = accumulate_t<T>;

  explicit Cropper(const Shape& shape)
      : s_(shape), points_(sample_points(shape.size)), lanes_(vector_lanes<A>()) {}

  void operator()(const double* box, const T* image, T* patch) {
    sampling(box[0], box[2], points_, s_.width, x_);
    sampling(box[1], box[3], points_, s_.height, y_);
    // The window inside the image; empty where no point is inside, for low is the extent then.
    const std::int64_t left = std::max<std::int64_t>(0, x_.low),
                       top = std::max<std::int64_t>(0, y_.low);
    const std::int64_t wide = std::min(s_.width, x_.low + x_.pixels) - left,
                       tall = std::min(s_.height, y_.low + y_.pixels) - top;
    if (wide <= 0 || tall <= 0) {
      std::fill_n(patch, s_.planes * s_.patch_plane(), T(0));
      return;
    }
    const auto prefetch_window = [&](std::int64_t plane, std::int64_t begin,
                                     std::int64_t end) __attribute__((always_inline)) {
      if (plane >= s_.planes) return;
      const T* row =
          image + plane * s_.image_plane() + (top + begin) * s_.image_row() + left * s_.inner;
      for (std::int64_t r = begin; r < end; ++r, row += s_.image_row())
        prefetch(row, row + wide * s_.inner);
    };
    prefetch_window(0, 0, tall);
    plan_.set(y_, y_.low, s_.height, x_, x_.low - left, wide, s_.inner, left * s_.inner,
              s_.image_row());
    plan_.set_vectors(lanes_);
    const PlanView<A> plan = plan_.view();
    for (std::int64_t c = 0; c < s_.planes; ++c) {
      blocks_.template run<false>(
          plan, image + c * s_.image_plane(), 0, s_.size, patch + c * s_.patch_plane(),
          s_.patch_row(), [&](std::int64_t i, std::int64_t n) __attribute__((always_inline)) {
            prefetch_window(c + 1, tall * i / n, tall * (i + 1) / n);
          });
    }
  }

 private:
  const Shape s_;
  const std::vector<double> points_;
  const std::int64_t lanes_;
  Band<A> x_, y_;
  Plan<A> plan_;
  Blocks<T> blocks_;
};

// Where the samples of one patch go: a product, and the corner of its result.
template <class A>
struct Window {
  std::int64_t top = 0, rows = 0, left = 0;
  Plan<A> plan;

  Window() = default;
  Window(const Shape& s, const std::vector<double>& points, std::int64_t lanes, const double* box) {
    Band<A> band;
    sampling(box[1], box[3], points, s.height, band);
    const Band<A> y = transposed(band, s.height);
    sampling(box[0], box[2], points, s.width, band);
    const Band<A> x = transposed(band, s.width);
    top = y.low, left = x.low * s.inner;
    plan.set(y, 0, s.size, x, 0, s.size, s.inner, 0, s.patch_row());
    plan.set_vectors(lanes);
    rows = plan.empty() ? 0 : y.pixels;
  }
};

// Computes rows of the image's gradient.
template <class T>
class Uncropper {
 public:
  using A = accumulate_t<T>;

  explicit Uncropper(const Shape& shape) : s_(shape) {}

  // Rows [first, last) of a plane, from its patches.
  void operator()(const Window<A>* windows, const T* patches, T* image, std::int64_t first,
                  std::int64_t last) {
    const std::int64_t size = (last - first) * s_.image_row();
    image += first * s_.image_row();
    if constexpr (std::is_same_v<T, A>) {
      add(windows, patches, first, last, image);
    } else {
      sums_.resize(size);
      add(windows, patches, first, last, sums_.data());
      RWM_EACH_ISA(A, crop_convert(static_cast<const A*>(sums_.data()), image, size));
    }
  }

 private:
  void add(const Window<A>* windows, const T* patches, std::int64_t first, std::int64_t last,
           A* out) {
    std::fill_n(out, (last - first) * s_.image_row(), A(0));
    const auto next = [&](std::int64_t p) {  // patch from p on that meets these rows
      while (p < s_.patches &&
             std::max(first, windows[p].top) >= std::min(last, windows[p].top + windows[p].rows))
        ++p;
      return p;
    };
    for (std::int64_t p = next(0), q = 0; p < s_.patches; p = q) {
      q = next(p + 1);
      const T *soon = patches, *soon_end = patches;
      if (q < s_.patches) {
        const Window<A>& w = windows[q];
        const auto range =
            w.plan.input_of(std::max(first, w.top) - w.top, std::min(last, w.top + w.rows) - w.top);
        const T* plane = patches + q * s_.planes * s_.patch_plane();
        soon = plane + range.first, soon_end = plane + range.second;
      }
      const auto prefetch_next = [&](std::int64_t i, std::int64_t n)
                                     __attribute__((always_inline)) {
                                       const std::int64_t size = soon_end - soon;
                                       prefetch(soon + size * i / n, soon + size * (i + 1) / n);
                                     };
      const Window<A>& w = windows[p];
      const std::int64_t begin = std::max(first, w.top), end = std::min(last, w.top + w.rows);
      blocks_.template run<true>(
          w.plan.view(), patches + p * s_.planes * s_.patch_plane(), begin - w.top, end - w.top,
          out + (begin - first) * s_.image_row() + w.left, s_.image_row(), prefetch_next);
    }
  }

  const Shape s_;
  Blocks<T> blocks_;
  std::vector<A> sums_;
};

// f(T, shape, boxes) of a call whose buffers are there.
template <class F>
void with_crops(const records::Crops& c, Pointer image, Pointer boxes, Pointer patches,
                const F& f) {
  const Shape s(c);
  const std::int64_t crops = s.images * s.patches;
  present(kOp, s.images * s.planes * s.image_plane(), {image});
  present(kOp, crops, {boxes});
  present(kOp, crops * s.planes * s.patch_plane(), {patches});
  const std::vector<double> corners = boxes_as_double(boxes, c);
  dispatch(static_cast<DType>(c.dtype), kOp, [&](auto tag) { f(tag, s, corners.data()); });
}

void forward(const records::Crops& c, Pointer image, Pointer boxes, Pointer patches) {
  with_crops(c, image, boxes, patches, [&](auto tag, const Shape& s, const double* corners) {
    using T = typename decltype(tag)::type;
    const std::int64_t image_size = s.planes * s.image_plane();
    const std::int64_t patch_size = s.planes * s.patch_plane();
    const std::int64_t grain = std::max<std::int64_t>(1, kGrain / patch_size);
    parallel_for(0, s.images * s.patches, grain, [&](std::int64_t begin, std::int64_t end) {
      Cropper<T> crop(s);
      for (std::int64_t i = begin; i < end; ++i) {
        crop(corners + 4 * i, as<const T>(image) + i / s.patches * image_size,
             as<T>(patches) + i * patch_size);
      }
    });
  });
}

void adjoint(const records::Crops& c, Pointer patches, Pointer boxes, Pointer image) {
  with_crops(c, image, boxes, patches, [&](auto tag, const Shape& s, const double* corners) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const std::vector<double> points = sample_points(s.size);
    const std::int64_t lanes = vector_lanes<A>();
    std::vector<Window<A>> windows(s.images * s.patches);
    parallel_for(0, s.images * s.patches, 16, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i)
        windows[i] = Window<A>(s, points, lanes, corners + 4 * i);
    });
    // Pieces of a plane that stay in the cache while patch after patch is added to them.
    const std::int64_t rows = std::min(s.height, std::max<std::int64_t>(1, kGrain / s.image_row()));
    const std::int64_t pieces = num_chunks(s.height, rows);
    parallel_for(0, s.images * s.planes * pieces, 1, [&](std::int64_t begin, std::int64_t end) {
      Uncropper<T> uncrop(s);
      for (std::int64_t i = begin; i < end; ++i) {
        const std::int64_t first = i % pieces * rows, plane = i / pieces, n = plane / s.planes;
        const std::int64_t patch_plane = n * s.patches * s.planes + plane % s.planes;
        uncrop(windows.data() + n * s.patches, as<const T>(patches) + patch_plane * s.patch_plane(),
               as<T>(image) + plane * s.image_plane(), first, std::min(s.height, first + rows));
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
