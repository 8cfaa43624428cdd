// A thin vector layer: float and double vectors with one interface for baseline, AVX2 and AVX-512.
//
// Kernels are templates over Vec<A>, A = float or double, in a file that each_isa.h compiles once
// per instruction set. Storage may be float, double, bf16 or f16; arithmetic is always in A. A
// count instead of All{} handles the last channels: elements past it are neither read nor written,
// and read as zero.
#pragma once

#include <cstdint>

#include "common/dtype.h"
#include "common/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace rwm {

struct All {};  // a whole vector

// What the compiler makes of 16 bytes: every CPU, and double at every instruction set (correctness,
// not speed).
template <class A>
struct Plain {
  typedef A Raw __attribute__((vector_size(16)));
  using Lane = A;
  static constexpr std::int64_t width = 16 / sizeof(A);
  Raw v;

  static RWM_INLINE Plain set(A a) { return {a - Raw{}}; }
  static RWM_INLINE Plain zero() { return {Raw{}}; }
  template <class T>
  static RWM_INLINE Plain load(const T* p, std::int64_t count) {
    Plain r = zero();
    for (std::int64_t i = 0; i < count; ++i) r.v[i] = static_cast<A>(p[i]);
    return r;
  }
  template <class T>
  static RWM_INLINE Plain load(const T* p, All = {}) {
    Plain r;
    for (std::int64_t i = 0; i < width; ++i) r.v[i] = static_cast<A>(p[i]);
    return r;
  }
  template <class T>
  RWM_INLINE void store(T* p, std::int64_t count) const {
    for (std::int64_t i = 0; i < count; ++i) p[i] = static_cast<T>(v[i]);
  }
  template <class T>
  RWM_INLINE void store(T* p, All = {}) const {
    for (std::int64_t i = 0; i < width; ++i) p[i] = static_cast<T>(v[i]);
  }

  // Element at[i] of p, below width (pick_near) or twice that (pick_far).
  struct Index {
    const std::int32_t* at;
  };
  static RWM_INLINE Index index(const std::int32_t* at) { return {at}; }
  static RWM_INLINE Plain pick_far(const A* p, Index i) {
    Plain r;
    for (std::int64_t k = 0; k < width; ++k) r.v[k] = p[i.at[k]];
    return r;
  }
  static RWM_INLINE Plain pick_near(const A* p, Index i) { return pick_far(p, i); }

  friend RWM_INLINE Plain operator+(Plain a, Plain b) { return {a.v + b.v}; }
  friend RWM_INLINE Plain operator-(Plain a, Plain b) { return {a.v - b.v}; }
  friend RWM_INLINE Plain operator*(Plain a, Plain b) { return {a.v * b.v}; }
  friend RWM_INLINE Plain operator/(Plain a, Plain b) { return {a.v / b.v}; }
  friend RWM_INLINE Plain fma(Plain a, Plain b, Plain c) { return {a.v * b.v + c.v}; }
  // The second operand where either is NaN, as the x86 instructions do.
  friend RWM_INLINE Plain max(Plain a, Plain b) { return {a.v > b.v ? a.v : b.v}; }
  friend RWM_INLINE Plain min(Plain a, Plain b) { return {a.v < b.v ? a.v : b.v}; }
  friend RWM_INLINE Plain where_positive(Plain x, Plain a, Plain b) {
    return {x.v > Raw{} ? a.v : b.v};
  }
  friend RWM_INLINE Plain where_at_most(Plain x, Plain limit, Plain a, Plain b) {
    return {x.v <= limit.v ? a.v : b.v};
  }
  friend RWM_INLINE Plain abs(Plain x) { return {x.v < Raw{} ? -x.v : x.v}; }
  friend RWM_INLINE A sum(Plain x) {
    A total = 0;
    for (std::int64_t i = 0; i < width; ++i) total += x.v[i];
    return total;
  }
};

namespace baseline {
template <class A>
struct VecOf {
  using type = Plain<A>;
};
}  // namespace baseline

}  // namespace rwm

