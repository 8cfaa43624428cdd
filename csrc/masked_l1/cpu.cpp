// masked_l1 on the CPU: the loss and the signs in one pass over memory, and the gradients.
// Notation of rwm_fast/ops/masked_l1/autograd.py: h, g, a, m.
//
// A kernel sees a run of elements with one mask value each; runs are of a fixed length, and their
// sums are added up in order, so that the result does not depend on the number of threads.
#include <vector>

#include "common/isa.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "masked_l1/codes.h"
#include "masked_l1/records.h"

#define RWM_KERNELS "masked_l1/kernels.h"
#include "common/each_isa.h"

namespace {
using namespace rwm;
using records::MaskedImages;

const char* const kOp = "masked_l1";

constexpr std::int64_t kRun = 2048;  // elements a run: its mask and buffers stay in the L1 cache
constexpr std::int64_t kGrain = 1 << 15;  // elements a thread's piece, at least

std::int64_t per_plane(const MaskedImages& s) { return num_chunks(s.spots, kRun); }

// Of all channels that share a mask, or of one.
std::int64_t runs(const MaskedImages& s) {
  return s.pixels ? num_chunks(s.size(), kRun) : s.images * per_plane(s);
}
std::int64_t plane_runs(const MaskedImages& s) { return s.pixels ? runs(s) : s.channels * runs(s); }

// f(i) for each of `count` runs.
template <class F>
void each_run(const MaskedImages& s, std::int64_t count, const F& f) {
  const std::int64_t grain = kGrain * runs(s) / std::max<std::int64_t>(1, s.size());
  parallel_for(0, count, std::max<std::int64_t>(1, grain),
               [&](std::int64_t begin, std::int64_t end) {
                 for (std::int64_t i = begin; i < end; ++i) f(i);
               });
}

// masks[i] = the mask of element at + i, in pixel order. KNOWN channels, or 0 for any number.
template <int KNOWN, class A, class M>
void repeat_masks(const M* m, std::int64_t any_channels, std::int64_t at, std::int64_t size,
                  A* masks) {
  const std::int64_t channels = KNOWN ? KNOWN : any_channels;
  std::int64_t spot = at / channels, i = 0;
  for (std::int64_t c = at % channels; c && c < channels && i < size; ++c) {
    masks[i++] = static_cast<A>(m[spot]);
  }
  if (i) ++spot;
  for (; i + channels <= size; i += channels, ++spot) {
    for (std::int64_t c = 0; c < channels; ++c) masks[i + c] = static_cast<A>(m[spot]);
  }
  while (i < size) masks[i++] = static_cast<A>(m[spot]);
}

template <class A, class M>
void repeat_masks(const M* m, std::int64_t channels, std::int64_t at, std::int64_t size, A* masks) {
  const auto repeat = channels == 3 ? repeat_masks<3, A, M> : repeat_masks<0, A, M>;
  repeat(m, channels, at, size, masks);
}

// Calls f(at, mask, size) for the pieces of run number `index`: elements at, at + 1, … of the
// images with masks mask[0], mask[1], …. In plane order the pieces are the channels that share the
// mask.
template <class A, class M, class F>
void pieces(const MaskedImages& shape, const M* m, std::int64_t index, const F& f) {
  if (shape.pixels) {
    const std::int64_t at = index * kRun, size = std::min(kRun, shape.size() - at);
    A masks[kRun];
    repeat_masks(m, shape.channels, at, size, masks);
    f(at, static_cast<const A*>(masks), size);
    return;
  }
  const std::int64_t n = index / per_plane(shape), spot = index % per_plane(shape) * kRun;
  const std::int64_t size = std::min(kRun, shape.spots - spot);
  for (std::int64_t c = 0; c < shape.channels; ++c) {
    f((n * shape.channels + c) * shape.spots + spot, m + n * shape.spots + spot, size);
  }
}

// The same without sums over channels: each image is read from its first element to its last, which
// the processor's prefetchers follow; the mask of an image comes from the L2 cache.
template <class A, class M, class F>
void piece(const MaskedImages& shape, const M* m, std::int64_t index, const F& f) {
  if (shape.pixels) return pieces<A>(shape, m, index, f);
  const std::int64_t plane = index / per_plane(shape), spot = index % per_plane(shape) * kRun;
  f(plane * shape.spots + spot, m + plane / shape.channels * shape.spots + spot,
    std::min(kRun, shape.spots - spot));
}

// f(T, M): the image's type, and the mask's.
template <class F>
void with_types(const MaskedImages& shape, const F& f) {
  dispatch(static_cast<DType>(shape.dtype), kOp, [&](auto image) {
    if constexpr (sizeof(typename decltype(image)::type) == 2) {
      if (shape.mask_dtype != shape.dtype) return f(image, TypeTag<float>{});
    }
    f(image, image);
  });
}

// codes may be 0. loss is of the accumulation type.
void forward(const MaskedImages& shape, Pointer h, Pointer g, Pointer a, Pointer m, Pointer codes,
             Pointer loss) {
  present(kOp, shape.size(), {h, g, a, m});
  present(kOp, 1, {loss});
  with_types(shape, [&](auto image, auto mask) {
    using T = typename decltype(image)::type;
    using M = typename decltype(mask)::type;
    using A = accumulate_t<T>;
    std::vector<double> sums(plane_runs(shape));
    each_run(shape, plane_runs(shape), [&](std::int64_t i) {
      piece<A>(shape, as<const M>(m), i, [&](std::int64_t at, auto* masks, std::int64_t size) {
        const T *ph = as<const T>(h) + at, *pg = as<const T>(g) + at, *pa = as<const T>(a) + at;
        std::uint8_t* const out = codes ? as<std::uint8_t>(codes) + at : nullptr;
        RWM_EACH_ISA(A, sums[i] = masked_l1_sum<A>(ph, pg, pa, masks, out, size));
      });
    });
    double total = 0;
    for (const double sum : sums) total += sum;
    *as<A>(loss) = static_cast<A>(total / static_cast<double>(shape.size()));
  });
}

// dh = c(|m|s₁ + |1 − m|s₂), dg = −c|m|s₁, da = −c|1 − m|s₂, c = dloss/size; a pointer may be 0.
void backward(const MaskedImages& shape, Pointer dloss, Pointer codes, Pointer m, Pointer dh,
              Pointer dg, Pointer da) {
  present(kOp, shape.size(), {codes, m});
  present(kOp, 1, {dloss});
  with_types(shape, [&](auto image, auto mask) {
    using T = typename decltype(image)::type;
    using M = typename decltype(mask)::type;
    using A = accumulate_t<T>;
    const A c = *as<const A>(dloss) / static_cast<A>(shape.size());
    each_run(shape, plane_runs(shape), [&](std::int64_t i) {
      piece<A>(shape, as<const M>(m), i, [&](std::int64_t at, auto* masks, std::int64_t size) {
        const std::uint8_t* const from = as<const std::uint8_t>(codes) + at;
        const auto write = [&](Pointer out, A inside, A outside) {
          if (!out) return;
          T* const to = as<T>(out) + at;
          RWM_EACH_ISA(A, masked_l1_gradient(from, masks, to, size, inside, outside));
        };
        write(dh, c, c);
        write(dg, -c, A(0));
        write(da, A(0), -c);
      });
    });
  });
}

// dm = c Σ_c (sign(m)|h − g| − sign(1 − m)|h − a|) in plane order.
template <class T, class M, class A>
void mask_planes(const MaskedImages& shape, const T* h, const T* g, const T* a, const M* m, M* dm,
                 A c) {
  each_run(shape, runs(shape), [&](std::int64_t i) {
    A sums[kRun];
    bool add = false;
    std::int64_t spot = 0, count = 0;
    pieces<A>(shape, m, i, [&](std::int64_t at, auto* masks, std::int64_t size) {
      RWM_EACH_ISA(A, masked_l1_mask_terms(h + at, g + at, a + at, masks, sums, size, add));
      if (!add) spot = at / (shape.channels * shape.spots) * shape.spots + at % shape.spots;
      add = true, count = size;
    });
    RWM_EACH_ISA(A, masked_l1_scale(sums, dm + spot, count, c));
  });
}

// The same in pixel order: spots are cut into groups of about a run of elements.
template <class T, class M, class A>
void mask_pixels(const MaskedImages& shape, const T* h, const T* g, const T* a, const M* m, M* dm,
                 A c) {
  const std::int64_t group = std::max<std::int64_t>(1, kRun / shape.channels);
  const std::int64_t grain = std::max<std::int64_t>(1, kGrain / (group * shape.channels));
  parallel_for(0, num_chunks(shape.spots, group), grain, [&](std::int64_t begin, std::int64_t end) {
    A masks[kRun], terms[kRun], sums[kRun];
    for (std::int64_t i = begin; i < end; ++i) {
      const std::int64_t first = i * group, spots = std::min(group, shape.spots - first);
      for (std::int64_t s = 0; s < spots; ++s) sums[s] = 0;
      std::int64_t spot = 0, channel = 0;
      for (std::int64_t at = 0; at < spots * shape.channels; at += kRun) {
        const std::int64_t size = std::min(kRun, spots * shape.channels - at);
        const std::int64_t from = first * shape.channels + at;
        repeat_masks(m, shape.channels, from, size, masks);
        RWM_EACH_ISA(A,
                     masked_l1_mask_terms(h + from, g + from, a + from, masks, terms, size, false));
        for (std::int64_t j = 0; j < size; ++j) {
          sums[spot] += terms[j];
          if (++channel == shape.channels) channel = 0, ++spot;
        }
      }
      RWM_EACH_ISA(A, masked_l1_scale(sums, dm + first, spots, c));
    }
  });
}

void mask_backward(const MaskedImages& shape, Pointer dloss, Pointer h, Pointer g, Pointer a,
                   Pointer m, Pointer dm) {
  present(kOp, shape.size(), {h, g, a, m, dm});
  present(kOp, 1, {dloss});
  with_types(shape, [&](auto image, auto mask) {
    using T = typename decltype(image)::type;
    using M = typename decltype(mask)::type;
    using A = accumulate_t<T>;
    const A c = *as<const A>(dloss) / static_cast<A>(shape.size());
    const auto run = shape.pixels ? mask_pixels<T, M, A> : mask_planes<T, M, A>;
    run(shape, as<const T>(h), as<const T>(g), as<const T>(a), as<const M>(m), as<M>(dm), c);
  });
}

}  // namespace

RWM_BIND(masked_l1) {
  const py::call_guard<py::gil_scoped_release> unlocked;
  m.def("masked_l1_forward", &forward, unlocked);
  m.def("masked_l1_backward", &backward, unlocked);
  m.def("masked_l1_mask_backward", &mask_backward, unlocked);
}
