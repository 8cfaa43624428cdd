// modulated_conv2d on the CPU: convolutions by definition, of any kernel and stride, forward and both gradients.
#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "common/scratch.h"
#include "modulated_conv2d/arguments.h"
#include "modulated_conv2d/direct.h"

#define RWM_KERNELS "modulated_conv2d/direct_kernels.h"
#include "common/each_isa.h"

namespace {
using namespace rwm;

using Extents = py::tuple;  // the numbers of DirectPlan
using Strides = py::tuple;  // of KernelStrides

constexpr const char* kOp = "modulated_conv2d";
constexpr std::int64_t kProduct = 1 << 17;  // multiplications a thread is worth
constexpr std::int64_t kPass = 1 << 14;     // numbers

DirectPlan plan_of(const Extents& extents) {
  std::int64_t e[12];
  integers(kOp, "the numbers of a plan", extents, e, 12);
  elements(kOp, {e[0], e[1], e[2], e[3]});  // the input
  elements(kOp, {e[0], e[4], e[5], e[6]});  // the output
  check(e[7] > 0 && e[8] > 0 && e[9] > 0, kOp, ": kernels and strides must be at least 1");
  elements(kOp, {e[7] + 16, e[8] + 16, e[3] + 16, e[6] + 16, 4});  // weights in panels, and no product of them overflows
  elements(kOp, {std::max(e[4], e[5]) + 1, e[9]});
  check(std::max(std::abs(e[10]), std::abs(e[11])) < kMostElements, kOp, ": a patch starts far outside");
  return {e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7], e[8], e[9], e[10], e[11]};
}

template <class A>
std::int64_t columns_of_panel() {
  std::int64_t columns = 0;
  RWM_EACH_ISA(A, columns = panel_columns<A>());
  return columns;
}

// Numbers of the packed weights: forward [panels of out_c][depth], adjoint [rows of the kernel][panels of a run][out_c].
template <class A>
std::int64_t packed_size(const DirectPlan& p, bool adjoint) {
  const std::int64_t wide = columns_of_panel<A>();
  return adjoint ? p.kernel_h * padded(p.run(), wide) * p.out_c : padded(p.out_c, wide) * p.depth();
}

std::int64_t weights_size(const Extents& extents, bool adjoint, int dtype) {
  const DirectPlan p = plan_of(extents);
  return with_float(dtype, [&](auto tag) { return packed_size<typename decltype(tag)::type>(p, adjoint); });
}

// w [out_c, in_c, kernel_h, kernel_w] in the order the products read it; read backwards if `flip`.
void pack(const Extents& extents, Pointer w, Pointer out, const Strides& strides, bool adjoint, bool flip, int dtype) {
  const DirectPlan p = plan_of(extents);
  present(kOp, p.depth() * p.out_c, {w, out});
  const KernelStrides s = kernel_strides(kOp, strides, p.out_c, p.in_c, p.kernel_h * p.kernel_w);
  with_float(dtype, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const std::int64_t wide = columns_of_panel<A>(), panels = num_chunks(adjoint ? p.run() : p.out_c, wide);
    const std::int64_t size = wide * (adjoint ? p.out_c : p.depth());
    parallel_for(0, adjoint ? p.kernel_h * panels : panels, 1 + kPass / (size + 1), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first; i < last; ++i) {
        if (adjoint) {
          RWM_EACH_ISA(A, pack_adjoint(p, as<const A>(w), s, flip, i / panels, i % panels, as<A>(out) + i * size));
        } else {
          RWM_EACH_ISA(A, pack_forward(p, as<const A>(w), s, flip, i, as<A>(out) + i * size));
        }
      }
    });
  });
}

// Pixels whose patches are gathered at a time: more where the weights are larger than the caches.
std::int64_t pixels_of_block(const DirectPlan& p) { return p.depth() > 2048 ? 96 : 48; }

// u = conv(a·x); x, u are channels_last.
void forward(const Extents& extents, Pointer x, Pointer weights, Pointer u, Pointer a, int dtype) {
  const DirectPlan p = plan_of(extents);
  present(kOp, p.pixels() * p.out_c, {u});
  present(kOp, p.pixels() * p.out_c * p.in_c == 0 ? 0 : 1, {weights});
  present(kOp, p.batch * p.in_h * p.in_w * p.in_c, {x});
  with_float(dtype, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const std::int64_t block = pixels_of_block(p), ld = spread(p.depth()), wide = columns_of_panel<A>();
    const py::gil_scoped_release release;
    parallel_for(0, num_chunks(p.pixels(), block), 1 + kProduct / (block * p.depth() * p.out_c + 1), [&](std::int64_t first, std::int64_t last) {
      const Scratch<A> patches(block * ld), tile(block * wide);
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t begin = i * block, end = std::min(p.pixels(), begin + block);
        RWM_EACH_ISA(A, gather_patches(p, as<const A>(x), as<const A>(a), begin, end, patches.get(), ld));
        RWM_EACH_ISA(A, multiply_patches(p, patches.get(), ld, as<const A>(weights), as<A>(u) + begin * p.out_c, end - begin, tile.get()));
      }
    });
  });
}