#if defined(__x86_64__)

RWM_BEGIN_AVX2
namespace rwm::avx2 {

struct F32 {
  using Lane = float;
  static constexpr std::int64_t width = 8;
  __m256 v;

  static RWM_INLINE F32 set(float a) { return {_mm256_set1_ps(a)}; }
  static RWM_INLINE F32 zero() { return {_mm256_setzero_ps()}; }

  static RWM_INLINE F32 widen(__m128i raw, const bf16*) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16))};
  }
  static RWM_INLINE F32 widen(__m128i raw, const f16*) { return {_mm256_cvtph_ps(raw)}; }
  RWM_INLINE __m128i narrow(bf16*) const {
    const __m256i u = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(
        _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7FFF)), odd), 16);
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7FC0), nan);
    return _mm256_castsi256_si128(_mm256_permute4x64_epi64(_mm256_packus_epi32(r, r), 0x08));
  }
  RWM_INLINE __m128i narrow(f16*) const { return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }

  static RWM_INLINE __m256i mask(std::int64_t count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static RWM_INLINE F32 load(const float* p, All = {}) { return {_mm256_loadu_ps(p)}; }
  static RWM_INLINE F32 load(const float* p, std::int64_t count) {
    return {_mm256_maskload_ps(p, mask(count))};
  }
  template <class T>
  static RWM_INLINE F32 load(const T* p, All = {}) {
    return widen(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), p);
  }
  template <class T>
  static RWM_INLINE F32 load(const T* p, std::int64_t count) {
    alignas(16) std::uint16_t raw[8] = {};
    for (std::int64_t i = 0; i < count; ++i) raw[i] = p[i].bits;
    return widen(_mm_load_si128(reinterpret_cast<const __m128i*>(raw)), p);
  }
  RWM_INLINE void store(float* p, All = {}) const { _mm256_storeu_ps(p, v); }
  RWM_INLINE void store(float* p, std::int64_t count) const {
    _mm256_maskstore_ps(p, mask(count), v);
  }
  template <class T>
  RWM_INLINE void store(T* p, All = {}) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow(p));
  }
  template <class T>
  RWM_INLINE void store(T* p, std::int64_t count) const {
    alignas(16) std::uint16_t raw[8];
    _mm_store_si128(reinterpret_cast<__m128i*>(raw), narrow(p));
    for (std::int64_t i = 0; i < count; ++i) p[i].bits = raw[i];
  }

  using Index = __m256i;
  static RWM_INLINE Index index(const std::int32_t* at) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  }
  static RWM_INLINE F32 pick_near(const float* p, Index i) {
    return {_mm256_permutevar8x32_ps(_mm256_loadu_ps(p), i)};
  }
  static RWM_INLINE F32
  pick_far(const float* p, Index i) {  // a permutation reads three bits, a blend the uppermost
    const __m256 second = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28));
    return {_mm256_blendv_ps(pick_near(p, i).v, pick_near(p + 8, i).v, second)};
  }

  friend RWM_INLINE F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend RWM_INLINE F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend RWM_INLINE F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
  friend RWM_INLINE F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.v, b.v)}; }
  friend RWM_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  friend RWM_INLINE F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.v, b.v)}; }
  friend RWM_INLINE F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.v, b.v)}; }
  friend RWM_INLINE F32 where_positive(F32 x, F32 a, F32 b) {
    return {_mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_GT_OQ))};
  }
  friend RWM_INLINE F32 where_at_most(F32 x, F32 limit, F32 a, F32 b) {
    return {_mm256_blendv_ps(b.v, a.v, _mm256_cmp_ps(x.v, limit.v, _CMP_LE_OQ))};
  }
  friend RWM_INLINE F32 abs(F32 x) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x.v)}; }
  friend RWM_INLINE float sum(F32 x) {
    __m128 h = _mm_add_ps(_mm256_castps256_ps128(x.v), _mm256_extractf128_ps(x.v, 1));
    h = _mm_add_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_add_ss(h, _mm_movehdup_ps(h)));
  }
};

