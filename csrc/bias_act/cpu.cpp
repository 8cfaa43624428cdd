// bias_act on the CPU: y = clamp(act(x + b)·gain), and its backward pass with the bias gradient in
// the same sweep.
#include <vector>

#include "bias_act/records.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/registry.h"

#define RWM_KERNELS "bias_act/kernels.h"
#include "common/each_isa.h"

namespace {
using namespace rwm;
using records::Planes;

constexpr std::int64_t kGrain =
    1 << 14;  // elements a piece: below, starting a thread costs more than it saves

std::int64_t grain_of(std::int64_t width) { return std::max<std::int64_t>(1, kGrain / width); }

// x and y are like `planes`; bias is [channels] of the accumulator's type, or 0.
void forward(const Planes& planes, const records::Activation& activation, Pointer x, Pointer bias,
             Pointer y) {
  const std::int64_t size = planes.size(), channels = planes.channels, inner = planes.inner;
  present("bias_act", size, {x, y});
  if (size == 0) return;
  dispatch(static_cast<DType>(planes.dtype), "bias_act", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const auto settings = activation_settings<T>(activation);
    const auto* px = as<const T>(x);
    const auto* b = as<const A>(bias);
    const A* const none = nullptr;
    auto* py = as<T>(y);
    const std::int64_t width = b == nullptr ? 1 : inner == 1 ? channels : inner;
    parallel_for(0, size / width, grain_of(width), [&](std::int64_t first, std::int64_t last) {
      const T* from = px + first * width;
      T* to = py + first * width;
      if (b == nullptr) {
        RWM_EACH_ISA(A, bias_act_run(from, none, A(0), to, last - first, settings));
      } else if (inner == 1) {
        RWM_EACH_ISA(A, bias_act_rows(from, b, to, last - first, width, settings));
      } else {
        for (std::int64_t p = first; p < last; ++p, from += inner, to += inner) {
          RWM_EACH_ISA(A, bias_act_run(from, none, b[p % channels], to, inner, settings));
        }
      }
    });
  });
}

// dx and dbias may be 0. dbias is [channels] of the accumulator's type. y is 0 where the derivative
// does not depend on it.
void backward(const Planes& planes, const records::Activation& activation, Pointer dy, Pointer y,
              Pointer dx, Pointer dbias) {
  const std::int64_t size = planes.size(), channels = planes.channels, inner = planes.inner;
  present("bias_act", size, {dy});
  dispatch(static_cast<DType>(planes.dtype), "bias_act", [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const auto settings = activation_settings<T>(activation);
    const auto* g = as<const T>(dy);
    const auto* py = as<const T>(y);
    auto* out = as<T>(dx);
    auto* total = as<A>(dbias);
    if (total != nullptr) std::fill(total, total + channels, A(0));
    if (size == 0) return;
    const auto at = [](auto* p, std::int64_t offset) { return p == nullptr ? p : p + offset; };
    std::vector<A> partial;  // [.., channels]
    if (total == nullptr || inner == 1) {
      const std::int64_t width = total == nullptr && inner > 1 ? inner : channels,
                         rows = size / width;
      // At most 64 chunks, and no fewer elements in one than a thread is worth: the cut depends on
      // the shape alone.
      const std::int64_t chunk = std::max((rows + 63) / 64, (kGrain + width - 1) / width);
      if (total != nullptr) partial.resize(num_chunks(rows, chunk) * channels);
      parallel_chunks(rows, chunk, [&](std::int64_t i, std::int64_t first, std::int64_t last) {
        A* sums = total == nullptr ? nullptr : partial.data() + i * channels;
        const std::int64_t o = first * width;
        RWM_EACH_ISA(A, bias_act_backward_rows(g + o, at(py, o), at(out, o), sums, last - first,
                                               width, settings));
      });
    } else {
      partial.resize(size / inner);
      parallel_for(0, size / inner, grain_of(inner), [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t p = first; p < last; ++p) {
          const std::int64_t o = p * inner;
          RWM_EACH_ISA(A, bias_act_backward_plane(g + o, at(py, o), at(out, o), partial.data() + p,
                                                  inner, settings));
        }
      });
    }
    for (std::size_t i = 0; i < partial.size(); ++i) total[i % channels] += partial[i];
  });
}

}  // namespace

RWM_BIND(bias_act) {
  m.def("bias_act_forward", &forward);
  m.def("bias_act_backward", &backward);
}
