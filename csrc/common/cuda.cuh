// What every CUDA source uses: types, 16-byte accesses, sums over a warp and a block, launches.
//
// The same files compile without nvcc, against testing/cuda_on_cpu.h: a kernel may use what that
// header knows. Kernels are given to a Launcher, shared memory is declared with RWM_SHARED.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "common/dtype.h"
#include "common/hd.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define RWM_SHARED(type, name, extents) __shared__ type name extents
#define RWM_DYNAMIC_SHARED(type, name) \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  type* name = reinterpret_cast<type*>(name##_bytes)
#else
#include "testing/cuda_on_cpu.h"
#endif

namespace rwm::cuda {

// ---- types

#if defined(__CUDACC__)
using half_t = __half;
using bfloat_t = __nv_bfloat16;
#else
using half_t = f16;
using bfloat_t = bf16;
#endif

// dispatch(dtype, "masked_l1", [&](auto tag) { using T = typename decltype(tag)::type; ... });
template <class F>
void dispatch(int dtype, const char* op, const F& f) {
  switch (static_cast<DType>(dtype)) {
    case DType::f32: return f(TypeTag<float>{});
    case DType::bf16: return f(TypeTag<bfloat_t>{});
    case DType::f16: return f(TypeTag<half_t>{});
    case DType::f64: return f(TypeTag<double>{});
  }
  check(false, op, ": unknown dtype code ", dtype);
}

// A second tensor beside images of type T: it has T, or float32 where T has 16 bits.
template <class T, class F>
void dispatch_beside([[maybe_unused]] int dtype, const F& f) {
  if constexpr (sizeof(T) == 2) {
    if (static_cast<DType>(dtype) == DType::f32) return f(TypeTag<float>{});
  }
  f(TypeTag<T>{});
}

// ---- memory

constexpr int kWarp = 32;
constexpr int kAccessBytes = 16;  // the widest access of one thread

// How many values of T one 16-byte access moves.
template <class T>
constexpr int kWidth = kAccessBytes / static_cast<int>(sizeof(T));

template <int BYTES>
struct Raw;
template <>
struct Raw<1> {
  using type = std::uint8_t;
};
template <>
struct Raw<2> {
  using type = std::uint16_t;
};
template <>
struct Raw<4> {
  using type = unsigned;
};
template <>
struct Raw<8> {
  using type = uint2;
};
template <>
struct Raw<16> {
  using type = uint4;
};

// N consecutive values in accesses of up to 16 bytes; p is a multiple of the access.
template <int N, class T>
__device__ __forceinline__ void load_raw(const T* __restrict__ p, T (&values)[N]) {
  constexpr int kBytes = N * sizeof(T) < kAccessBytes ? N * sizeof(T) : kAccessBytes;
  using Access = typename Raw<kBytes>::type;
#pragma unroll
  for (int i = 0; i < static_cast<int>(N * sizeof(T)) / kBytes; ++i) {
    const Access access = reinterpret_cast<const Access*>(p)[i];
    memcpy(&values[i * kBytes / sizeof(T)], &access, kBytes);
  }
}

// The same, widened to the accumulation type.
template <int N, class T, class A>
__device__ __forceinline__ void load(const T* __restrict__ p, A (&values)[N]) {
  T raw[N];
  load_raw<N>(p, raw);
#pragma unroll
  for (int i = 0; i < N; ++i) values[i] = static_cast<A>(raw[i]);
}

// One access to global memory. nvcc splits an assignment of 16 bytes whose parts it keeps in
// registers of their own into four of 4 bytes; an instruction stays one.
template <class Access>
__device__ __forceinline__ void store_access(Access* p, const Access& v) {
#if defined(__CUDACC__)
  if constexpr (sizeof(Access) == 16) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
    return;
  }
#endif
  *p = v;
}

// N consecutive values to global memory, narrowed, in accesses like those of load_raw.
template <int N, class T, class A>
__device__ __forceinline__ void store(T* __restrict__ p, const A (&values)[N]) {
  constexpr int kBytes = N * sizeof(T) < kAccessBytes ? N * sizeof(T) : kAccessBytes;
  using Access = typename Raw<kBytes>::type;
  T raw[N];
#pragma unroll
  for (int i = 0; i < N; ++i) raw[i] = static_cast<T>(values[i]);
#pragma unroll
  for (int i = 0; i < static_cast<int>(N * sizeof(T)) / kBytes; ++i) {
    Access access;
    memcpy(&access, &raw[i * kBytes / sizeof(T)], kBytes);
    store_access(reinterpret_cast<Access*>(p) + i, access);
  }
}

