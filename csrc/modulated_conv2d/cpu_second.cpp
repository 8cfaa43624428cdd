// modulated_conv2d on the CPU: the passes of a layer's second derivative that its convolutions do
// not do themselves, for one style an image (second.py has the formulas).
#include <algorithm>
#include <vector>

#include "modulated_conv2d/cpu.h"

namespace rwm {

// Images are [N, P, C], scales [N, C].
template <class A>
struct Combination {
  const A *p, *x, *a, *t;
  A *e, *z;
};

template <class A>
struct Twice {
  const A *dy, *y, *u, *f, *h;
  A *d_dy, *du, *hdv;
};

template <class A>
struct Unscaling {
  const A *g, *p, *ratio;
  A* dx;
};

}  // namespace rwm

#define RWM_KERNELS "modulated_conv2d/second_kernels.h"
#include "common/each_isa.h"

namespace {
using namespace rwm;

// f(sums of one chunk, n, first, last); the sums of an image's chunks, `row` numbers each, are
// added to `total` [N, row] in their order.
template <class A, class F>
void sum_chunks(const Images& s, std::int64_t row, Pointer total, const F& f) {
  const std::int64_t chunks = chunks_of(s);
  std::vector<A> sums(static_cast<std::size_t>(s.batch * chunks * row), A(0));
  each_chunk(s, [&](std::int64_t i, std::int64_t n, std::int64_t first, std::int64_t last) {
    f(sums.data() + i * row, n, first, last);
  });
  A* to = as<A>(total);
  std::fill(to, to + s.batch * row, A(0));
  for (std::int64_t i = 0; i < s.batch * chunks; ++i) {
    RWM_EACH_ISA(A, add_rows(to + i / chunks * row, sums.data() + i * row, 1, row));
  }
}

// e = a·p + t·x and z = a·x; p or z may be 0.
void combine(const Images& s, Pointer p, Pointer x, Pointer a, Pointer t, Pointer e, Pointer z) {
  present(kOp, s.numbers(), {x, e});
  present(kOp, s.batch * s.channels, {a, t});
  with_float_images(s, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const Combination<A> all{as<const A>(p), as<const A>(x), as<const A>(a),
                             as<const A>(t), as<A>(e),       as<A>(z)};
    each_chunk(s, [&](std::int64_t, std::int64_t n, std::int64_t first, std::int64_t last) {
      RWM_EACH_ISA(A, combine_pixels(all, n, first, last, s.pixels, s.channels));
    });
  });
}

// With f the image of a cotangent: d_dy = m·(b·f + h·u), du = b·dv and behind it h·dv, and
// sums[n, 0, o] = sum dv·f, sums[n, 1, o] = sum dv·u. u may be 0: it is read back from y. h may be
// 0, then du has only its first half; d_dy may be 0.
void twice(const Images& s, Pointer dy, Pointer y, Pointer u, Pointer f, Pointer h, Pointer d_dy,
           Pointer du, Pointer sums, const records::Epilogue& given) {
  present(kOp, s.numbers(), {dy, y, f, du});
  present(kOp, s.batch * s.channels, {sums});
  given.blend.check_sizes(s.batch, s.pixels, s.channels);
  check(given.blend.regions == 0, kOp, ": one style an image expected");
  with_float_images(s, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const Epilogue<A, A> e(given, s.pixels);
    const Twice<A> all{as<const A>(dy), as<const A>(y), as<const A>(u), as<const A>(f),
                       as<const A>(h),  as<A>(d_dy),    as<A>(du),      as<A>(du) + s.numbers()};
    sum_chunks<A>(s, 2 * s.channels, sums,
                  [&](A* to, std::int64_t n, std::int64_t first, std::int64_t last) {
                    RWM_EACH_ISA(A, twice_pixels(all, to, e, n, first, last, s.pixels, s.channels));
                  });
  });
}

// Of g = a·dz: dx += ratio·g, ratio t/a, and sums[n, c] = sum p·g. p or dx may be 0.
void unscale(const Images& s, Pointer g, Pointer p, Pointer ratio, Pointer dx, Pointer sums) {
  present(kOp, s.numbers(), {g});
  present(kOp, s.batch * s.channels, {ratio, sums});
  with_float_images(s, [&](auto tag) {
    using A = typename decltype(tag)::type;
    const Unscaling<A> all{as<const A>(g), as<const A>(p), as<const A>(ratio), as<A>(dx)};
    sum_chunks<A>(s, s.channels, sums,
                  [&](A* to, std::int64_t n, std::int64_t first, std::int64_t last) {
                    RWM_EACH_ISA(A, unscale_pixels(all, to, n, first, last, s.pixels, s.channels));
                  });
  });
}

}  // namespace

RWM_BIND(modulated_conv2d_second) {
  m.def("modulated_conv2d_combine", &combine);
  m.def("modulated_conv2d_twice", &twice);
  m.def("modulated_conv2d_unscale", &unscale);
}
