// modulated_conv2d on the CPU: the passes before and after a convolution that torch computes, the epilogue's derivative, and demodulation.
#include <cstring>
#include <vector>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "modulated_conv2d/arguments.h"
#include "modulated_conv2d/winograd.h"

#define RWM_KERNELS "modulated_conv2d/pass_kernels.h"
#include "common/each_isa.h"

namespace {
using namespace rwm;

constexpr std::int64_t kGrain = 1 << 14;  // elements a piece: below, starting a thread costs more than it saves

constexpr const char* kOp = "modulated_conv2d";

// Images [N, plane, C] at `images` and the scales a with their regions: everything that must be there.
void check_images(std::int64_t batch, std::int64_t plane, std::int64_t channels, std::initializer_list<Pointer> images, Pointer a, Pointer regions,
                  std::int64_t styles) {
  present(kOp, elements(kOp, {batch, plane, channels}), images);
  check(styles > 0, kOp, ": styles must be at least 1, got ", styles);
  elements(kOp, {batch, 1 + styles, std::max(plane, channels)});
  check(regions == 0 || a != 0, kOp, ": regions without scales");
  check(styles == 1 || a == 0 || regions != 0, kOp, ": several styles without regions");
}

struct Pixels {  // [N, plane, C]
  std::int64_t batch, plane, channels;

  // Pixels a chunk: enough for a thread, at most 1024 so that sums stay short, and the same whatever the number of threads.
  std::int64_t chunk() const {
    const std::int64_t worth = (kGrain + channels - 1) / std::max<std::int64_t>(channels, 1);
    return std::max<std::int64_t>(1, std::min<std::int64_t>({worth, 1024, plane}));
  }
  std::int64_t chunks() const { return num_chunks(plane, chunk()); }
};

// f(index, n, first, last) for chunks of the pixels of each image.
template <class F>
void each_chunk(const Pixels& s, const F& f) {
  const std::int64_t chunk = s.chunk(), chunks = s.chunks();
  const std::int64_t grain = std::max<std::int64_t>(1, kGrain / std::max<std::int64_t>(1, chunk * s.channels));
  parallel_for(0, s.batch * chunks, grain, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t i = begin; i < end; ++i) f(i, i / chunks, i % chunks * chunk, std::min(s.plane, (i % chunks + 1) * chunk));
  });
}

// No float16: no CPU computes in it.
template <class F>
void with_type(int dtype, const F& f) {
  switch (static_cast<DType>(dtype)) {
    case DType::f64: return f(TypeTag<double>{});
    case DType::bf16: return f(TypeTag<bf16>{});
    default: check(static_cast<DType>(dtype) == DType::f32, "modulated_conv2d: the passes take float32, bfloat16 or float64");
  }
  f(TypeTag<float>{});
}

// z = a·x.
void scale(Pointer x, Pointer z, Pointer a, Pointer regions, std::int64_t styles, std::int64_t batch, std::int64_t plane, std::int64_t channels,
           int dtype) {
  check_images(batch, plane, channels, {x, z, a}, a, regions, styles);
  const Pixels s{batch, plane, channels};
  with_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const Blend<A> blend{as<const A>(a), as<const A>(regions), styles};
    each_chunk(s, [&](std::int64_t, std::int64_t n, std::int64_t first, std::int64_t last) {
      if (blend.regions != nullptr) {
        RWM_EACH_ISA(A, scale_pixels<true>(as<const T>(x), as<T>(z), blend, n, first, last, plane, channels));
      } else {
        RWM_EACH_ISA(A, scale_pixels<false>(as<const T>(x), as<T>(z), blend, n, first, last, plane, channels));
      }
    });
  });
}

// dx = a·dz and da[n, k, c] = sum_p r_k·x·dz. dx or da may be 0.
void scale_backward(Pointer dz, Pointer x, Pointer dx, Pointer da, Pointer a, Pointer regions, std::int64_t styles, std::int64_t batch,
                    std::int64_t plane, std::int64_t channels, int dtype) {
  check_images(batch, plane, channels, {dz, a}, a, regions, styles);
  check_images(batch, plane, da != 0 ? channels : 0, {x}, a, regions, styles);
  const Pixels s{batch, plane, channels};
  with_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const Blend<A> blend{as<const A>(a), as<const A>(regions), styles};
    const std::int64_t row = styles * channels;
    std::vector<A> sums(static_cast<std::size_t>(da != 0 ? batch * s.chunks() * row : 0), A(0));
    each_chunk(s, [&](std::int64_t i, std::int64_t n, std::int64_t first, std::int64_t last) {
      A* to = da != 0 ? sums.data() + i * row : nullptr;
      if (blend.regions != nullptr) {
        RWM_EACH_ISA(A, adjoint_pixels<true>(as<const T>(dz), as<const T>(x), as<T>(dx), to, blend, n, first, last, plane, channels));
      } else {
        RWM_EACH_ISA(A, adjoint_pixels<false>(as<const T>(dz), as<const T>(x), as<T>(dx), to, blend, n, first, last, plane, channels));
      }
    });
    if (da == 0) return;
    std::fill(as<A>(da), as<A>(da) + batch * row, A(0));
    for (std::int64_t i = 0; i < batch * s.chunks(); ++i) {
      RWM_EACH_ISA(A, add_rows(as<A>(da) + i / s.chunks() * row, sums.data() + i * row, 1, row));
    }
  });
}