// dz = a·convᵀ(du); a may be 0. The plan is that of the forward pass.
void input_gradient(const Extents& extents, Pointer du, Pointer weights, Pointer dz, Pointer a, int dtype) {
  const DirectPlan p = plan_of(extents);
  present(kOp, p.pixels() * p.out_c, {du});
  present(kOp, p.pixels() * p.out_c * p.in_c == 0 ? 0 : 1, {weights});
  present(kOp, p.batch * p.in_h * p.in_w * p.in_c, {dz});
  if (p.in_w * p.in_c == 0) return;
  with_float(dtype, [&](auto tag) {
    using A = typename decltype(tag)::type;
    // Images whose rows go side by side: a matrix of few rows does not fill the registers.
    const std::int64_t group = std::max<std::int64_t>(1, std::min(p.batch, 48 / std::max<std::int64_t>(1, p.out_w)));
    const std::int64_t groups = num_chunks(p.batch, group), wide = columns_of_panel<A>();
    const std::int64_t work = group * p.out_w * p.out_c * p.depth() / p.stride;
    const py::gil_scoped_release release;
    parallel_for(0, groups * p.in_h, 1 + kProduct / (work + 1), [&](std::int64_t first, std::int64_t last) {
      const Scratch<A> rows(group * p.out_w * p.out_c + 1), tile(group * p.out_w * wide + 1);
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t begin = i / p.in_h * group, end = std::min(p.batch, begin + group);
        RWM_EACH_ISA(A, scatter_rows(p, as<const A>(du), as<const A>(weights), as<const A>(a), as<A>(dz), begin, end, i % p.in_h, rows.get(),
                                     tile.get()));
      }
    });
  });
}

// products [out_c, ld] = sum over pixels of du[m, :]ᵀ·patches[m, :], block by block.
template <class A>
void gradients_of_patches(const DirectPlan& p, const A* x, const A* a, const A* du, A* products, std::int64_t ld) {
  constexpr std::int64_t kBlock = 96;
  const std::int64_t wide = columns_of_panel<A>(), row = spread(p.out_c);
  const Scratch<A> patches(kBlock * ld), rows(kBlock * row);
  if (p.pixels() == 0) std::fill(products, products + p.out_c * ld, A(0));
  for (std::int64_t begin = 0; begin < p.pixels(); begin += kBlock) {
    const std::int64_t pixels = std::min(kBlock, p.pixels() - begin);
    parallel_for(0, pixels, 1 + kPass / p.depth(), [&](std::int64_t first, std::int64_t last) {
      RWM_EACH_ISA(A, gather_patches(p, x, a, begin + first, begin + last, patches.get() + first * ld, ld));
      RWM_EACH_ISA(A, copy_rows(du + (begin + first) * p.out_c, p.out_c, rows.get() + first * row, row, last - first));
    });
    parallel_for(0, num_chunks(p.depth(), wide), 1 + kProduct / (pixels * p.out_c * wide + 1), [&](std::int64_t first, std::int64_t last) {
      for (std::int64_t i = first * wide; i < last * wide; i += wide) {
        RWM_EACH_ISA(A, multiply_direct_gradients(rows.get(), row, patches.get() + i, ld, products + i, ld, pixels, p.out_c, begin > 0));
      }
    });
  }
}

// dw = the gradient of the kernels from x and du, + 2 w·scale[o, c] if a scale is given. w and dw have the same strides.
void weight_gradient(const Extents& extents, Pointer x, Pointer a, Pointer du, bool flip, const Strides& strides, Pointer w, Pointer scale, Pointer dw,
                     int dtype) {
  const DirectPlan p = plan_of(extents);
  present(kOp, p.batch * p.in_h * p.in_w * p.in_c, {x});
  present(kOp, p.pixels() * p.out_c, {du});
  present(kOp, p.depth() * p.out_c, {dw});
  present(kOp, scale != 0 ? p.depth() * p.out_c : 0, {w});
  const KernelStrides s = kernel_strides(kOp, strides, p.out_c, p.in_c, p.kernel_h * p.kernel_w);
  if (p.depth() * p.out_c == 0) return;
  with_float(dtype, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const std::int64_t ld = spread(padded(p.depth(), columns_of_panel<A>()));
    const Scratch<A> products(p.out_c * ld);
    const py::gil_scoped_release release;
    gradients_of_patches<A>(p, as<const A>(x), as<const A>(a), as<const A>(du), products.get(), ld);
    parallel_for(0, p.out_c, 1 + kPass / p.depth(), [&](std::int64_t first, std::int64_t last) {
      RWM_EACH_ISA(A, finish_direct_gradient(p, products.get(), ld, flip, as<const A>(w), as<const A>(scale), as<A>(dw), s, first, last));
    });
  });
}

}  // namespace

RWM_BIND(modulated_conv2d_direct) {
  m.def("modulated_conv2d_direct_weights_size", &weights_size);
  m.def("modulated_conv2d_direct_weights", &pack);
  m.def("modulated_conv2d_direct", &forward);
  m.def("modulated_conv2d_direct_input_gradient", &input_gradient);
  m.def("modulated_conv2d_direct_weight_gradient", &weight_gradient);
}
