// modulated_conv2d on the CPU: the passes before and after a convolution that torch computes, the
// epilogue's derivative, and demodulation.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "modulated_conv2d/cpu.h"

#define RWM_KERNELS "modulated_conv2d/pass_kernels.h"
#include "common/each_isa.h"

namespace {
using namespace rwm;

// No float16: no CPU computes in it.
template <class F>
void with_type(const Images& s, const F& f) {
  switch (static_cast<DType>(s.dtype)) {
    case DType::f64: return f(TypeTag<double>{});
    case DType::bf16: return f(TypeTag<bf16>{});
    default:
      check(static_cast<DType>(s.dtype) == DType::f32, kOp,
            ": the passes take float32, bfloat16 or float64");
  }
  f(TypeTag<float>{});
}

// z = a·x.
void scale(const Images& s, Pointer x, Pointer z, const records::Blend& a) {
  present(kOp, s.numbers(), {x, z, a.scale});
  a.check_sizes(s.batch, s.pixels, s.channels);
  with_type(s, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const Blend<A> blend(a);
    each_chunk(s, [&](std::int64_t, std::int64_t n, std::int64_t first, std::int64_t last) {
      with_bool(blend.regions != nullptr, [&](auto regions) {
        RWM_EACH_ISA(A, scale_pixels<decltype(regions)::value>(as<const T>(x), as<T>(z), blend, n,
                                                               first, last, s.pixels, s.channels));
      });
    });
  });
}

// dx = a·dz and da[n, k, c] = sum_p r_k·x·dz. dx or da may be 0; without da, x may be.
void scale_backward(const Images& s, Pointer dz, Pointer x, Pointer dx, Pointer da,
                    const records::Blend& a) {
  present(kOp, s.numbers(), {dz, a.scale});
  present(kOp, da != 0 ? s.numbers() : 0, {x});
  a.check_sizes(s.batch, s.pixels, s.channels);
  with_type(s, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const Blend<A> blend(a);
    const std::int64_t row = a.styles * s.channels, chunks = chunks_of(s);
    std::vector<A> sums(static_cast<std::size_t>(da != 0 ? s.batch * chunks * row : 0), A(0));
    each_chunk(s, [&](std::int64_t i, std::int64_t n, std::int64_t first, std::int64_t last) {
      A* to = da != 0 ? sums.data() + i * row : nullptr;
      with_bool(blend.regions != nullptr, [&](auto regions) {
        RWM_EACH_ISA(A, adjoint_pixels<decltype(regions)::value>(as<const T>(dz), as<const T>(x),
                                                                 as<T>(dx), to, blend, n, first,
                                                                 last, s.pixels, s.channels));
      });
    });
    if (da == 0) return;
    std::fill(as<A>(da), as<A>(da) + s.batch * row, A(0));
    for (std::int64_t i = 0; i < s.batch * chunks; ++i) {
      RWM_EACH_ISA(A, add_rows(as<A>(da) + i / chunks * row, sums.data() + i * row, 1, row));
    }
  });
}

// y = clamp(act(b·u + strength·noise + bias)·gain); y may be u.
void epilogue(const Images& s, Pointer u, Pointer y, const records::Epilogue& given) {
  present(kOp, s.numbers(), {u, y});
  given.blend.check_sizes(s.batch, s.pixels, s.channels);
  with_type(s, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const Epilogue<T, A> e(given, s.pixels);
    each_chunk(s, [&](std::int64_t, std::int64_t n, std::int64_t first, std::int64_t last) {
      with_bool(e.blend.regions != nullptr, [&](auto regions) {
        RWM_EACH_ISA(A, epilogue_pixels<decltype(regions)::value>(
                            as<const T>(u), as<T>(y), e, n, first, last, s.pixels, s.channels));
      });
    });
  });
}