template <class T, class A>
Epilogue<T, A> epilogue_of(Pointer b, Pointer regions, std::int64_t styles, Pointer noise, std::int64_t noise_step, Pointer bias, double slope,
                           double gain, double clamp) {
  Epilogue<T, A> e;
  e.blend = {as<const A>(b), as<const A>(regions), styles};
  e.noise = as<const A>(noise);
  e.noise_step = noise_step;
  e.bias = as<const A>(bias);
  e.activation = activation_settings<T>(slope, gain, clamp);
  return e;
}

// y = clamp(act(b·u + noise + bias)·gain); y may be u.
void epilogue(Pointer u, Pointer y, Pointer b, Pointer regions, std::int64_t styles, Pointer noise, std::int64_t noise_step, Pointer bias,
              double slope, double gain, double clamp, std::int64_t batch, std::int64_t plane, std::int64_t channels, int dtype) {
  check_images(batch, plane, channels, {u, y}, b, regions, styles);
  check(noise_step == 0 || noise_step == plane, kOp, ": noise of another size");
  with_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const auto e = epilogue_of<T, A>(b, regions, styles, noise, noise_step, bias, slope, gain, clamp);
    each_chunk({batch, plane, channels}, [&](std::int64_t, std::int64_t n, std::int64_t first, std::int64_t last) {
      if (regions != 0) {
        RWM_EACH_ISA(A, epilogue_pixels<true>(as<const T>(u), as<T>(y), e, n, first, last, plane, channels));
      } else {
        RWM_EACH_ISA(A, epilogue_pixels<false>(as<const T>(u), as<T>(y), e, n, first, last, plane, channels));
      }
    });
  });
}

// dv = act'(dy, y), du = b·dv; dbias[o] = sum dv; db[n, k, o] = sum_p r_k·dv·u; noise_sums[n, p] = sum_o dv. u may be 0: it is read back from y.
// du, db and noise_sums may be 0.
void epilogue_backward(Pointer dy, Pointer y, Pointer u, Pointer du, Pointer dbias, Pointer db, Pointer noise_sums, Pointer b, Pointer regions,
                       std::int64_t styles, Pointer noise, std::int64_t noise_step, Pointer bias, double slope, double gain, double clamp,
                       std::int64_t batch, std::int64_t plane, std::int64_t channels, int dtype) {
  check_images(batch, plane, channels, {dy, y}, b, regions, styles);
  present(kOp, channels, {dbias});
  check(noise_step == 0 || noise_step == plane, kOp, ": noise of another size");
  const Pixels s{batch, plane, channels};
  with_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const auto e = epilogue_of<T, A>(b, regions, styles, noise, noise_step, bias, slope, gain, clamp);
    const std::int64_t row = (1 + styles) * channels;
    std::vector<A> sums(static_cast<std::size_t>(batch * s.chunks() * row), A(0));
    each_chunk(s, [&](std::int64_t i, std::int64_t n, std::int64_t first, std::int64_t last) {
      if (regions != 0) {
        RWM_EACH_ISA(A, epilogue_backward_pixels<true>(as<const T>(dy), as<const T>(y), as<const T>(u), db != 0, as<T>(du), sums.data() + i * row,
                                                    as<A>(noise_sums), e, n, first, last, plane, channels));
      } else {
        RWM_EACH_ISA(A, epilogue_backward_pixels<false>(as<const T>(dy), as<const T>(y), as<const T>(u), db != 0, as<T>(du), sums.data() + i * row,
                                                     as<A>(noise_sums), e, n, first, last, plane, channels));
      }
    });
    std::fill(as<A>(dbias), as<A>(dbias) + channels, A(0));
    if (db != 0) std::fill(as<A>(db), as<A>(db) + batch * styles * channels, A(0));
    for (std::int64_t i = 0; i < batch * s.chunks(); ++i) {
      const A* from = sums.data() + i * row;
      RWM_EACH_ISA(A, add_rows(as<A>(dbias), from, 1, channels));
      if (db == 0) continue;
      RWM_EACH_ISA(A, add_rows(as<A>(db) + i / s.chunks() * styles * channels, from + channels, 1, styles * channels));
    }
  });
}

