// modulated_conv2d on the CPU: 3×3 convolutions of stride 1 and doublings, forward and both
// gradients, by Winograd's algorithm.
//
// Tiles go in blocks through three passes, each cut among the threads: points of the input,
// products with one slab of weights after the other (a slab is read once a block, and its columns
// stay in the first-level cache for all tiles), the output and its epilogue.
#include <vector>

#include "common/scratch.h"
#include "modulated_conv2d/cpu.h"

#define RWM_KERNELS "modulated_conv2d/winograd_kernels.h"
#include "common/each_isa.h"

namespace {
using namespace rwm;

// What every pass over the tiles reads.
void check_run(const WinogradPlan& p, Pointer x, Pointer weights) {
  const std::int64_t outputs = p.tiles() * p.out_c;
  present(kOp, outputs * p.in_h * p.in_w * p.in_c == 0 ? 0 : 1, {x, weights});
}

template <class A>
std::int64_t columns_of_panel() {
  std::int64_t columns = 0;
  RWM_EACH_ISA(A, columns = panel_columns<A>());
  return columns;
}

// The weights of one product: panels of columns, [panels, depth, columns of a panel].
struct Slabs {
  std::int64_t wide, panels, depth, step;

  // Steps, of slabs and of the grids below, are a cache line more than a power of two, which would
  // map all points to one set of a cache.
  Slabs(std::int64_t wide, std::int64_t depth, std::int64_t columns)
      : wide(wide), panels((columns + wide - 1) / wide), depth(depth),
        step(panels * depth * wide + 16) {}
  std::int64_t panel() const { return depth * wide; }
  std::int64_t columns() const { return panels * wide; }
};

Grid grid_of(std::int64_t tiles, std::int64_t channels) {
  const std::int64_t row = channels % 256 == 0 ? channels + 16 : channels;
  return {(tiles * row + 1023) / 1024 * 1024 + 16, row};
}

// Tiles a block: enough that reading a slab pays, few enough for the caches; all blocks of about
// one size.
std::int64_t tiles_of_block(const WinogradPlan& p, std::int64_t most) {
  const std::int64_t blocks = std::max<std::int64_t>(1, num_chunks(p.tiles(), most));
  return num_chunks(p.tiles(), blocks);
}

constexpr std::int64_t grain_of(std::int64_t work, std::int64_t item) {
  return 1 + work / (item + 1);
}

// Numbers of the transformed weights, for the instruction set in use.
std::int64_t weights_size(const Kernels& kernels, bool adjoint) {
  return with_float(kernels, [&](auto tag) {
    using A = typename decltype(tag)::type;
    return kSlabs * Slabs(columns_of_panel<A>(), adjoint ? kernels.out_c : kernels.in_c,
                          adjoint ? kernels.in_c : kernels.out_c)
                        .step;
  });
}

// Whether the 3×3 kernels are read backwards; a doubling scatters, so turns them over.
bool flips(const Kernels& kernels, bool wide, bool adjoint) {
  return wide ? kernels.flip_weight : kernels.flip_weight == adjoint;
}

// The kernels at w as the products read them, for layers of stride 1 or doublings.
void transform(const Kernels& kernels, Pointer w, Pointer out, std::int64_t up, bool adjoint) {
  WinogradPlan::check_kernels(kOp, kernels, up);
  present(kOp, kernels.pairs(), {w, out});
  const KernelStrides s = kernels.strides();
  const bool wide = up == 2, flip = flips(kernels, wide, adjoint);
  const std::int64_t depth = adjoint ? kernels.out_c : kernels.in_c,
                     columns = adjoint ? kernels.in_c : kernels.out_c;
  const std::int64_t sk = adjoint ? s.out : s.in, sn = adjoint ? s.in : s.out;
  with_float(kernels, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const Slabs slabs(columns_of_panel<A>(), depth, columns);
    const auto* from = as<const A>(w);
    const py::gil_scoped_release release;
    parallel_for(0, slabs.panels, grain_of(kPass, slabs.panel()),
                 [&](std::int64_t first, std::int64_t last) {
                   for (std::int64_t i = first; i < last; ++i) {
                     A* to = as<A>(out) + i * slabs.panel();
                     with_bool(wide, [&](auto w) {
                       RWM_EACH_ISA(
                           A, transform_weights<decltype(w)::value>(
                                  from, sk, sn, s.tap, depth, columns, flip, i, to, slabs.step));
                     });
                   }
                 });
  });
}