template <class A>
struct VecOf {
  using type = Plain<A>;
};
template <>
struct VecOf<float> {
  using type = F32;
};

}  // namespace rwm::avx2
RWM_END_TARGET

RWM_BEGIN_AVX512
namespace rwm::avx512 {

struct F32 {
  using Lane = float;
  static constexpr std::int64_t width = 16;
  __m512 v;

  static RWM_INLINE F32 set(float a) { return {_mm512_set1_ps(a)}; }
  static RWM_INLINE F32 zero() { return {_mm512_setzero_ps()}; }

  static RWM_INLINE F32 widen(__m256i raw, const bf16*) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16))};
  }
  static RWM_INLINE F32 widen(__m256i raw, const f16*) { return {_mm512_cvtph_ps(raw)}; }
  RWM_INLINE __m256i narrow(bf16*) const {
    const __m512i u = _mm512_castps_si512(v);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    const __m512i r = _mm512_srli_epi32(
        _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7FFF)), odd), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(nan, r, _mm512_set1_epi32(0x7FC0)));
  }
  RWM_INLINE __m256i narrow(f16*) const { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT); }

  static RWM_INLINE __mmask16 mask(std::int64_t count) {
    return static_cast<__mmask16>((1u << count) - 1u);
  }
  static RWM_INLINE F32 load(const float* p, All = {}) { return {_mm512_loadu_ps(p)}; }
  static RWM_INLINE F32 load(const float* p, std::int64_t count) {
    return {_mm512_maskz_loadu_ps(mask(count), p)};
  }
  template <class T>
  static RWM_INLINE F32 load(const T* p, All = {}) {
    return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), p);
  }
  template <class T>
  static RWM_INLINE F32 load(const T* p, std::int64_t count) {
    return widen(_mm256_maskz_loadu_epi16(mask(count), p), p);
  }
  RWM_INLINE void store(float* p, All = {}) const { _mm512_storeu_ps(p, v); }
  RWM_INLINE void store(float* p, std::int64_t count) const {
    _mm512_mask_storeu_ps(p, mask(count), v);
  }
  template <class T>
  RWM_INLINE void store(T* p, All = {}) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(p));
  }
  template <class T>
  RWM_INLINE void store(T* p, std::int64_t count) const {
    _mm256_mask_storeu_epi16(p, mask(count), narrow(p));
  }

  using Index = __m512i;
  static RWM_INLINE Index index(const std::int32_t* at) { return _mm512_loadu_si512(at); }
  static RWM_INLINE F32 pick_near(const float* p, Index i) {
    return {_mm512_permutexvar_ps(i, _mm512_loadu_ps(p))};
  }
  static RWM_INLINE F32 pick_far(const float* p, Index i) {
    return {_mm512_permutex2var_ps(_mm512_loadu_ps(p), i, _mm512_loadu_ps(p + 16))};
  }

  friend RWM_INLINE F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend RWM_INLINE F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend RWM_INLINE F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
  friend RWM_INLINE F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
  friend RWM_INLINE F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  friend RWM_INLINE F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
  friend RWM_INLINE F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
  friend RWM_INLINE F32 where_positive(F32 x, F32 a, F32 b) {
    return {
        _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_GT_OQ), b.v, a.v)};
  }
  friend RWM_INLINE F32 where_at_most(F32 x, F32 limit, F32 a, F32 b) {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_LE_OQ), b.v, a.v)};
  }
  friend RWM_INLINE F32 abs(F32 x) { return {_mm512_abs_ps(x.v)}; }
  friend RWM_INLINE float sum(F32 x) { return _mm512_reduce_add_ps(x.v); }
};

template <class A>
struct VecOf {
  using type = Plain<A>;
};
template <>
struct VecOf<float> {
  using type = F32;
};

}  // namespace rwm::avx512
RWM_END_TARGET

#endif
