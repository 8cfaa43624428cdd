// modulated_conv2d on the CPU: convolutions by definition, of any kernel and stride, forward and
// both gradients.
#include "common/scratch.h"
#include "modulated_conv2d/cpu.h"
#include "modulated_conv2d/direct.h"

#define RWM_KERNELS "modulated_conv2d/direct_kernels.h"
#include "common/each_isa.h"

namespace {
using namespace rwm;

template <class A>
std::int64_t columns_of_panel() {
  std::int64_t columns = 0;
  RWM_EACH_ISA(A, columns = panel_columns<A>());
  return columns;
}

// Numbers of the packed weights: forward [panels of out_c][depth], adjoint [rows of the
// kernel][panels of a run][out_c].
template <class A>
std::int64_t packed_size(const DirectPlan& p, bool adjoint) {
  const std::int64_t wide = columns_of_panel<A>();
  return adjoint ? p.kernel_h * padded(p.run(), wide) * p.out_c : padded(p.out_c, wide) * p.depth();
}

std::int64_t weights_size(const Kernels& kernels, bool adjoint) {
  return with_float(kernels, [&](auto tag) {
    return packed_size<typename decltype(tag)::type>(DirectPlan(kernels), adjoint);
  });
}

// The kernels at w in the order the products read them.
void pack(const Kernels& kernels, Pointer w, Pointer out, bool adjoint) {
  const DirectPlan p(kernels);
  present(kOp, kernels.pairs(), {w, out});
  const KernelStrides s = kernels.strides();
  const bool flip = !kernels.flip_weight;
  with_float(kernels, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const std::int64_t wide = columns_of_panel<A>(),
                       panels = num_chunks(adjoint ? p.run() : p.out_c, wide);
    const std::int64_t size = wide * (adjoint ? p.out_c : p.depth());
    parallel_for(0, adjoint ? p.kernel_h * panels : panels, 1 + kPass / (size + 1),
                 [&](std::int64_t first, std::int64_t last) {
                   for (std::int64_t i = first; i < last; ++i) {
                     if (adjoint) {
                       RWM_EACH_ISA(A, pack_adjoint(p, as<const A>(w), s, flip, i / panels,
                                                    i % panels, as<A>(out) + i * size));
                     } else {
                       RWM_EACH_ISA(
                           A, pack_forward(p, as<const A>(w), s, flip, i, as<A>(out) + i * size));
                     }
                   }
                 });
  });
}

// Pixels whose patches are gathered at a time: more where the weights are larger than the caches.
std::int64_t pixels_of_block(const DirectPlan& p) { return p.depth() > 2048 ? 96 : 48; }

// u = conv(a·x); x, u are channels_last.
void forward(const DirectPlan& p, Pointer x, Pointer weights, Pointer u, Pointer a) {
  present(kOp, p.pixels() * p.out_c, {u});
  present(kOp, p.pixels() * p.out_c * p.in_c == 0 ? 0 : 1, {weights});
  present(kOp, p.inputs(), {x});
  with_float(p.kernels, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const std::int64_t block = pixels_of_block(p), ld = spread(p.depth()),
                       wide = columns_of_panel<A>();
    const py::gil_scoped_release release;
    parallel_for(
        0, num_chunks(p.pixels(), block), 1 + kProduct / (block * p.depth() * p.out_c + 1),
        [&](std::int64_t first, std::int64_t last) {
          const Scratch<A> patches(block * ld), tile(block * wide);
          for (std::int64_t i = first; i < last; ++i) {
            const std::int64_t begin = i * block, end = std::min(p.pixels(), begin + block);
            RWM_EACH_ISA(A, gather_patches(p, as<const A>(x), as<const A>(a), begin, end,
                                           patches.get(), ld));
            RWM_EACH_ISA(A, multiply_patches(p, patches.get(), ld, as<const A>(weights),
                                             as<A>(u) + begin * p.out_c, end - begin, tile.get()));
          }
        });
  });
}

