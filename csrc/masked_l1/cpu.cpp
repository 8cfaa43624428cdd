// masked_l1 on the CPU: the loss and the signs in one pass over memory, and the gradients.
// Notation of rwm_fast/ops/masked_l1/autograd.py: h, g, a, m.
//
// Two orders of memory, as on CUDA. Planes: [N, C, S] with a mask value for each (n, s); a mask of
// the images' own shape is the case N = C = 1. Pixels: [S, C] with a mask value for each s
// (channels_last). Either way a kernel sees a run of elements with one mask value each; runs are of
// a fixed length, and their sums are added up in order, so that the result does not depend on the
// number of threads.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/registry.h"

namespace {
using namespace rwm;

constexpr std::int64_t kRun = 2048;  // elements a run: its mask and buffers stay in the L1 cache
constexpr std::int64_t kGrain = 1 << 15;  // elements a thread's piece, at least
constexpr std::int64_t kLanes = 32;  // partial sums of a run: enough to hide an addition's latency

template <class A>
RWM_INLINE A absolute(A v) {
  return v < A(0) ? -v : v;
}

template <class A>
RWM_INLINE int sign(A v) {
  return static_cast<int>(v > A(0)) - static_cast<int>(v < A(0));
}

// Sum of |m||h − g| + |1 − m||h − a| over a run; reference.encode of the two signs, if asked for.
template <class T, class M, class A = accumulate_t<T>>
struct Terms {
  template <bool SAVE>
  static RWM_INLINE A term(T h, T g, T a, M m, std::uint8_t* code) {
    const A vm = static_cast<A>(m), vh = static_cast<A>(h);
    const A inside = vh - static_cast<A>(g), outside = vh - static_cast<A>(a);
    if (SAVE) *code = static_cast<std::uint8_t>((sign(inside) + 1) | (sign(outside) + 1) << 2);
    return absolute(vm) * absolute(inside) + absolute(A(1) - vm) * absolute(outside);
  }

  template <bool SAVE>
  static RWM_INLINE A sum(const T* __restrict__ h, const T* __restrict__ g, const T* __restrict__ a,
                          const M* __restrict__ m, std::uint8_t* __restrict__ codes,
                          std::int64_t size) {
    A lanes[kLanes] = {};
    std::int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) {
      for (std::int64_t l = 0; l < kLanes; ++l) {
        lanes[l] +=
            term<SAVE>(h[i + l], g[i + l], a[i + l], m[i + l], SAVE ? codes + i + l : nullptr);
      }
    }
    for (std::int64_t l = 0; i < size; ++i, ++l) {
      lanes[l] += term<SAVE>(h[i], g[i], a[i], m[i], SAVE ? codes + i : nullptr);
    }
    for (std::int64_t half = kLanes / 2; half > 0; half /= 2) {
      for (std::int64_t l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    }
    return lanes[0];
  }

  static RWM_INLINE A run(const T* h, const T* g, const T* a, const M* m, std::uint8_t* codes,
                          std::int64_t size) {
    return codes ? sum<true>(h, g, a, m, codes, size) : sum<false>(h, g, a, m, codes, size);
  }
};

// out = inside·|m|·s₁ + outside·|1 − m|·s₂ over a run, s from the codes.
template <class T, class M, class A = accumulate_t<T>>
struct Gradient {
  static RWM_INLINE void run(const std::uint8_t* __restrict__ codes, const M* __restrict__ m,
                             T* __restrict__ out, std::int64_t size, A inside, A outside) {
    for (std::int64_t i = 0; i < size; ++i) {
      const A vm = static_cast<A>(m[i]);
      const A s = static_cast<A>((codes[i] & 3) - 1), t = static_cast<A>((codes[i] >> 2) - 1);
      out[i] = static_cast<T>(inside * absolute(vm) * s + outside * absolute(A(1) - vm) * t);
    }
  }
};

// sums (+)= sign(m)|h − g| − sign(1 − m)|h − a| over a run.
template <class T, class M, class A = accumulate_t<T>>
struct MaskTerms {
  static RWM_INLINE void run(const T* __restrict__ h, const T* __restrict__ g,
                             const T* __restrict__ a, const M* __restrict__ m, A* __restrict__ sums,
                             std::int64_t size, bool add) {
    for (std::int64_t i = 0; i < size; ++i) {
      const A vm = static_cast<A>(m[i]), vh = static_cast<A>(h[i]);
      const A inside = static_cast<A>(sign(vm)) * absolute(vh - static_cast<A>(g[i]));
      const A outside = static_cast<A>(sign(A(1) - vm)) * absolute(vh - static_cast<A>(a[i]));
      sums[i] = (add ? sums[i] : A(0)) + (inside - outside);
    }
  }
};

template <class M, class A>
struct Scale {
  static RWM_INLINE void run(const A* __restrict__ x, M* __restrict__ y, std::int64_t size,
                             A scale) {
    for (std::int64_t i = 0; i < size; ++i) y[i] = static_cast<M>(scale * x[i]);
  }
};

struct Shape {
  std::int64_t images, channels, spots;  // N, C, S; in pixel order N = 1
  bool pixels;