// Whether all addresses allow 16-byte accesses; an absent tensor (0) does.
template <class... Pointers>
bool aligned(Pointers... pointers) {
  return ((static_cast<Pointer>(pointers) % kAccessBytes == 0) && ...);
}

// Division by a number known before the launch: a multiplication and a shift. A 64-bit division
// proper is a subroutine call, around which ptxas spills registers. Exact for 0 <= n < 2^62: with m
// = ⌈2^(63 + s) / d⌉ and 2^s >= d, ⌊n·m / 2^(63 + s)⌋ = ⌊n / d⌋ (Granlund and Montgomery, 1994).
struct Divider {
  std::int64_t divisor;
  std::uint64_t magic;
  int shift;

  explicit Divider(std::int64_t d) : divisor(d), shift(0) {
    while ((std::int64_t{1} << shift) < d) ++shift;
    const auto power = static_cast<unsigned __int128>(1) << (63 + shift);
    magic = static_cast<std::uint64_t>((power + static_cast<std::uint64_t>(d) - 1) /
                                       static_cast<std::uint64_t>(d));
  }
  __device__ __forceinline__ std::int64_t operator()(std::int64_t n) const {
    return static_cast<std::int64_t>(__umul64hi(static_cast<std::uint64_t>(n) << 1, magic) >>
                                     shift);
  }
};

// ---- sums: in one order, whatever the GPU

template <class A>
__device__ __forceinline__ A warp_sum(A value) {
#pragma unroll
  for (int with = kWarp / 2; with > 0; with /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFu, value, with);
  }
  return value;
}

// The sum over a block of THREADS, in every thread of warp 0. May be called again at once.
template <int THREADS, class A>
__device__ __forceinline__ A block_sum(A value) {
  static_assert(THREADS % kWarp == 0 && THREADS <= kWarp * kWarp);
  RWM_SHARED(A, sums, [kWarp]);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  value = warp_sum(value);
  if (lane == 0) sums[warp] = value;
  __syncthreads();
  if (warp == 0) value = warp_sum(lane < THREADS / kWarp ? sums[lane] : A(0));
  __syncthreads();
  return value;
}

// ---- launches

inline std::int64_t ceil_div(std::int64_t size, std::int64_t by) { return (size + by - 1) / by; }

// Blocks for `work` items at `per_block` each; beyond `most`, kernels walk on by the grid's size.
// The number depends on the work alone, so that sums come out the same on every GPU.
inline unsigned blocks_for(std::int64_t work, std::int64_t per_block, std::int64_t most) {
  const std::int64_t blocks = ceil_div(work, per_block);
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

constexpr std::int64_t kMaxGridY = 65535;

#if defined(__CUDACC__)

// Launches kernels on one stream of one device, and leaves the thread's current device as it was.
class Launcher {
 public:
  Launcher(const char* op, int device, Pointer stream)
      : op_(op), stream_(reinterpret_cast<cudaStream_t>(stream)) {
    expect(cudaGetDevice(&before_));
    if (before_ != device) expect(cudaSetDevice(device));
    switched_ = before_ != device;
  }
  ~Launcher() {
    if (switched_) cudaSetDevice(before_);
  }
  Launcher(const Launcher&) = delete;
  Launcher& operator=(const Launcher&) = delete;

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, unsigned threads, std::size_t shared,
                  Arguments... arguments) const {
    kernel<<<grid, threads, shared, stream_>>>(static_cast<Parameters>(arguments)...);
    expect(cudaGetLastError());
  }

 private:
  void expect(cudaError_t status) const {
    if (status == cudaSuccess) return;
    throw std::runtime_error(std::string(op_) + ": CUDA says: " + cudaGetErrorString(status));
  }

  const char* op_;
  cudaStream_t stream_;
  int before_ = 0;
  bool switched_ = false;
};

#else

class Launcher {
 public:
  Launcher(const char*, int, Pointer) {}

  template <class... Parameters, class... Arguments>
  void operator()(void (*kernel)(Parameters...), dim3 grid, unsigned threads, std::size_t shared,
                  Arguments... arguments) const {
    on_cpu::machine().launch(grid, dim3(threads), shared,
                             [&] { kernel(static_cast<Parameters>(arguments)...); });
  }
};

#endif

}  // namespace rwm::cuda