// Points of tiles [begin, begin + tiles) of the input, or of the gradient's narrow side.
template <class A>
void input_points_of(const WinogradPlan& p, const A* x, const A* zeros, const Blend<A>& blend,
                     std::int64_t begin, std::int64_t tiles, A* points, Grid grid) {
  parallel_for(
      0, tiles, grain_of(kPass, p.points() * p.in_c), [&](std::int64_t first, std::int64_t last) {
        std::vector<A> shares(static_cast<std::size_t>(36 * blend.styles));
        RWM_EACH_ISA(
            A, transform_input(p, x, zeros, blend, kWidePlaces.of, begin + first, begin + last,
                               points + first * grid.row, grid, shares.data()));
      });
}

template <class A>
void wide_points_of(const WinogradPlan& p, const A* x, std::int64_t h, std::int64_t w,
                    std::int64_t c, std::int64_t begin, std::int64_t tiles, A* points, Grid grid) {
  parallel_for(0, tiles, grain_of(kPass, 81 * c), [&](std::int64_t first, std::int64_t last) {
    RWM_EACH_ISA(A, transform_wide(p, x, h, w, c, kWidePlaces.of, begin + first, begin + last,
                                   points + first * grid.row, grid));
  });
}

template <class A>
void products_of(const WinogradPlan& p, const Slabs& slabs, const A* points, Grid from,
                 const A* weights, A* m, Grid to, std::int64_t tiles) {
  parallel_for(0, kSlabs * slabs.panels, grain_of(kProduct, tiles * slabs.panel()),
               [&](std::int64_t first, std::int64_t last) {
                 for (std::int64_t i = first; i < last; ++i) {
                   const std::int64_t slab = i / slabs.panels, panel = i % slabs.panels;
                   const A* w = weights + slab * slabs.step + panel * slabs.panel();
                   RWM_EACH_ISA(
                       A, multiply_panel(points, from, w, m + panel * slabs.wide, to, p.first(slab),
                                         p.count(slab), tiles, slabs.depth));
                 }
               });
}

template <class A>
void outputs_of(const WinogradPlan& p, const A* m, Grid grid, A* y, const Epilogue<A, A>& e,
                std::int64_t begin, std::int64_t tiles) {
  if (p.stride == Stride::up) {  // by channels: tiles share pixels
    constexpr std::int64_t kLine = 16;
    parallel_for(0, num_chunks(p.out_c, kLine), grain_of(kPass, 81 * tiles * kLine),
                 [&](std::int64_t first, std::int64_t last) {
                   RWM_EACH_ISA(A, add_wide(p, m, grid, y, kWidePlaces.of, begin, begin + tiles,
                                            first * kLine, std::min(p.out_c, last * kLine)));
                 });
    return;
  }
  parallel_for(0, tiles, grain_of(kPass, p.points() * p.out_c),
               [&](std::int64_t first, std::int64_t last) {
                 RWM_EACH_ISA(A, transform_output(p, m + first * grid.row, grid, y, e,
                                                  kWidePlaces.of, begin + first, begin + last));
               });
}

