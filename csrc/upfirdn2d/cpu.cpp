// upfirdn2d on the CPU: channels_last vectorised over channels, planes over x. A filter that is an
// outer product runs as a column pass into one line and a row pass out of it, so an image is read
// once and written once.
#include <cmath>
#include <limits>
#include <vector>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "upfirdn2d/axis.h"

#define RWM_KERNELS "upfirdn2d/kernels.h"
#include "common/each_isa.h"

namespace {
using namespace rwm;

constexpr std::int64_t kWidest =
    1 << 28;  // of a line with its margins; borders that wide are a mistake
constexpr std::int64_t kGrain =
    1 << 14;  // elements a piece: below, starting a thread costs more than it saves

// The correlation kernel in double [fh, fw], and its factors if it is an outer product up to
// rounding in A.
struct Taps {
  std::int64_t fh, fw;
  std::vector<double> kernel, y, x;
  bool separable = false;

  Taps(const double* filter, std::int64_t fh_, std::int64_t fw_, bool outer, bool flip, double gain,
       double epsilon)
      : fh(fh_), fw(fw_), kernel(fh_ * fw_), y(fh_), x(fw_) {
    for (std::int64_t i = 0; i < fh; ++i)
      for (std::int64_t j = 0; j < fw; ++j) {
        const std::int64_t a = flip ? i : fh - 1 - i, b = flip ? j : fw - 1 - j;
        kernel[i * fw + j] = gain * (outer ? filter[a] * filter[b] : filter[a * fw + b]);
      }
    std::int64_t p = 0;  // the largest tap
    for (std::int64_t k = 1; k < fh * fw; ++k)
      p = std::abs(kernel[k]) > std::abs(kernel[p]) ? k : p;
    const double largest = kernel[p];
    if (!(std::abs(largest) > 0) || !std::isfinite(largest)) return;
    for (std::int64_t i = 0; i < fh; ++i) y[i] = kernel[i * fw + p % fw] / largest;
    for (std::int64_t j = 0; j < fw; ++j) x[j] = kernel[p / fw * fw + j];
    separable = true;
    for (std::int64_t i = 0; i < fh; ++i)
      for (std::int64_t j = 0; j < fw; ++j)
        separable =
            separable && std::abs(kernel[i * fw + j] - y[i] * x[j]) <= epsilon * std::abs(largest);
  }
};

template <class A>
std::vector<A> as_type(const std::vector<double>& values) {
  return std::vector<A>(values.begin(), values.end());
}

// x [N, H, W, C] if channels_last, else [N, C, H, W]; y likewise, [OH, OW]. The filter is double:
// [fh, fw], or [fh] if `outer`, which stands for its product with itself.
void run(Pointer x, Pointer filter, Pointer y, std::int64_t batch, std::int64_t channels,
         std::int64_t height, std::int64_t width, std::int64_t out_height, std::int64_t out_width,
         bool channels_last, std::int64_t fh, std::int64_t fw, bool outer, std::int64_t up_x,
         std::int64_t up_y, std::int64_t down_x, std::int64_t down_y, std::int64_t pad_x,
         std::int64_t pad_y, bool flip, double gain, int dtype) {
  const char* const op = "upfirdn2d";
  const std::int64_t size = elements(op, {batch, channels, out_height, out_width});
  present(op, elements(op, {batch, channels, height, width}), {x});
  present(op, size, {y});
  check(fh > 0 && fw > 0, op, ": a filter has taps, got ", fh, " and ", fw);
  present(op, elements(op, {fh, fw}), {filter});
  check(std::min({up_x, up_y, down_x, down_y}) > 0, op, ": factors must be at least 1");
  elements(op, {std::max(height, width), std::max(up_x, up_y)});
  elements(op, {std::max(out_height, out_width), std::max(down_x, down_y)});
  check(std::abs(pad_x) < kMostElements && std::abs(pad_y) < kMostElements, op,
        ": borders must be narrower");
  const Axis ya(height, out_height, up_y, down_y, pad_y, fh),
      xa(width, out_width, up_x, down_x, pad_x, fw);
  dispatch(static_cast<DType>(dtype), "upfirdn2d", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const Taps taps(as<const double>(filter), fh, fw, outer, flip, gain,
                    2.0 * std::numeric_limits<A>::epsilon());
    const auto ky = as_type<A>(taps.y), kx = as_type<A>(taps.x), kernel = as_type<A>(taps.kernel);
    const auto* px = as<const T>(x);
    auto* py = as<T>(y);
    const std::int64_t lanes = channels_last ? channels : 1,
                       planes = channels_last ? batch : batch * channels;
    const std::int64_t in_plane = height * width * lanes, out_row = out_width * lanes;
    const std::int64_t grain =
        std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, out_row));
    parallel_for(0, planes * out_height, grain, [&](std::int64_t first, std::int64_t last) {
      // Zeros around a plane's line, wide enough for the taps of the first and the last output.
      const std::int64_t reach =
          (std::max<std::int64_t>(0, (out_width - 1) * down_x - pad_x + fw) + up_x - 1) / up_x;
      const std::int64_t left = std::max<std::int64_t>(0, pad_x) / up_x + 1,
                         right = std::max<std::int64_t>(0, reach - width) + fw + 1;
      check(channels_last || (left <= kWidest && right <= kWidest), op,
            ": borders must be narrower than ", kWidest);
      std::vector<A> line(
          static_cast<std::size_t>(channels_last ? width * channels : left + width + right), A(0));
      std::vector<A> scratch(static_cast<std::size_t>(channels_last ? 0 : 4 * out_width));
      for (std::int64_t r = first; r < last; ++r) {
        const T* plane = px + r / out_height * in_plane;
        T* out = py + r * out_row;
        const std::int64_t o = r % out_height;
        if (channels_last && taps.separable) {
          RWM_EACH_ISA(A, fir_row_channels_last(plane, out, line.data(), o, ya, xa, ky.data(),
                                                kx.data(), channels));
        } else if (channels_last) {
          RWM_EACH_ISA(A, fir_row_channels_last_2d(plane, out, o, ya, xa, kernel.data(), channels));
        } else if (taps.separable) {
          RWM_EACH_ISA(A, fir_row_plane(plane, out, line.data(), left, scratch.data(), o, ya, xa,
                                        ky.data(), kx.data()));
        } else {
          RWM_EACH_ISA(A, fir_row_plane_2d(plane, out, line.data(), left, scratch.data(), o, ya, xa,
                                           kernel.data()));
        }
      }
    });
  });
}

}  // namespace

RWM_BIND(upfirdn2d) { m.def("upfirdn2d", &run); }
