// modulated_conv2d on the CPU: 3×3 convolutions of stride 1, doubling and halving, forward and both gradients, by Winograd's algorithm.
#include <memory>
#include <vector>

#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "modulated_conv2d/winograd.h"

#define RWM_KERNELS "modulated_conv2d/winograd_kernels.h"
#include "common/each_isa.h"

namespace {
using namespace rwm;

using Extents = py::tuple;  // the numbers of WinogradPlan, less the tiles

constexpr const char* kOp = "modulated_conv2d";

void check_steps(std::int64_t in_step, std::int64_t out_step) {
  const bool known = (in_step == 1 || in_step == 2) && (out_step == 1 || out_step == 2);
  check(known && in_step * out_step <= 2, kOp, ": one side may have phases, two an axis");
}

// The filter's matrices are there where a side has phases, and only there.
void check_taps(std::int64_t in_step, std::int64_t out_step, Pointer taps_y, Pointer taps_x) {
  const bool phases = in_step * out_step > 1;
  check((taps_y != 0) == phases && (taps_x != 0) == phases, kOp, ": phases come with a filter");
}

// Scales [N, K, C] and regions [N, K, plane] of a blend.
void check_blend(std::int64_t batch, std::int64_t plane, std::int64_t channels, Pointer scale, Pointer regions, std::int64_t styles) {
  check(styles > 0, kOp, ": styles must be at least 1, got ", styles);
  elements(kOp, {batch, styles, kPoints, std::max(plane, channels)});
  check(regions == 0 || scale != 0, kOp, ": regions without scales");
  check(styles == 1 || scale == 0 || regions != 0, kOp, ": several styles without regions");
}

WinogradPlan plan_of(const Extents& extents) {
  check(extents.size() == 11, "modulated_conv2d: a plan has 11 numbers");
  std::int64_t e[11];
  try {
    for (std::size_t i = 0; i < 11; ++i) e[i] = extents[i].cast<std::int64_t>();
  } catch (const py::cast_error&) {
    throw py::type_error("modulated_conv2d: the numbers of a plan are whole and fit 64 bits");
  }
  check_steps(e[7], e[8]);
  elements(kOp, {e[0], e[1], e[2], e[3]});  // the input
  elements(kOp, {e[0], e[4], e[5], e[6]});  // the output
  elements(kOp, {kPoints, 4, e[3], e[6]});  // weights
  elements(kOp, {kPoints, e[0], (e[4] + 3) / 4, (e[5] + 3) / 4, std::max(e[3], e[6])});
  check(std::max(std::abs(e[9]), std::abs(e[10])) < kMostElements, kOp, ": a patch starts far outside");
  const std::int64_t h = (e[4] + e[8] - 1) / e[8], w = (e[5] + e[8] - 1) / e[8];  // of an output phase
  return {e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7], e[8], e[9], e[10], (h + 3) / 4, (w + 3) / 4};
}

// 16-bit images come in as float32: CPUs that compute in them have matrix units, and torch's convolution uses those.
template <class F>
auto with_type(int dtype, const F& f) {
  if (static_cast<DType>(dtype) == DType::f64) return f(TypeTag<double>{});
  check(static_cast<DType>(dtype) == DType::f32, "modulated_conv2d: the Winograd passes take float32 or float64");
  return f(TypeTag<float>{});
}

template <class A>
std::int64_t columns_of_panel() {
  std::int64_t columns = 0;
  RWM_EACH_ISA(A, columns = panel_columns<A>());
  return columns;
}

std::int64_t round_up(std::int64_t size, std::int64_t to) { return (size + to - 1) / to * to; }

// From one of the 36 points to the next: a cache line more than a power of two, which would map all of them to one set.
std::int64_t slab_of(std::int64_t depth, std::int64_t columns) { return (depth + 1) * columns; }

// Likewise for rows of points of deep layers.
std::int64_t row_of(std::int64_t depth) { return depth % 256 == 0 ? depth + 16 : depth; }

// Tiles a block: a multiple of the register tile's rows; measured best of 12 to 96, larger where there are more weights to read for each.
std::int64_t tiles_of_block(std::int64_t depth) { return depth >= 256 ? 48 : 36; }

template <class A>
std::unique_ptr<A[]> scratch(std::int64_t size) {
  return std::unique_ptr<A[]>(new A[static_cast<std::size_t>(size)]);
}

// Numbers of the transformed weights, of the accumulator's type, for the instruction set in use.
std::int64_t weights_size(std::int64_t in_c, std::int64_t out_c, std::int64_t in_step, std::int64_t out_step, int dtype) {
  check_steps(in_step, out_step);
  elements(kOp, {kPoints, 4, in_c, out_c});
  return with_type(dtype, [&](auto tag) {
    using A = accumulate_t<typename decltype(tag)::type>;
    const std::int64_t wide = columns_of_panel<A>(), panels = (out_c + wide - 1) / wide;
    return out_step * out_step * panels * kPoints * slab_of(in_step * in_step * in_c, wide);
  });
}