  std::int64_t size() const { return images * channels * spots; }
  std::int64_t runs() const {
    return pixels ? num_chunks(size(), kRun) : images * num_chunks(spots, kRun);
  }
};

// The masks of elements at, at + 1, … in pixel order.
template <class A, class M>
void repeat_masks(const M* m, std::int64_t channels, std::int64_t at, std::int64_t size, A* masks) {
  std::int64_t spot = at / channels, channel = at % channels;
  for (std::int64_t i = 0; i < size; ++i) {
    masks[i] = static_cast<A>(m[spot]);
    if (++channel == channels) channel = 0, ++spot;
  }
}

// Calls f(at, mask, size) for the pieces of run number `index`: elements at, at + 1, … of the
// images with masks mask[0], mask[1], …. In plane order the pieces are the channels that share the
// mask.
template <class A, class M, class F>
void pieces(const Shape& shape, const M* m, std::int64_t index, const F& f) {
  if (shape.pixels) {
    const std::int64_t at = index * kRun, size = std::min(kRun, shape.size() - at);
    A masks[kRun];
    repeat_masks(m, shape.channels, at, size, masks);
    f(at, static_cast<const A*>(masks), size);
    return;
  }
  const std::int64_t per_image = num_chunks(shape.spots, kRun);
  const std::int64_t n = index / per_image, spot = index % per_image * kRun;
  const std::int64_t size = std::min(kRun, shape.spots - spot);
  for (std::int64_t c = 0; c < shape.channels; ++c) {
    f((n * shape.channels + c) * shape.spots + spot, m + n * shape.spots + spot, size);
  }
}

std::int64_t runs_a_thread(const Shape& shape) {
  return std::max<std::int64_t>(1, kGrain * shape.runs() / std::max<std::int64_t>(1, shape.size()));
}

// f(T, M): the image's type, and the mask's: the same, or float beside 16-bit images.
template <class F>
void with_types(int dtype, int mask_dtype, const F& f) {
  dispatch(static_cast<DType>(dtype), "masked_l1", [&](auto image) {
    using T = typename decltype(image)::type;
    if (dtype == mask_dtype) {
      f(image, TypeTag<T>{});
    } else if constexpr (sizeof(T) == 2) {
      check(mask_dtype == static_cast<int>(DType::f32), "masked_l1: mask dtype code ", mask_dtype);
      f(image, TypeTag<float>{});
    } else {
      check(false, "masked_l1: mask dtype code ", mask_dtype, " beside ", dtype);
    }
  });
}

// codes may be 0. loss is of the accumulation type.
void forward(Pointer h, Pointer g, Pointer a, Pointer m, Pointer codes, Pointer loss,
             std::int64_t images, std::int64_t channels, std::int64_t spots, bool pixels, int dtype,
             int mask_dtype) {
  const Shape shape{images, channels, spots, pixels};
  with_types(dtype, mask_dtype, [&](auto image, auto mask) {
    using T = typename decltype(image)::type;
    using M = typename decltype(mask)::type;
    using A = accumulate_t<T>;
    std::vector<double> sums(shape.runs());
    parallel_for(0, shape.runs(), runs_a_thread(shape), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        double sum = 0;
        pieces<A>(shape, as<const M>(m), i, [&](std::int64_t at, auto* masks, std::int64_t size) {
          using Mask = std::remove_cv_t<std::remove_pointer_t<decltype(masks)>>;
          std::uint8_t* const out = codes ? as<std::uint8_t>(codes) + at : nullptr;
          sum += run_best<Terms<T, Mask>>(as<const T>(h) + at, as<const T>(g) + at,
                                          as<const T>(a) + at, masks, out, size);
        });
        sums[i] = sum;
      }
    });
    double total = 0;
    for (const double sum : sums) total += sum;
    *as<A>(loss) = static_cast<A>(total / static_cast<double>(shape.size()));
  });
}