// A number that changes when the values do, almost surely; it reads all of them. Eight lanes, so that multiplications overlap.
std::uint64_t fingerprint(Pointer values, std::int64_t bytes) {
  present(kOp, elements(kOp, {bytes}), {values});
  if (bytes == 0) return 0;
  constexpr std::uint64_t kOdd = 0x9E3779B97F4A7C15u;
  const auto mix = [](std::uint64_t hash, std::uint64_t word) {
    hash ^= word;
    return (hash << 29 | hash >> 35) * kOdd;  // rotated, or a change of the highest bit would stay there
  };
  std::uint64_t lanes[8] = {1, 2, 3, 4, 5, 6, 7, 8}, words[8];
  std::int64_t i = 0;
  for (; i + 64 <= bytes; i += 64) {
    std::memcpy(words, as<const char>(values) + i, 64);
    for (int l = 0; l < 8; ++l) lanes[l] = mix(lanes[l], words[l]);
  }
  std::memset(words, 0, 64);
  std::memcpy(words, as<const char>(values) + i, static_cast<std::size_t>(bytes - i));
  std::uint64_t hash = static_cast<std::uint64_t>(bytes);
  for (int l = 0; l < 8; ++l) hash = mix(mix(hash, lanes[l]), words[l]);
  return hash;
}

// q[o, i] = sum of squares of the kernel from i to o, `taps` numbers; strides as in KernelStrides.
void squares(Pointer w, Pointer q, std::int64_t out_c, std::int64_t in_c, std::int64_t taps, const py::tuple& strides, int dtype) {
  present(kOp, elements(kOp, {out_c, in_c, taps}), {w});
  present(kOp, elements(kOp, {out_c, in_c}), {q});
  const KernelStrides s = kernel_strides(kOp, strides, out_c, in_c, taps);
  with_type(dtype, [&](auto tag) {
    using A = accumulate_t<typename decltype(tag)::type>;
    parallel_for(0, out_c, 1 + kGrain / (in_c * taps + 1), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t o = first; o < last; ++o) {
        RWM_EACH_ISA(A, add_squares(as<const A>(w) + o * s.out, as<A>(q) + o * in_c, s, in_c, taps));
      }
    });
  });
}

// Scales of `rows` images and styles: s [rows, in], d [rows, out], q [out, in].
void check_scales(std::int64_t rows, std::int64_t out_c, std::int64_t in_c, Pointer q, Pointer s, std::initializer_list<Pointer> outs) {
  elements(kOp, {rows, out_c, in_c});
  present(kOp, rows * out_c, outs);
  present(kOp, rows * out_c * in_c, {q, s});
}

// d[r, o] = rsqrt(sum_i s[r, i]²·q[o, i] + eps); r counts images and styles.
void demodulation(Pointer q, Pointer s, Pointer d, double eps, std::int64_t rows, std::int64_t out_c, std::int64_t in_c, int dtype) {
  check_scales(rows, out_c, in_c, q, s, {d});
  with_type(dtype, [&](auto tag) {
    using A = accumulate_t<typename decltype(tag)::type>;
    parallel_for(0, rows, 1 + kGrain / (out_c * in_c + 1), [&](std::int64_t first, std::int64_t last) {
      RWM_EACH_ISA(A, demodulate(as<const A>(q), as<const A>(s), as<A>(d), static_cast<A>(eps), first, last, out_c, in_c));
    });
  });
}

// ds += the gradient through d; scale[o, i], for dW = 2 W·scale. ds or scale may be 0.
void demodulation_backward(Pointer q, Pointer s, Pointer d, Pointer dd, Pointer ds, Pointer scale, std::int64_t rows, std::int64_t out_c,
                           std::int64_t in_c, int dtype) {
  check_scales(rows, out_c, in_c, q, s, {d, dd});
  with_type(dtype, [&](auto tag) {
    using A = accumulate_t<typename decltype(tag)::type>;
    const auto *pq = as<const A>(q), *ps = as<const A>(s), *pd = as<const A>(d), *pdd = as<const A>(dd);
    if (ds != 0)
      parallel_for(0, rows, 1 + kGrain / (out_c * in_c + 1), [&](std::int64_t first, std::int64_t last) {
        RWM_EACH_ISA(A, demodulate_backward_styles(pq, ps, pd, pdd, as<A>(ds), first, last, out_c, in_c));
      });
    if (scale != 0)
      parallel_for(0, out_c, 1 + kGrain / (rows * in_c + 1), [&](std::int64_t first, std::int64_t last) {
        RWM_EACH_ISA(A, demodulate_backward_weights(ps, pd, pdd, as<A>(scale), rows, first, last, out_c, in_c));
      });
  });
}

}  // namespace

RWM_BIND(modulated_conv2d_passes) {
  m.def("modulated_conv2d_scale", &scale);
  m.def("modulated_conv2d_scale_backward", &scale_backward);
  m.def("modulated_conv2d_epilogue", &epilogue);
  m.def("modulated_conv2d_epilogue_backward", &epilogue_backward);
  m.def("modulated_conv2d_squares", &squares);
  m.def("modulated_conv2d_fingerprint", &fingerprint);
  m.def("modulated_conv2d_demodulation", &demodulation);
  m.def("modulated_conv2d_demodulation_backward", &demodulation_backward);
}