// w holds 3×3 kernels: that from input channel k to output channel n at w + k·sk + n·sn. taps_y and taps_x fold the filter in: [2, 3, 3] for
// the phases of whichever side has them, or 0. All of the accumulator's type.
void transform(Pointer w, Pointer out, std::int64_t sk, std::int64_t sn, std::int64_t in_c, std::int64_t out_c, std::int64_t in_step,
               std::int64_t out_step, bool flip, Pointer taps_y, Pointer taps_x, int dtype) {
  check_steps(in_step, out_step);
  check_taps(in_step, out_step, taps_y, taps_x);
  present(kOp, elements(kOp, {kPoints, 4, in_c, out_c}), {w, out});
  check((sk == 9 && sn == 9 * in_c) || (sk == 9 * out_c && sn == 9), kOp, ": kernels must be [O, I, 3, 3] or its transpose");
  with_type(dtype, [&](auto tag) {
    using A = accumulate_t<typename decltype(tag)::type>;
    const std::int64_t wide = columns_of_panel<A>(), panels = (out_c + wide - 1) / wide, depth = in_step * in_step * in_c;
    const std::int64_t slab = slab_of(depth, wide);
    const auto *ty = as<const A>(taps_y), *tx = as<const A>(taps_x);
    parallel_for(0, out_step * out_step * panels, 1 + (1 << 14) / (depth * wide + 1), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t phase = i / panels;
        const A* y = ty == nullptr ? ty : ty + 9 * (phase / out_step);
        const A* x = tx == nullptr ? tx : tx + 9 * (phase % out_step);
        A* to = as<A>(out) + i * kPoints * slab;
        RWM_EACH_ISA(A, transform_weights<A>(as<const A>(w), sk, sn, in_c, out_c, in_step, flip, y, x, i % panels, to, slab));
      }
    });
  });
}

struct Blended {  // a Blend before its type is known
  Pointer scale, regions;
  std::int64_t styles;

  template <class A>
  Blend<A> of() const {
    return {as<const A>(scale), as<const A>(regions), styles};
  }
};

template <class T, class A>
void run_blocks(const WinogradPlan& p, Pointer x, const Blend<A>& before, Pointer weights, Pointer y, const Epilogue<T, A>& after) {
  const std::int64_t wide = columns_of_panel<A>(), slab = slab_of(p.depth(), wide), ld = row_of(p.depth()), room = tiles_of_block(p.depth());
  const std::vector<T> zeros(static_cast<std::size_t>(p.in_c), T(0.0f));
  parallel_for(0, num_chunks(p.tiles(), room), 1, [&](std::int64_t first, std::int64_t last) {
    const auto points = scratch<A>(kPoints * room * ld), m = scratch<A>(kPoints * room * wide), shares = scratch<A>(kPoints * before.styles);
    for (std::int64_t b = first; b < last; ++b) {
      const std::int64_t begin = b * room, end = std::min(p.tiles(), begin + room);
      RWM_EACH_ISA(A, winograd_block<T>(p, as<const T>(x), zeros.data(), before, as<const A>(weights), slab, as<T>(y), after, points.get(), m.get(),
                                     shares.get(), room, ld, begin, end));
    }
  });
}

// What every pass over the tiles reads.
void check_run(const WinogradPlan& p, Pointer x, Pointer weights) {
  const std::int64_t outputs = p.tiles() * p.out_c;
  present(kOp, outputs * p.in_h * p.in_w * p.in_c == 0 ? 0 : 1, {x, weights});
}

// y = clamp(act(b·conv(a·x) + noise + bias)·gain). x, y are channels_last.
void forward(const Extents& extents, Pointer x, Pointer weights, Pointer y, Pointer a, Pointer regions_in, Pointer b, Pointer regions_out,
             std::int64_t styles, Pointer noise, std::int64_t noise_step, Pointer bias, double slope, double gain, double clamp, int dtype) {
  const WinogradPlan p = plan_of(extents);
  check_run(p, x, weights);
  present(kOp, p.batch * p.out_h * p.out_w * p.out_c, {y});
  check_blend(p.batch, p.in_h * p.in_w, p.in_c, a, regions_in, styles);
  check_blend(p.batch, p.out_h * p.out_w, p.out_c, b, regions_out, styles);
  check(noise_step == 0 || noise_step == p.out_h * p.out_w, kOp, ": noise of another size");
  with_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    Epilogue<T, A> e;
    e.blend = Blended{b, regions_out, styles}.of<A>();
    e.noise = as<const A>(noise);
    e.noise_step = noise_step;
    e.bias = as<const A>(bias);
    e.activation = activation_settings<T>(slope, gain, clamp);
    e.activate = true;
    const py::gil_scoped_release release;
    run_blocks<T, A>(p, x, Blended{a, regions_in, styles}.of<A>(), weights, y, e);
  });
}