// dv = act'(dy, y), du = b·dv; dbias[o] = sum dv; db[n, k, o] = sum_p r_k·dv·u; noise_sums[n, p] =
// sum_o dv. u may be 0: it is read back from y. du, db and noise_sums may be 0.
void epilogue_backward(const Images& s, Pointer dy, Pointer y, Pointer u, Pointer du, Pointer dbias,
                       Pointer db, Pointer noise_sums, const records::Epilogue& given) {
  present(kOp, s.numbers(), {dy, y});
  present(kOp, s.channels, {dbias});
  given.blend.check_sizes(s.batch, s.pixels, s.channels);
  with_type(s, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const Epilogue<T, A> e(given, s.pixels);
    const EpilogueGradients<T, A> gradients{as<const T>(dy), as<const T>(y),    as<const T>(u),
                                            as<T>(du),       as<A>(noise_sums), db != 0};
    const std::int64_t styles = e.blend.styles * s.channels, row = s.channels + styles,
                       chunks = chunks_of(s);
    std::vector<A> sums(static_cast<std::size_t>(s.batch * chunks * row), A(0));
    each_chunk(s, [&](std::int64_t i, std::int64_t n, std::int64_t first, std::int64_t last) {
      with_bool(e.blend.regions != nullptr, [&](auto regions) {
        RWM_EACH_ISA(
            A, epilogue_backward_pixels<decltype(regions)::value>(
                   gradients, sums.data() + i * row, e, n, first, last, s.pixels, s.channels));
      });
    });
    std::fill(as<A>(dbias), as<A>(dbias) + s.channels, A(0));
    if (db != 0) std::fill(as<A>(db), as<A>(db) + s.batch * styles, A(0));
    for (std::int64_t i = 0; i < s.batch * chunks; ++i) {
      const A* from = sums.data() + i * row;
      RWM_EACH_ISA(A, add_rows(as<A>(dbias), from, 1, s.channels));
      if (db == 0) continue;
      RWM_EACH_ISA(A, add_rows(as<A>(db) + i / chunks * styles, from + s.channels, 1, styles));
    }
  });
}

