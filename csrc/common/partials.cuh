// The second half of a sum over many blocks: partial sums, added in index order.
#pragma once

#include "common/cuda.cuh"

namespace rwm::cuda {

constexpr int kSliceColumns = 32;  // columns of a block: one warp reads them together
constexpr int kSlices = 16;        // rows that a block adds at the same time

// out[g, c] = Σ_r partials[g, r, c], for each group g of rows.
template <class A>
__global__ void __launch_bounds__(kSliceColumns* kSlices)
    sum_partials(const A* __restrict__ partials, A* __restrict__ out, std::int64_t rows,
                 std::int64_t columns, Divider blocks) {
  RWM_SHARED(A, sums, [kSlices][kSliceColumns]);
  const int lane = static_cast<int>(threadIdx.x) % kSliceColumns;
  const int slice = static_cast<int>(threadIdx.x) / kSliceColumns;
  const std::int64_t group = blocks(blockIdx.x);
  const std::int64_t column = (blockIdx.x - group * blocks.divisor) * kSliceColumns + lane;
  A sum = 0;
  if (column < columns) {
    const A* from = partials + group * rows * columns + column;
#pragma unroll 8
    for (std::int64_t r = slice; r < rows; r += kSlices) sum += from[r * columns];
  }
  sums[slice][lane] = sum;
  __syncthreads();
  if (slice != 0 || column >= columns) return;
#pragma unroll
  for (int i = 1; i < kSlices; ++i) sum += sums[i][lane];
  out[group * columns + column] = sum;
}

template <class A>
void launch_sum_partials(const Launcher& launch, const A* partials, A* out, std::int64_t groups,
                         std::int64_t rows, std::int64_t columns) {
  const std::int64_t blocks = ceil_div(columns, kSliceColumns);  // of one group
  launch(sum_partials<A>, dim3(static_cast<unsigned>(groups * blocks)), kSliceColumns * kSlices, 0,
         partials, out, rows, columns, Divider(blocks));
}

}  // namespace rwm::cuda
