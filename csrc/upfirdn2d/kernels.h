// Compiled once per instruction set (common/each_isa.h).
//
// out[i] = sum over t < count of taps[t·tap_step] · x[t·stride + i], i < size. The loads do not
// pass element size - 1 of the last line.

template <int Taps, class V, class T, class U, class A>
RWM_INLINE void fir_sum_fixed(const T* x, std::int64_t stride, const A* taps, std::int64_t tap_step,
                              U* out, std::int64_t size) {
  V k[Taps];
  for (int t = 0; t < Taps; ++t) k[t] = V::set(taps[t * tap_step]);
  const auto step = [&](std::int64_t i, auto count) __attribute__((always_inline)) {
    V y = k[0] * V::load(x + i, count);
    for (int t = 1; t < Taps; ++t) y = fma(k[t], V::load(x + t * stride + i, count), y);
    y.store(out + i, count);
  };
  std::int64_t i = 0;
  for (; i + V::width <= size; i += V::width) step(i, All{});
  if (i < size) step(i, size - i);
}

template <class T, class U, class A>
void fir_sum(const T* x, std::int64_t stride, std::int64_t count, const A* taps,
             std::int64_t tap_step, U* out, std::int64_t size) {
  using V = Vec<A>;
  switch (count) {  // the lengths in use: binomial filters of up to four taps
    case 1: return fir_sum_fixed<1, V>(x, stride, taps, tap_step, out, size);
    case 2: return fir_sum_fixed<2, V>(x, stride, taps, tap_step, out, size);
    case 3: return fir_sum_fixed<3, V>(x, stride, taps, tap_step, out, size);
    case 4: return fir_sum_fixed<4, V>(x, stride, taps, tap_step, out, size);
    default: break;
  }
  const auto step = [&](std::int64_t i, auto some) __attribute__((always_inline)) {
    V y = V::zero();
    for (std::int64_t t = 0; t < count; ++t)
      y = fma(V::set(taps[t * tap_step]), V::load(x + t * stride + i, some), y);
    y.store(out + i, some);
  };
  std::int64_t i = 0;
  for (; i + V::width <= size; i += V::width) step(i, All{});
  if (i < size) step(i, size - i);
}

// One output row, channels innermost, separable: `line` [W, C] takes the sum over rows, then each
// pixel the sum over columns.
template <class T, class A, class Ax>
void fir_row_channels_last(const T* x, T* out, A* line, std::int64_t o, const Ax& ya, const Ax& xa,
                           const A* ky, const A* kx, std::int64_t channels) {
  const std::int64_t width = xa.in * channels;
  fir_sum(x + ya.begin[o] * width, width, ya.count[o], ky + ya.first[o], ya.up, line, width);
  for (std::int64_t p = 0; p < xa.out; ++p)
    fir_sum(line + xa.begin[p] * channels, channels, xa.count[p], kx + xa.first[p], xa.up,
            out + p * channels, channels);
}

// The same for a filter [taps y, taps x] that is no outer product.
template <class T, class A, class Ax>
void fir_row_channels_last_2d(const T* x, T* out, std::int64_t o, const Ax& ya, const Ax& xa,
                              const A* kernel, std::int64_t channels) {
  using V = Vec<A>;
  const std::int64_t width = xa.in * channels;
  for (std::int64_t p = 0; p < xa.out; ++p) {
    const T* corner = x + ya.begin[o] * width + xa.begin[p] * channels;
    const A* k = kernel + ya.first[o] * xa.taps + xa.first[p];
    const auto step = [&](std::int64_t c, auto some) __attribute__((always_inline)) {
      V y = V::zero();
      for (std::int64_t i = 0; i < ya.count[o]; ++i)
        for (std::int64_t j = 0; j < xa.count[p]; ++j)
          y = fma(V::set(k[i * ya.up * xa.taps + j * xa.up]),
                  V::load(corner + i * width + j * channels + c, some), y);
      y.store(out + p * channels + c, some);
    };
    std::int64_t c = 0;
    for (; c + V::width <= channels; c += V::width) step(c, All{});
    if (c < channels) step(c, channels - c);
  }
}

// One output row of a plane. `line` [W] lies between zeros wide enough for every tap; `phase` and
// `result` are as long as the output. Outputs of one remainder modulo `up` share their taps, so
// they form a plain correlation with a stride.
template <class T, class A, class Ax>
void fir_columns(const A* line, A* phase, A* result, T* out, const Ax& xa, const A* kx) {
  using V = Vec<A>;
  for (std::int64_t r = 0; r < xa.up && r < xa.out; ++r) {
    const std::int64_t at = r * xa.down - xa.pad,
                       first =
                           ((-at) % xa.up + xa.up) % xa.up;  // the first tap that meets a sample
    const std::int64_t outputs = (xa.out - r + xa.up - 1) / xa.up,
                       taps = (xa.taps - first + xa.up - 1) / xa.up;
    const A* from = line + (at + first) / xa.up;
    A* to = xa.up == 1 ? result : phase;
    if (xa.down == 1) {
      fir_sum(from, 1, taps, kx + first, xa.up, to, outputs);
    } else {
      for (std::int64_t i = 0; i < outputs; ++i) to[i] = A(0);
      for (std::int64_t t = 0; t < taps; ++t)
        for (std::int64_t i = 0; i < outputs; ++i)
          to[i] += kx[first + t * xa.up] * from[t + i * xa.down];
    }
    if (xa.up > 1)
      for (std::int64_t i = 0; i < outputs; ++i) result[r + i * xa.up] = phase[i];
  }
  std::int64_t i = 0;
  for (; i + V::width <= xa.out; i += V::width) V::load(result + i).store(out + i);
  if (i < xa.out) V::load(result + i, xa.out - i).store(out + i, xa.out - i);
}

template <class T, class A, class Ax>
void fir_row_plane(const T* x, T* out, A* padded, std::int64_t margin, A* scratch, std::int64_t o,
                   const Ax& ya, const Ax& xa, const A* ky, const A* kx) {
  fir_sum(x + ya.begin[o] * xa.in, xa.in, ya.count[o], ky + ya.first[o], ya.up, padded + margin,
          xa.in);
  fir_columns(padded + margin, scratch, scratch + xa.out, out, xa, kx);
}

// The same for a filter that is no outer product: row by row of the filter, added up in `total`.
template <class T, class A, class Ax>
void fir_row_plane_2d(const T* x, T* out, A* padded, std::int64_t margin, A* scratch,
                      std::int64_t o, const Ax& ya, const Ax& xa, const A* kernel) {
  using V = Vec<A>;
  const A one = 1;
  A *total = scratch + 2 * xa.out, *row = total + xa.out;
  for (std::int64_t i = 0; i < xa.out; ++i) total[i] = A(0);
  for (std::int64_t t = 0; t < ya.count[o]; ++t) {
    fir_sum(x + (ya.begin[o] + t) * xa.in, xa.in, 1, &one, 1, padded + margin, xa.in);
    fir_columns(padded + margin, scratch, scratch + xa.out, row, xa,
                kernel + (ya.first[o] + t * ya.up) * xa.taps);
    for (std::int64_t i = 0; i < xa.out; ++i) total[i] += row[i];
  }
  std::int64_t i = 0;
  for (; i + V::width <= xa.out; i += V::width) V::load(total + i).store(out + i);
  if (i < xa.out) V::load(total + i, xa.out - i).store(out + i, xa.out - i);
}