// A number that changes when the values do, almost surely; it reads all of them. Eight lanes, so
// that multiplications overlap.
std::uint64_t fingerprint(Pointer values, std::int64_t bytes) {
  present(kOp, elements(kOp, {bytes}), {values});
  if (bytes == 0) return 0;
  constexpr std::uint64_t kOdd = 0x9E3779B97F4A7C15u;
  const auto mix = [](std::uint64_t hash, std::uint64_t word) {
    hash ^= word;
    return (hash << 29 | hash >> 35) *
           kOdd;  // rotated, or a change of the highest bit would stay there
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

// q[o, i] = sum of squares of the kernel from i to o.
void squares(const Kernels& kernels, Pointer w, Pointer q) {
  present(kOp, kernels.pairs(), {w, q});
  const KernelStrides s = kernels.strides();
  const std::int64_t in_c = kernels.in_c, taps = kernels.taps();
  with_float(kernels, [&](auto tag) {
    using A = typename decltype(tag)::type;
    parallel_for(0, kernels.out_c, 1 + kPass / (in_c * taps + 1),
                 [&](std::int64_t first, std::int64_t last) {
                   for (std::int64_t o = first; o < last; ++o) {
                     RWM_EACH_ISA(A, add_squares(as<const A>(w) + o * s.out, as<A>(q) + o * in_c, s,
                                                 in_c, taps));
                   }
                 });
  });
}

// Scales of `rows` images and styles: s [rows, in], d [rows, out], q [out, in].
void check_scales(const Kernels& kernels, std::int64_t rows, Pointer q, Pointer s,
                  std::initializer_list<Pointer> outs) {
  elements(kOp, {rows, kernels.out_c, kernels.in_c});
  present(kOp, rows * kernels.out_c, outs);
  present(kOp, rows * kernels.pairs(), {q, s});
}

// d[r, o] = rsqrt(sum_i s[r, i]²·q[o, i] + eps); r counts images and styles.
void demodulation(const Kernels& kernels, Pointer q, Pointer s, Pointer d, std::int64_t rows,
                  double eps) {
  check_scales(kernels, rows, q, s, {d});
  with_float(kernels, [&](auto tag) {
    using A = typename decltype(tag)::type;
    parallel_for(
        0, rows, 1 + kPass / (kernels.pairs() + 1), [&](std::int64_t first, std::int64_t last) {
          RWM_EACH_ISA(A, demodulate(as<const A>(q), as<const A>(s), as<A>(d), static_cast<A>(eps),
                                     first, last, kernels.out_c, kernels.in_c));
        });
  });
}

// ds += the gradient through d; scale[o, i], for dW = 2 W·scale. ds or scale may be 0.
void demodulation_backward(const Kernels& kernels, Pointer q, Pointer s, Pointer d, Pointer dd,
                           Pointer ds, Pointer scale, std::int64_t rows) {
  check_scales(kernels, rows, q, s, {d, dd});
  const std::int64_t out_c = kernels.out_c, in_c = kernels.in_c;
  with_float(kernels, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const auto *pq = as<const A>(q), *ps = as<const A>(s), *pd = as<const A>(d),
               *pdd = as<const A>(dd);
    if (ds != 0)
      parallel_for(0, rows, 1 + kPass / (out_c * in_c + 1),
                   [&](std::int64_t first, std::int64_t last) {
                     RWM_EACH_ISA(A, demodulate_backward_styles(pq, ps, pd, pdd, as<A>(ds), first,
                                                                last, out_c, in_c));
                   });
    if (scale != 0)
      parallel_for(0, out_c, 1 + kPass / (rows * in_c + 1),
                   [&](std::int64_t first, std::int64_t last) {
                     RWM_EACH_ISA(A, demodulate_backward_weights(ps, pd, pdd, as<A>(scale), rows,
                                                                 first, last, out_c, in_c));
                   });
  });
}

// Of some numbers: the largest |x|, the sum of |x|, and how many are not 0.
struct Extent {
  double largest, sum, count;
};

// Whether all numbers are finite and none is more than `most` times the mean size of those that are
// not 0.
bool is_even(const Images& s, Pointer x, double most) {
  present(kOp, s.numbers(), {x});
  Extent all{0, 0, 0};
  with_float_images(s, [&](auto tag) {
    using A = typename decltype(tag)::type;
    constexpr std::int64_t kChunk = 1 << 14;  // short sums, and the same for any threads
    const std::int64_t count = s.numbers(), chunks = num_chunks(count, kChunk);
    std::vector<Extent> of(static_cast<std::size_t>(chunks));
    const py::gil_scoped_release release;
    parallel_for(0, chunks, 4, [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        A largest[16] = {}, sum, many;  // as many lanes as a vector has at most
        RWM_EACH_ISA(A, extent(as<const A>(x) + i * kChunk, std::min(kChunk, count - i * kChunk),
                               largest, sum, many));
        of[static_cast<std::size_t>(i)] = {*std::max_element(largest, largest + 16), sum, many};
      }
    });
    for (const Extent& e : of)
      all = {std::max(all.largest, e.largest), all.sum + e.sum, all.count + e.count};
  });
  return std::isfinite(all.sum) && all.largest * all.count <= most * all.sum;
}

}  // namespace

RWM_BIND(modulated_conv2d_passes) {
  bind_records(m);
  using std::pair;
  bind_fields<Kernels, false>(
      m, "Kernels", pair("out_channels", &Kernels::out_c), pair("in_channels", &Kernels::in_c),
      pair("size", &Kernels::size), pair("channels_last", &Kernels::channels_last),
      pair("flip_weight", &Kernels::flip_weight), pair("dtype", &Kernels::dtype));
  m.def("modulated_conv2d_scale", &scale);
  m.def("modulated_conv2d_scale_backward", &scale_backward);
  m.def("modulated_conv2d_epilogue", &epilogue);
  m.def("modulated_conv2d_epilogue_backward", &epilogue_backward);
  m.def("modulated_conv2d_squares", &squares);
  m.def("modulated_conv2d_fingerprint", &fingerprint);
  m.def("modulated_conv2d_is_even", &is_even);
  m.def("modulated_conv2d_demodulation", &demodulation);
  m.def("modulated_conv2d_demodulation_backward", &demodulation_backward);
}
