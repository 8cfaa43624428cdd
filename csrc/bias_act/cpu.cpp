// bias_act on the CPU: y = clamp(act(x + b)·gain), and its backward pass with the bias gradient in
// the same sweep.
#include <vector>

#include "bias_act/activation_settings.h"
#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/registry.h"

#define RWM_KERNELS "bias_act/kernels.h"
#include "common/each_isa.h"

namespace {
using namespace rwm;

constexpr std::int64_t kGrain =
    1 << 14;  // elements a piece: below, starting a thread costs more than it saves

// x, y are [outer, channels, inner], dense; bias is [channels] of the accumulator's type, or 0.
void forward(Pointer x, Pointer bias, Pointer y, std::int64_t outer, std::int64_t channels,
             std::int64_t inner, double slope, double gain, double clamp, int dtype) {
  const std::int64_t size = elements("bias_act", {outer, channels, inner});
  present("bias_act", size, {x, y});
  dispatch(static_cast<DType>(dtype), "bias_act", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const auto settings = activation_settings<T>(slope, gain, clamp);
    const auto* px = as<const T>(x);
    const auto* b = as<const A>(bias);
    auto* py = as<T>(y);
    if (size == 0) return;
    if (b == nullptr || inner == 1) {
      const std::int64_t width = b == nullptr ? 1 : channels,
                         rows = outer * channels * inner / std::max<std::int64_t>(width, 1);
      parallel_for(0, rows, std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(width, 1)),
                   [&](std::int64_t first, std::int64_t last) {
                     if (b == nullptr) {
                       RWM_EACH_ISA(A, bias_act_run(px + first, b, A(0), py + first, last - first,
                                                    settings));
                     } else {
                       RWM_EACH_ISA(A, bias_act_rows(px + first * width, b, py + first * width,
                                                     last - first, width, settings));
                     }
                   });
      return;
    }
    parallel_for(0, outer * channels, std::max<std::int64_t>(1, kGrain / inner),
                 [&](std::int64_t first, std::int64_t last) {
                   for (std::int64_t p = first; p < last; ++p) {
                     RWM_EACH_ISA(A,
                                  bias_act_run(px + p * inner, static_cast<const A*>(nullptr),
                                               b[p % channels], py + p * inner, inner, settings));
                   }
                 });
  });
}

// dx and dbias may be 0. dbias is [channels] of the accumulator's type. y is 0 where the derivative
// does not depend on it.
void backward(Pointer dy, Pointer y, Pointer dx, Pointer dbias, std::int64_t outer,
              std::int64_t channels, std::int64_t inner, double slope, double gain, double clamp,
              int dtype) {
  const std::int64_t size = elements("bias_act", {outer, channels, inner});
  present("bias_act", size, {dy});
  dispatch(static_cast<DType>(dtype), "bias_act", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const auto settings = activation_settings<T>(slope, gain, clamp);
    const auto* g = as<const T>(dy);
    const auto* py = as<const T>(y);
    auto* out = as<T>(dx);
    auto* total = as<A>(dbias);
    if (total != nullptr) std::fill(total, total + channels, A(0));
    if (size == 0) return;
    const auto at = [](auto* p, std::int64_t offset) { return p == nullptr ? p : p + offset; };
    if (total == nullptr || inner == 1) {
      const std::int64_t width = total == nullptr && inner > 1 ? inner : channels,
                         rows = outer * channels * inner / width;
      // At most 64 chunks, and no fewer elements in one than a thread is worth: the cut depends on
      // the shape alone.
      const std::int64_t chunk = std::max((rows + 63) / 64, (kGrain + width - 1) / width);
      const std::int64_t partials = total == nullptr ? 0 : num_chunks(rows, chunk) * channels;
      std::vector<A> partial(static_cast<std::size_t>(partials));
      parallel_chunks(rows, chunk, [&](std::int64_t i, std::int64_t first, std::int64_t last) {
        A* sums = total == nullptr ? nullptr : partial.data() + i * channels;
        const std::int64_t o = first * width;
        RWM_EACH_ISA(A, bias_act_backward_rows(g + o, at(py, o), at(out, o), sums, last - first,
                                               width, settings));
      });
      for (std::int64_t i = 0; i < partials; ++i)
        total[i % channels] += partial[static_cast<std::size_t>(i)];
      return;
    }
    std::vector<A> partial(static_cast<std::size_t>(outer * channels));
    parallel_for(0, outer * channels, std::max<std::int64_t>(1, kGrain / inner),
                 [&](std::int64_t first, std::int64_t last) {
                   for (std::int64_t p = first; p < last; ++p) {
                     A* sums = partial.data() + p;
                     RWM_EACH_ISA(
                         A, bias_act_backward_plane(g + p * inner, at(py, p * inner),
                                                    at(out, p * inner), sums, inner, settings));
                   }
                 });
    for (std::int64_t p = 0; p < outer * channels; ++p)
      total[p % channels] += partial[static_cast<std::size_t>(p)];
  });
}

}  // namespace

RWM_BIND(bias_act) {
  m.def("bias_act_forward", &forward);
  m.def("bias_act_backward", &backward);
}