// The adjoint: with dz = convᵀ(du), dx = a·dz and da[n, k, i] = sum_p r_k·x·dz. Here the plan's input is du, its output dx. dx or da may be 0;
// without da, x may be.
void input_gradient(const Extents& extents, Pointer du, Pointer weights, Pointer dx, Pointer x, Pointer da, Pointer a, Pointer regions,
                    std::int64_t styles, int dtype) {
  const WinogradPlan p = plan_of(extents);
  check_run(p, du, weights);
  check_blend(p.batch, p.out_h * p.out_w, p.out_c, a, regions, styles);
  present(kOp, da != 0 ? p.batch * p.out_h * p.out_w * p.out_c : 0, {x});
  with_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const std::int64_t row = styles * p.out_c, image = p.tiles_y * p.tiles_x * p.out_step * p.out_step;
    Epilogue<T, A> e;
    e.blend = Blended{a, regions, styles}.of<A>();
    e.x = as<const T>(x);
    const auto products = scratch<A>(da != 0 ? p.batch * image * row : 1);
    e.products = da != 0 ? products.get() : nullptr;
    const py::gil_scoped_release release;
    run_blocks<T, A>(p, du, Blend<A>{}, weights, dx, e);
    if (da == 0) return;
    parallel_for(0, p.batch, 1 + (1 << 14) / (image * row + 1), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t n = first; n < last; ++n) {
        A* total = as<A>(da) + n * row;
        std::fill(total, total + row, A(0));
        RWM_EACH_ISA(A, add_rows(total, products.get() + n * image * row, image, row));
      }
    });
  });
}

// dw = the gradient of the kernels [O, I, 3, 3] from x and du, + 2 w·scale[o, i] if a scale is given. w, scale and dw are of the accumulator's
// type. The plan is that of the forward pass.
void weight_gradient(const Extents& extents, Pointer x, Pointer a, Pointer regions, std::int64_t styles, Pointer du, bool flip, Pointer taps_y,
                     Pointer taps_x, Pointer w, Pointer scale, Pointer dw, int dtype) {
  const WinogradPlan p = plan_of(extents);
  check_taps(p.in_step, p.out_step, taps_y, taps_x);
  check_run(p, x, du);
  check_blend(p.batch, p.in_h * p.in_w, p.in_c, a, regions, styles);
  present(kOp, p.in_c * p.out_c, {dw});
  present(kOp, scale != 0 ? p.in_c * p.out_c : 0, {w});
  with_type(dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = accumulate_t<T>;
    const std::int64_t depth = p.depth(), wide = columns_of_panel<A>(), ldp = row_of(depth), ldg = round_up(p.columns(), wide);
    const std::int64_t room = 48, size = kPoints * depth * ldg;
    const std::vector<T> zeros(static_cast<std::size_t>(p.in_c), T(0.0f));
    const auto points = scratch<A>(kPoints * room * ldp), gradients = scratch<A>(kPoints * room * ldg), products = scratch<A>(size);
    // Columns past the last channel are multiplied but not used.
    std::fill(gradients.get(), gradients.get() + kPoints * room * ldg, A(0));
    if (p.tiles() == 0) std::fill(products.get(), products.get() + size, A(0));
    const Blend<A> before = Blended{a, regions, styles}.of<A>();
    const py::gil_scoped_release release;
    for (std::int64_t begin = 0; begin < p.tiles(); begin += room) {
      const std::int64_t tiles = std::min(room, p.tiles() - begin);
      parallel_for(0, tiles, 6, [&](std::int64_t first, std::int64_t last) {
        const auto shares = scratch<A>(kPoints * styles);
        RWM_EACH_ISA(A, transform_input<T>(p, as<const T>(x), zeros.data(), before, begin + first, begin + last, points.get() + first * ldp, room, ldp,
                                        shares.get());
                     transform_gradient<T>(p, as<const T>(du), begin + first, begin + last, gradients.get() + first * ldg, room, ldg));
      });
      parallel_for(0, kPoints, 6, [&](std::int64_t first, std::int64_t last) {
        for (std::int64_t q = first; q < last; ++q) {
          const A *s = points.get() + q * room * ldp, *g = gradients.get() + q * room * ldg;
          A* to = products.get() + q * depth * ldg;
          RWM_EACH_ISA(A, begin == 0 ? multiply_gradients<false>(s, ldp, g, ldg, to, tiles, depth) : multiply_gradients<true>(s, ldp, g, ldg, to, tiles, depth));
        }
      });
    }
    const auto *ty = as<const A>(taps_y), *tx = as<const A>(taps_x);
    parallel_for(0, p.out_c, std::max<std::int64_t>(16, (1 << 14) / (depth + 1)), [&](std::int64_t first, std::int64_t last) {
      RWM_EACH_ISA(A, finish_weight_gradient(products.get(), ldg, p.in_c, p.out_c, p.in_step, p.out_step, flip, ty, tx, as<const A>(w),
                                          as<const A>(scale), as<A>(dw), first, last));
    });
  });
}

}  // namespace

RWM_BIND(modulated_conv2d_winograd) {
  m.def("modulated_conv2d_winograd_weights_size", &weights_size);
  m.def("modulated_conv2d_winograd_weights", &transform);
  m.def("modulated_conv2d_winograd", &forward);
  m.def("modulated_conv2d_winograd_input_gradient", &input_gradient);
  m.def("modulated_conv2d_winograd_weight_gradient", &weight_gradient);
}