// dz = a·convᵀ(du); a may be 0.
void input_gradient(const DirectPlan& p, Pointer du, Pointer weights, Pointer dz, Pointer a) {
  present(kOp, p.pixels() * p.out_c, {du});
  present(kOp, p.pixels() * p.out_c * p.in_c == 0 ? 0 : 1, {weights});
  present(kOp, p.inputs(), {dz});
  if (p.in_w * p.in_c == 0) return;
  with_float(p.kernels, [&](auto tag) {
    using A = typename decltype(tag)::type;
    // Images whose rows go side by side: a matrix of few rows does not fill the registers.
    const std::int64_t group =
        std::max<std::int64_t>(1, std::min(p.batch, 48 / std::max<std::int64_t>(1, p.out_w)));
    const std::int64_t groups = num_chunks(p.batch, group), wide = columns_of_panel<A>();
    const std::int64_t work = group * p.out_w * p.out_c * p.depth() / p.stride;
    const py::gil_scoped_release release;
    parallel_for(
        0, groups * p.in_h, 1 + kProduct / (work + 1), [&](std::int64_t first, std::int64_t last) {
          const Scratch<A> rows(group * p.out_w * p.out_c + 1), tile(group * p.out_w * wide + 1);
          for (std::int64_t i = first; i < last; ++i) {
            const std::int64_t begin = i / p.in_h * group, end = std::min(p.batch, begin + group);
            RWM_EACH_ISA(
                A, scatter_rows(p, as<const A>(du), as<const A>(weights), as<const A>(a), as<A>(dz),
                                begin, end, i % p.in_h, rows.get(), tile.get()));
          }
        });
  });
}

// products [out_c, ld] = sum over pixels of du[m, :]ᵀ·patches[m, :], block by block.
template <class A>
void gradients_of_patches(const DirectPlan& p, const A* x, const A* a, const A* du, A* products,
                          std::int64_t ld) {
  constexpr std::int64_t kBlock = 96;
  const std::int64_t wide = columns_of_panel<A>(), row = spread(p.out_c);
  const Scratch<A> patches(kBlock * ld), rows(kBlock * row);
  if (p.pixels() == 0) std::fill(products, products + p.out_c * ld, A(0));
  for (std::int64_t begin = 0; begin < p.pixels(); begin += kBlock) {
    const std::int64_t pixels = std::min(kBlock, p.pixels() - begin);
    parallel_for(0, pixels, 1 + kPass / p.depth(), [&](std::int64_t first, std::int64_t last) {
      RWM_EACH_ISA(
          A, gather_patches(p, x, a, begin + first, begin + last, patches.get() + first * ld, ld));
      RWM_EACH_ISA(A, copy_rows(du + (begin + first) * p.out_c, p.out_c, rows.get() + first * row,
                                row, last - first));
    });
    parallel_for(0, num_chunks(p.depth(), wide), 1 + kProduct / (pixels * p.out_c * wide + 1),
                 [&](std::int64_t first, std::int64_t last) {
                   for (std::int64_t i = first * wide; i < last * wide; i += wide) {
                     RWM_EACH_ISA(A, multiply_direct_gradients(rows.get(), row, patches.get() + i,
                                                               ld, products + i, ld, pixels,
                                                               p.out_c, begin > 0));
                   }
                 });
  }
}

// dw = the gradient of the kernels from x and du, + 2 w·scale[o, c] if a scale is given; like w.
void weight_gradient(const DirectPlan& p, Pointer x, Pointer a, Pointer du, Pointer w,
                     Pointer scale, Pointer dw) {
  present(kOp, p.inputs(), {x});
  present(kOp, p.pixels() * p.out_c, {du});
  present(kOp, p.kernels.pairs(), {dw});
  present(kOp, scale != 0 ? p.kernels.pairs() : 0, {w});
  if (p.depth() * p.out_c == 0) return;
  with_float(p.kernels, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const std::int64_t ld = spread(padded(p.depth(), columns_of_panel<A>()));
    const Scratch<A> products(p.out_c * ld);
    const KernelStrides s = p.kernels.strides();
    const py::gil_scoped_release release;
    gradients_of_patches<A>(p, as<const A>(x), as<const A>(a), as<const A>(du), products.get(), ld);
    parallel_for(0, p.out_c, 1 + kPass / p.depth(), [&](std::int64_t first, std::int64_t last) {
      RWM_EACH_ISA(
          A, finish_direct_gradient(p, products.get(), ld, !p.kernels.flip_weight, as<const A>(w),
                                    as<const A>(scale), as<A>(dw), s, first, last));
    });
  });
}

}  // namespace

RWM_BIND(modulated_conv2d_direct) {
  record<DirectPlan>(m, "DirectPlan")
      .def(py::init<const Kernels&, std::int64_t, Pair, Pair, std::int64_t, Pair>(),
           py::arg("kernels"), py::arg("batch"), py::arg("in_size"), py::arg("out_size"),
           py::arg("stride"), py::arg("padding"));
  m.def("modulated_conv2d_direct_weights_size", &weights_size);
  m.def("modulated_conv2d_direct_weights", &pack);
  m.def("modulated_conv2d_direct", &forward);
  m.def("modulated_conv2d_direct_input_gradient", &input_gradient);
  m.def("modulated_conv2d_direct_weight_gradient", &weight_gradient);
}
