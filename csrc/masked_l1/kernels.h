// Compiled once per instruction set (common/each_isa.h). Each function works on a run of elements
// with one mask value each; T and M are the storage types of the images and of the mask.

using rwm::masked_l1::load_codes;
using rwm::masked_l1::store_codes;

using rwm::masked_l1::store_four_codes;

template <class V>
struct MaskedL1Term {
  V value, inside, outside;
};

template <class V, class T, class M, class Count>
RWM_INLINE MaskedL1Term<V> masked_l1_term(const T* h, const T* g, const T* a, const M* m,
                                          Count count) {
  const V vh = V::load(h, count), vm = V::load(m, count);
  const V inside = vh - V::load(g, count), outside = vh - V::load(a, count);
  const V value = fma(abs(vm), abs(inside), abs(V::set(1) - vm) * abs(outside));
  return {value, inside, outside};
}

// Σ |m||h − g| + |1 − m||h − a|, and the signs' codes unless the pointer is null.
template <class A, class T, class M>
A masked_l1_sum(const T* h, const T* g, const T* a, const M* m, std::uint8_t* codes,
                std::int64_t size) {
  using V = Vec<A>;
  constexpr std::int64_t kWidth = V::width;
  // Four sums, so that an addition need not wait for the last one.
  V s[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  std::int64_t i = 0;
  for (; i + 4 * kWidth <= size; i += 4 * kWidth) {
    V inside[4], outside[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) {
      const std::int64_t at = i + k * kWidth;
      const auto t = masked_l1_term<V>(h + at, g + at, a + at, m + at, All{});
      s[k] = s[k] + t.value;
      inside[k] = t.inside;
      outside[k] = t.outside;
    }
    if (codes != nullptr) store_four_codes(codes + i, inside, outside);
  }
  for (; i < size; i += kWidth) {
    const std::int64_t count = size - i < kWidth ? size - i : kWidth;
    const auto t = masked_l1_term<V>(h + i, g + i, a + i, m + i, count);
    s[0] = s[0] + t.value;
    if (codes != nullptr) store_codes(codes + i, t.inside, t.outside, count);
  }
  return sum((s[0] + s[1]) + (s[2] + s[3]));
}

// out = inside·|m|·s₁ + outside·|1 − m|·s₂, s from the codes.
template <class A, class T, class M>
void masked_l1_gradient(const std::uint8_t* codes, const M* m, T* out, std::int64_t size, A inside,
                        A outside) {
  using V = Vec<A>;
  const V p = V::set(inside), q = V::set(outside), one = V::set(1);
  const auto step = [&](std::int64_t i, auto count) __attribute__((always_inline)) {
    V s = one, t = one;
    load_codes(codes + i, s, t, count);
    const V vm = V::load(m + i, count);
    fma(p * abs(vm), s, q * abs(one - vm) * t).store(out + i, count);
  };
  std::int64_t i = 0;
  for (; i + V::width <= size; i += V::width) step(i, All{});
  if (i < size) step(i, size - i);
}

// sums = sign(m)|h − g| − sign(1 − m)|h − a|, plus what they were if `add`.
template <class A, class T, class M>
void masked_l1_mask_terms(const T* h, const T* g, const T* a, const M* m, A* sums,
                          std::int64_t size, bool add) {
  using V = Vec<A>;
  const V one = V::set(1), minus_one = V::set(-1), zero = V::zero();
  const auto signed_by = [&](V v, V x) __attribute__((always_inline)) {
    return x * where_positive(v, one, where_positive(zero - v, minus_one, zero));
  };
  const auto step = [&](std::int64_t i, auto count) __attribute__((always_inline)) {
    const V vh = V::load(h + i, count), vm = V::load(m + i, count);
    const V inside = signed_by(vm, abs(vh - V::load(g + i, count)));
    const V outside = signed_by(one - vm, abs(vh - V::load(a + i, count)));
    const V before = add ? V::load(sums + i, count) : zero;
    (before + (inside - outside)).store(sums + i, count);
  };
  std::int64_t i = 0;
  for (; i + V::width <= size; i += V::width) step(i, All{});
  if (i < size) step(i, size - i);
}

// y = scale·x
template <class A, class M>
void masked_l1_scale(const A* x, M* y, std::int64_t size, A scale) {
  using V = Vec<A>;
  const V s = V::set(scale);
  std::int64_t i = 0;
  for (; i + V::width <= size; i += V::width) (s * V::load(x + i)).store(y + i);
  if (i < size) (s * V::load(x + i, size - i)).store(y + i, size - i);
}
