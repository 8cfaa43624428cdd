// Compiled once per instruction set (common/each_isa.h).
//
// Y · plane · Xᵀ, some rows at a time: lines, which are weighted sums of input rows, and the
// output's rows, whose elements are weighted sums of elements of a line. What a vector of outputs
// reads of a line lies close together, so it is picked in registers out of one or two vectors of
// the line.

// Lines (+)= the sum of `Taps` input rows each, from tap `first` of output row o on; `zeros` is a
// row of them.
template <int Taps, class T, class A, class P>
RWM_INLINE void crop_sum_rows(const P& p, const T* plane, const T* zeros, std::int64_t first,
                              std::int64_t o, std::int64_t rows, A* line) {
  using V = Vec<A>;
  const std::int64_t* from = p.row_from + first * p.rows + o;
  const A* weight = p.row_weight + first * p.rows + o;
  const std::int64_t size = p.in, room = p.room, all = p.rows;
  for (std::int64_t r = 0; r < rows; ++r, ++from, ++weight, line += room) {
    const T* row[Taps];
    V w[Taps];
    for (int k = 0; k < Taps; ++k) {
      row[k] = from[k * all] < 0 ? zeros : plane + from[k * all];
      w[k] = V::set(weight[k * all]);
    }
    const auto step = [&](std::int64_t e, auto count) __attribute__((always_inline)) {
      V sum = w[0] * V::load(row[0] + e, count);
      for (int k = 1; k < Taps; ++k) sum = fma(w[k], V::load(row[k] + e, count), sum);
      if (first) sum = sum + V::load(static_cast<const A*>(line + e), count);
      sum.store(line + e, count);
    };
    std::int64_t e = 0;
    for (; e + V::width <= size; e += V::width) step(e, All{});
    if (e < size) step(e, size - e);
  }
}

template <class T, class A, class P>
void crop_fill_lines(const P& p, const T* plane, const T* zeros, std::int64_t o, std::int64_t rows,
                     A* lines) {
  for (std::int64_t k = 0; k < p.row_taps; k += 4) {
    switch (p.row_taps - k) {
      case 1: crop_sum_rows<1>(p, plane, zeros, k, o, rows, lines); break;
      case 2: crop_sum_rows<2>(p, plane, zeros, k, o, rows, lines); break;
      case 3: crop_sum_rows<3>(p, plane, zeros, k, o, rows, lines); break;
      default: crop_sum_rows<4>(p, plane, zeros, k, o, rows, lines);
    }
  }
}

// Elements e, e + 1, … of `rows` rows: `Taps` taps from `first` on, written or added.
template <int Taps, bool Add, class V, class U, class A, class P, class Pick, class Count>
RWM_INLINE void crop_sum_columns(const P& p, std::int64_t first, std::int64_t e, const A* line,
                                 std::int64_t rows, U* out, std::int64_t stride, const Pick& pick,
                                 Count count) {
  V w[Taps];
  for (int k = 0; k < Taps; ++k) w[k] = V::load(p.weight + (first + k) * p.padded + e);
  line += p.base[e / V::width] + first * p.step;
  const std::int64_t room = p.room, step = p.step;
  for (std::int64_t r = 0; r < rows; ++r, line += room, out += stride) {
    V sum = w[0] * pick(line);
    for (int k = 1; k < Taps; ++k) sum = fma(w[k], pick(line + k * step), sum);
    if constexpr (Add) sum = sum + V::load(static_cast<const U*>(out + e), count);
    sum.store(out + e, count);
  }
}

// All taps: two where the result is written, any number where it is added.
template <bool Add, class V, class U, class A, class P, class Pick, class Count>
RWM_INLINE void crop_all_columns(const P& p, std::int64_t e, const A* lines, std::int64_t rows,
                                 U* out, std::int64_t stride, const Pick& pick, Count count) {
  if constexpr (!Add)
    return crop_sum_columns<2, Add, V>(p, 0, e, lines, rows, out, stride, pick, count);
  for (std::int64_t k = 0; k < p.taps; k += 4) {
    switch (p.taps - k) {
      case 1: crop_sum_columns<1, Add, V>(p, k, e, lines, rows, out, stride, pick, count); break;
      case 2: crop_sum_columns<2, Add, V>(p, k, e, lines, rows, out, stride, pick, count); break;
      case 3: crop_sum_columns<3, Add, V>(p, k, e, lines, rows, out, stride, pick, count); break;
      default: crop_sum_columns<4, Add, V>(p, k, e, lines, rows, out, stride, pick, count);
    }
  }
}

template <bool Add, class V, class U, class A, class P, class Count>
RWM_INLINE void crop_vector(const P& p, std::int64_t e, const A* lines, std::int64_t rows, U* out,
                            std::int64_t stride, Count count) {
  const std::int64_t reach = p.reach[e / V::width];
  const std::int32_t* at = p.at + e;
  const auto index = V::index(at);
  if (reach < V::width) {
    const auto near = [&](const A* x)
                          __attribute__((always_inline)) { return V::pick_near(x, index); };
    crop_all_columns<Add, V>(p, e, lines, rows, out, stride, near, count);
  } else if (reach < 2 * V::width) {
    const auto far = [&](const A* x)
                         __attribute__((always_inline)) { return V::pick_far(x, index); };
    crop_all_columns<Add, V>(p, e, lines, rows, out, stride, far, count);
  } else {
    const auto any = [&](const A* x) __attribute__((always_inline)) {
      A picked[V::width];
      for (std::int64_t k = 0; k < V::width; ++k) picked[k] = x[at[k]];
      return V::load(static_cast<const A*>(picked));
    };
    crop_all_columns<Add, V>(p, e, lines, rows, out, stride, any, count);
  }
}

template <bool Add, class U, class A, class P>
void crop_columns(const P& p, const A* lines, std::int64_t rows, U* out, std::int64_t stride) {
  using V = Vec<A>;
  std::int64_t e = 0;
  for (; e + V::width <= p.out; e += V::width)
    crop_vector<Add, V>(p, e, lines, rows, out, stride, All{});
  if (e < p.out) crop_vector<Add, V>(p, e, lines, rows, out, stride, p.out - e);
}

// Rows first, first + 1, … of the output, `stride` elements apart; `lines` has room for as many.
template <bool Add, class T, class U, class A, class P>
void crop_rows(const P& p, const T* plane, const T* zeros, A* lines, std::int64_t first,
               std::int64_t rows, U* out, std::int64_t stride) {
  crop_fill_lines(p, plane, zeros, first, rows, lines + p.before);
  crop_columns<Add>(p, static_cast<const A*>(lines), rows, out, stride);
}

template <class A>
void crop_lanes(std::int64_t& lanes) {
  lanes = Vec<A>::width;
}

template <class A, class U>
void crop_convert(const A* from, U* to, std::int64_t size) {
  using V = Vec<A>;
  std::int64_t i = 0;
  for (; i + V::width <= size; i += V::width) V::load(from + i).store(to + i);
  if (i < size) V::load(from + i, size - i).store(to + i, size - i);
}
