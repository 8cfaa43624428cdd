// upfirdn2d on the CPU: channels_last vectorised over channels, planes over x. A filter that is an
// outer product runs as a column pass into one line and a row pass out of it, so an image is read
// once and written once.
#include <cmath>
#include <limits>
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "upfirdn2d/axis.h"
#include "upfirdn2d/records.h"

#define RWM_KERNELS "upfirdn2d/kernels.h"
#include "common/each_isa.h"

namespace {
using namespace rwm;
using records::Resampling;

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

// The filter is double: [taps y, taps x], or [taps y] if `outer`, which stands for its product with
// itself.
void run(const Resampling& r, Pointer x, Pointer filter, Pointer y, bool outer, bool flip,
         double gain) {
  const char* const op = "upfirdn2d";
  const std::int64_t channels = r.channels, height = r.in_size.first, width = r.in_size.second;
  const std::int64_t out_height = r.out_size.first, out_width = r.out_size.second;
  const bool channels_last = channels > 1;
  const std::int64_t in_plane = height * width * channels, out_row = out_width * channels;
  present(op, r.images * in_plane, {x});
  present(op, r.images * out_row * out_height, {y});
  present(op, 1, {filter});
  if (r.images * out_row * out_height == 0) return;
  const Axis ya(height, out_height, r.up.first, r.down.first, r.pad.first, r.taps.first),
      xa(width, out_width, r.up.second, r.down.second, r.pad.second, r.taps.second);
  dispatch(static_cast<DType>(r.dtype), op, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const Taps taps(as<const double>(filter), r.taps.first, r.taps.second, outer, flip, gain,
                    2.0 * std::numeric_limits<A>::epsilon());
    const auto ky = as_type<A>(taps.y), kx = as_type<A>(taps.x), kernel = as_type<A>(taps.kernel);
    const auto* px = as<const T>(x);
    auto* py = as<T>(y);
    const std::int64_t grain = std::max<std::int64_t>(1, kGrain / out_row);
    parallel_for(0, r.images * out_height, grain, [&](std::int64_t first, std::int64_t last) {
      // Zeros around a plane's line, wide enough for the taps of the first and the last output.
      const std::int64_t last_tap = (out_width - 1) * xa.down - xa.pad + xa.taps;
      const std::int64_t reach = num_chunks(std::max<std::int64_t>(0, last_tap), xa.up);
      const std::int64_t left = std::max<std::int64_t>(0, xa.pad) / xa.up + 1,
                         right = std::max<std::int64_t>(0, reach - width) + xa.taps + 1;
      check(channels_last || (left <= kWidest && right <= kWidest), op,
            ": borders must be narrower than ", kWidest);
      std::vector<A> line(
          static_cast<std::size_t>(channels_last ? width * channels : left + width + right), A(0));
      std::vector<A> scratch(static_cast<std::size_t>(channels_last ? 0 : 4 * out_width));
      for (std::int64_t row = first; row < last; ++row) {
        const T* plane = px + row / out_height * in_plane;
        T* out = py + row * out_row;
        const std::int64_t o = row % out_height;
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