// dh = c(|m|s₁ + |1 − m|s₂), dg = −c|m|s₁, da = −c|1 − m|s₂, c = dloss/size; a pointer may be 0.
void backward(Pointer dloss, Pointer codes, Pointer m, Pointer dh, Pointer dg, Pointer da,
              std::int64_t images, std::int64_t channels, std::int64_t spots, bool pixels,
              int dtype, int mask_dtype) {
  const Shape shape{images, channels, spots, pixels};
  with_types(dtype, mask_dtype, [&](auto image, auto mask) {
    using T = typename decltype(image)::type;
    using M = typename decltype(mask)::type;
    using A = accumulate_t<T>;
    const A c = *as<const A>(dloss) / static_cast<A>(shape.size());
    parallel_for(0, shape.runs(), runs_a_thread(shape), [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) {
        pieces<A>(shape, as<const M>(m), i, [&](std::int64_t at, auto* masks, std::int64_t size) {
          using Mask = std::remove_cv_t<std::remove_pointer_t<decltype(masks)>>;
          const auto write = [&](Pointer out, A inside, A outside) {
            if (!out) return;
            run_best<Gradient<T, Mask>>(as<const std::uint8_t>(codes) + at, masks, as<T>(out) + at,
                                        size, inside, outside);
          };
          write(dh, c, c);
          write(dg, -c, A(0));
          write(da, A(0), -c);
        });
      }
    });
  });
}

// dm = c Σ_c (sign(m)|h − g| − sign(1 − m)|h − a|) in plane order.
template <class T, class M, class A>
void mask_planes(const Shape& shape, const T* h, const T* g, const T* a, const M* m, M* dm, A c) {
  parallel_for(0, shape.runs(), runs_a_thread(shape), [&](std::int64_t begin, std::int64_t end) {
    A sums[kRun];
    for (std::int64_t i = begin; i < end; ++i) {
      bool add = false;
      std::int64_t spot = 0, count = 0;
      pieces<A>(shape, m, i, [&](std::int64_t at, auto* masks, std::int64_t size) {
        using Mask = std::remove_cv_t<std::remove_pointer_t<decltype(masks)>>;
        run_best<MaskTerms<T, Mask>>(h + at, g + at, a + at, masks, sums, size, add);
        if (!add) spot = at / (shape.channels * shape.spots) * shape.spots + at % shape.spots;
        add = true, count = size;
      });
      run_best<Scale<M, A>>(sums, dm + spot, count, c);
    }
  });
}

// The same in pixel order: spots are cut into groups of about a run of elements.
template <class T, class M, class A>
void mask_pixels(const Shape& shape, const T* h, const T* g, const T* a, const M* m, M* dm, A c) {
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
        run_best<MaskTerms<T, A>>(h + from, g + from, a + from, static_cast<const A*>(masks), terms,
                                  size, false);
        for (std::int64_t j = 0; j < size; ++j) {
          sums[spot] += terms[j];
          if (++channel == shape.channels) channel = 0, ++spot;
        }
      }
      run_best<Scale<M, A>>(static_cast<const A*>(sums), dm + first, spots, c);
    }
  });
}

void mask_backward(Pointer dloss, Pointer h, Pointer g, Pointer a, Pointer m, Pointer dm,
                   std::int64_t images, std::int64_t channels, std::int64_t spots, bool pixels,
                   int dtype, int mask_dtype) {
  const Shape shape{images, channels, spots, pixels};
  with_types(dtype, mask_dtype, [&](auto image, auto mask) {
    using T = typename decltype(image)::type;
    using M = typename decltype(mask)::type;
    using A = accumulate_t<T>;
    const A c = *as<const A>(dloss) / static_cast<A>(shape.size());
    const auto run = pixels ? mask_pixels<T, M, A> : mask_planes<T, M, A>;
    run(shape, as<const T>(h), as<const T>(g), as<const T>(a), as<const M>(m), as<M>(dm), c);
  });
}

}  // namespace

RWM_BIND(masked_l1) {
  m.def("masked_l1_forward", &forward);
  m.def("masked_l1_backward", &backward);
  m.def("masked_l1_mask_backward", &mask_backward);
}