template <class A>
void run_blocks(const WinogradPlan& p, const A* x, const Blend<A>& before, const A* weights, A* y,
                const Epilogue<A, A>& after) {
  const Slabs slabs(columns_of_panel<A>(), p.in_c, p.out_c);
  const std::int64_t room = tiles_of_block(p, 64);
  const Grid from = grid_of(room, p.in_c), to = grid_of(room, slabs.columns());
  const Scratch<A> points(p.points() * from.step), m(p.points() * to.step);
  const std::vector<A> zeros(static_cast<std::size_t>(p.in_c), A(0));
  // Tiles do not reach a last row or column that the stride left out.
  if (p.stride == Stride::up && (p.out_h > 8 * p.tiles_y + 1 || p.out_w > 8 * p.tiles_x + 1))
    std::fill(y, y + p.batch * p.out_h * p.out_w * p.out_c, A(0));
  for (std::int64_t begin = 0; begin < p.tiles(); begin += room) {
    const std::int64_t tiles = std::min(room, p.tiles() - begin);
    if (p.stride == Stride::down) {
      wide_points_of(p, x, p.in_h, p.in_w, p.in_c, begin, tiles, points.get(), from);
    } else {
      input_points_of(p, x, zeros.data(), before, begin, tiles, points.get(), from);
    }
    products_of(p, slabs, points.get(), from, weights, m.get(), to, tiles);
    outputs_of(p, m.get(), to, y, after, begin, tiles);
  }
}

// y = epilogue(conv(before·x)); up: y = conv(before·x) and nothing else.
void forward(const WinogradPlan& p, Pointer x, Pointer weights, Pointer y,
             const records::Blend& before, const records::Epilogue& after) {
  check_run(p, x, weights);
  present(kOp, p.outputs(), {y});
  before.check_sizes(p.batch, p.in_h * p.in_w, p.in_c);
  after.blend.check_sizes(p.batch, p.out_h * p.out_w, p.out_c);
  with_float(p.kernels, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const Epilogue<A, A> e(after, p.out_h * p.out_w);
    const py::gil_scoped_release release;
    run_blocks<A>(p, as<const A>(x), Blend<A>(before), as<const A>(weights), as<A>(y), e);
  });
}

// The adjoint: with dz = convᵀ(du), dx = before·dz and da[n, k, i] = sum_p r_k·x·dz. dx or da may
// be 0; without da, x may be.
void input_gradient(const WinogradPlan& forward, Pointer du, Pointer weights, Pointer dx, Pointer x,
                    Pointer da, const records::Blend& before) {
  const WinogradPlan p = forward.adjoint();
  check_run(p, du, weights);
  before.check_sizes(p.batch, p.out_h * p.out_w, p.out_c);
  present(kOp, da != 0 ? p.outputs() : 0, {x});
  with_float(p.kernels, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const std::int64_t row = before.styles * p.out_c, image = p.tiles_y * p.tiles_x;
    Epilogue<A, A> e(before);
    e.x = as<const A>(x);
    const Scratch<A> products(da != 0 ? p.batch * image * row : 1);
    e.products = da != 0 ? products.get() : nullptr;
    const py::gil_scoped_release release;
    run_blocks<A>(p, as<const A>(du), Blend<A>(), as<const A>(weights), as<A>(dx), e);
    if (da == 0) return;
    parallel_for(0, p.batch, grain_of(kPass, image * row),
                 [&](std::int64_t first, std::int64_t last) {
                   for (std::int64_t n = first; n < last; ++n) {
                     A* total = as<A>(da) + n * row;
                     std::fill(total, total + row, A(0));
                     RWM_EACH_ISA(A, add_rows(total, products.get() + n * image * row, image, row));
                   }
                 });
  });
}

// Points of tiles [begin, begin + tiles) of du, on the side that the plan's output has.
template <class A>
void gradient_points_of(const WinogradPlan& p, const A* du, std::int64_t begin, std::int64_t tiles,
                        A* points, Grid grid) {
  if (p.stride == Stride::up)
    return wide_points_of(p, du, p.out_h, p.out_w, p.out_c, begin, tiles, points, grid);
  parallel_for(0, tiles, grain_of(kPass, 36 * p.out_c), [&](std::int64_t first, std::int64_t last) {
    RWM_EACH_ISA(
        A, transform_gradient(p, du, begin + first, begin + last, points + first * grid.row, grid));
  });
}

