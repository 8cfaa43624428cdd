// Compiled once per instruction set (common/each_isa.h).
//
// Two layouts: rows [R, C] with the channel innermost (channels_last, or
// two dimensions) and planes [N, C, S].

#include "bias_act/activation.h"

// One run of elements that share a bias (planes), or that have one each (rows).
template <class V, class T, class A, class Count>
RWM_INLINE void bias_act_step(const T* x, const A* bias, A shared, T* y, const ActivationOf<V>& act,
                              Count count) {
  const V b = bias != nullptr ? V::load(bias, count) : V::set(shared);
  act.forward(V::load(x, count) + b).store(y, count);
}

template <class T, class A, class S>
void bias_act_run(const T* x, const A* bias, A shared, T* y, std::int64_t size, const S& settings) {
  using V = Vec<A>;
  const ActivationOf<V> act(settings);
  std::int64_t i = 0;
  for (; i + V::width <= size; i += V::width)
    bias_act_step<V>(x + i, bias != nullptr ? bias + i : nullptr, shared, y + i, act, All{});
  if (i < size)
    bias_act_step<V>(x + i, bias != nullptr ? bias + i : nullptr, shared, y + i, act, size - i);
}

template <class T, class A, class S>
void bias_act_rows(const T* x, const A* bias, T* y, std::int64_t rows, std::int64_t channels,
                   const S& settings) {
  for (std::int64_t r = 0; r < rows; ++r)
    bias_act_run(x + r * channels, bias, A(0), y + r * channels, channels, settings);
}

// Rows [0, rows), at most four: dx of each, and the sum of their dt added to `total`. dx or total
// may be null.
template <class V, class T, class A, class Count>
RWM_INLINE void bias_act_backward_step(const T* dy, const T* y, T* dx, A* total, std::int64_t rows,
                                       std::int64_t stride, const ActivationOf<V>& act,
                                       Count count) {
  V sum_dt = V::zero();
  for (std::int64_t r = 0; r < rows; ++r) {
    const V g = V::load(dy + r * stride, count);
    const V dt = y != nullptr ? act.backward(g, V::load(y + r * stride, count)) : g * act.gain;
    if (dx != nullptr) dt.store(dx + r * stride, count);
    sum_dt = sum_dt + dt;
  }
  if (total != nullptr) (V::load(total, count) + sum_dt).store(total, count);
}

template <class T, class A, class S>
void bias_act_backward_rows(const T* dy, const T* y, T* dx, A* total, std::int64_t rows,
                            std::int64_t channels, const S& settings) {
  using V = Vec<A>;
  const ActivationOf<V> act(settings);
  // Four rows at a time: four streams suit the prefetchers, and `total` is touched a quarter as
  // often.
  for (std::int64_t r = 0; r < rows; r += 4) {
    const std::int64_t some = rows - r < 4 ? rows - r : 4, at = r * channels;
    const auto step = [&](std::int64_t c, auto count) __attribute__((always_inline)) {
      bias_act_backward_step<V>(dy + at + c, y != nullptr ? y + at + c : nullptr,
                                dx != nullptr ? dx + at + c : nullptr,
                                total != nullptr ? total + c : nullptr, some, channels, act, count);
    };
    std::int64_t c = 0;
    for (; c + V::width <= channels; c += V::width) step(c, All{});
    if (c < channels) step(c, channels - c);
  }
}

// One plane: dx, and the sum of dt.
template <class T, class A, class S>
void bias_act_backward_plane(const T* dy, const T* y, T* dx, A* total, std::int64_t size,
                             const S& settings) {
  using V = Vec<A>;
  const ActivationOf<V> act(settings);
  A sum_dt = 0;
  // A run of 64 vectors is summed lane by lane, and then as a whole: the error grows with the
  // number of runs, not of elements.
  const std::int64_t run = 64 * V::width;
  for (std::int64_t first = 0; first < size; first += run) {
    const std::int64_t end = size - first < run ? size : first + run;
    V lanes = V::zero();
    const auto step = [&](std::int64_t i, auto count) __attribute__((always_inline)) {
      const V g = V::load(dy + i, count);
      const V dt = y != nullptr ? act.backward(g, V::load(y + i, count)) : g * act.gain;
      if (dx != nullptr) dt.store(dx + i, count);
      lanes = lanes + dt;
    };
    std::int64_t i = first;
    for (; i + V::width <= end; i += V::width) step(i, All{});
    if (i < end) step(i, end - i);
    sum_dt += sum(lanes);
  }
  *total = sum_dt;
}