// The gradient of each product's weights: slabs.columns() numbers a row, rows of p.out_c, `step`
// from slab to slab.
template <class A>
void gradients_of_slabs(const WinogradPlan& p, const Slabs& slabs, const A* x,
                        const Blend<A>& before, const A* du, A* products, std::int64_t step) {
  const std::int64_t room = tiles_of_block(p, 64), ld = slabs.columns();
  const Grid left = grid_of(room, p.out_c), right = grid_of(room, ld);
  const Scratch<A> points(p.points() * right.step), gradients(p.points() * left.step);
  const std::vector<A> zeros(static_cast<std::size_t>(p.in_c), A(0));
  // Columns past the last channel are multiplied but not used: they must only be cheap.
  if (ld != p.in_c) std::fill(points.get(), points.get() + p.points() * right.step, A(0));
  if (p.tiles() == 0) std::fill(products, products + kSlabs * step, A(0));
  for (std::int64_t begin = 0; begin < p.tiles(); begin += room) {
    const std::int64_t tiles = std::min(room, p.tiles() - begin);
    input_points_of(p, x, zeros.data(), before, begin, tiles, points.get(), right);
    gradient_points_of(p, du, begin, tiles, gradients.get(), left);
    parallel_for(0, kSlabs * slabs.panels, grain_of(kProduct, tiles * slabs.panel()),
                 [&](std::int64_t first, std::int64_t last) {
                   for (std::int64_t i = first; i < last; ++i) {
                     const std::int64_t slab = i / slabs.panels,
                                        column = i % slabs.panels * slabs.wide, q = p.first(slab);
                     A* to = products + slab * step + column;
                     RWM_EACH_ISA(
                         A, multiply_gradients(gradients.get() + q * left.step, left,
                                               points.get() + q * right.step + column, right, to,
                                               ld, p.count(slab), tiles, p.out_c, begin > 0));
                   }
                 });
  }
}

// dw = the gradient of the kernels from x and du, + 2 weight·scale[o, i] if a scale is given; like
// the weight.
void weight_gradient(const WinogradPlan& p, Pointer x, Pointer du, const records::Blend& before,
                     Pointer weight, Pointer scale, Pointer dw) {
  check_run(p, x, du);
  before.check_sizes(p.batch, p.in_h * p.in_w, p.in_c);
  present(kOp, p.kernels.pairs(), {dw});
  present(kOp, scale != 0 ? p.kernels.pairs() : 0, {weight});
  const KernelStrides s = p.kernels.strides();
  const bool flip = flips(p.kernels, p.wide(), false);
  with_float(p.kernels, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const Slabs slabs(columns_of_panel<A>(), p.out_c, p.in_c);
    const std::int64_t ld = slabs.columns(), step = p.out_c * ld + 16;
    const Scratch<A> products(kSlabs * step);
    const py::gil_scoped_release release;
    gradients_of_slabs<A>(p, slabs, as<const A>(x), Blend<A>(before), as<const A>(du),
                          products.get(), step);
    parallel_for(0, p.out_c, grain_of(kPass, 36 * p.in_c),
                 [&](std::int64_t first, std::int64_t last) {
                   const auto *pw = as<const A>(weight), *ps = as<const A>(scale);
                   with_bool(p.wide(), [&](auto w) {
                     RWM_EACH_ISA(A, finish_weight_gradient<decltype(w)::value>(
                                         products.get(), Grid{step, ld}, p.in_c, flip, pw, ps,
                                         as<A>(dw), s, first, last));
                   });
                 });
  });
}

}  // namespace

RWM_BIND(modulated_conv2d_winograd) {
  record<WinogradPlan>(m, "WinogradPlan")
      .def(py::init<const Kernels&, std::int64_t, Pair, Pair, std::int64_t, Pair>(),
           py::arg("kernels"), py::arg("batch"), py::arg("in_size"), py::arg("out_size"),
           py::arg("up"), py::arg("offset"));
  m.def("modulated_conv2d_winograd_weights_size", &weights_size);
  m.def("modulated_conv2d_winograd_weights", &transform);
  m.def("modulated_conv2d_winograd", &forward);
  m.def("modulated_conv2d_winograd_input_gradient", &input_gradient);
  m.def("modulated_conv2d_winograd_weight_gradient", &weight_gradient);
}
