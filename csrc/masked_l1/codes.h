// Two signs in one byte, as reference.encode: bits 0–1 hold sign(h − g) + 1, bits 2–3 sign(h − a) +
// 1. The sign of a NaN counts as 0.
#pragma once

#include <cstdint>

#include "common/simd.h"

namespace rwm::masked_l1 {

// Each function has a form for whole vectors and one for the first `count` elements.

template <class A>
RWM_INLINE void store_codes(std::uint8_t* p, Plain<A> inside, Plain<A> outside,
                            std::int64_t count = Plain<A>::width) {
  for (std::int64_t i = 0; i < count; ++i) {
    const int s = (inside.v[i] > 0) - (inside.v[i] < 0) + 1;
    const int t = (outside.v[i] > 0) - (outside.v[i] < 0) + 1;
    p[i] = static_cast<std::uint8_t>(s | t << 2);
  }
}
template <class A>
RWM_INLINE void store_codes(std::uint8_t* p, Plain<A> inside, Plain<A> outside, All) {
  store_codes(p, inside, outside, Plain<A>::width);
}

template <class V>
RWM_INLINE void store_four_codes(std::uint8_t* p, const V* inside, const V* outside) {
  for (int k = 0; k < 4; ++k) store_codes(p + k * V::width, inside[k], outside[k], All{});
}

template <class A>
RWM_INLINE void load_codes(const std::uint8_t* p, Plain<A>& inside, Plain<A>& outside,
                           std::int64_t count) {
  inside = outside = Plain<A>::zero();
  for (std::int64_t i = 0; i < count; ++i) {
    inside.v[i] = static_cast<A>((p[i] & 3) - 1);
    outside.v[i] = static_cast<A>((p[i] >> 2) - 1);
  }
}
template <class A>
RWM_INLINE void load_codes(const std::uint8_t* p, Plain<A>& inside, Plain<A>& outside, All) {
  load_codes(p, inside, outside, Plain<A>::width);
}

}  // namespace rwm::masked_l1

#if defined(__x86_64__)

RWM_BEGIN_AVX2
namespace rwm::masked_l1 {

// sign(v) as integers: comparisons give −1 where they hold.
RWM_INLINE __m256i signs(__m256 v) {
  const __m256i above = _mm256_castps_si256(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_GT_OQ));
  const __m256i below = _mm256_castps_si256(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_LT_OQ));
  return _mm256_sub_epi32(below, above);
}

RWM_INLINE __m256i wide_codes(avx2::F32 inside, avx2::F32 outside) {
  const __m256i t = _mm256_slli_epi32(signs(outside.v), 2);
  return _mm256_add_epi32(_mm256_add_epi32(signs(inside.v), t), _mm256_set1_epi32(5));
}
RWM_INLINE std::uint64_t codes(avx2::F32 inside, avx2::F32 outside) {
  const __m256i c = wide_codes(inside, outside);
  const __m256i pairs = _mm256_permute4x64_epi64(_mm256_packs_epi32(c, c), 0x08);
  const __m128i low = _mm256_castsi256_si128(pairs);
  return static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(low, low)));
}
// Four vectors share the packing and the store.
RWM_INLINE void store_four_codes(std::uint8_t* p, const avx2::F32* inside,
                                 const avx2::F32* outside) {
  __m256i c[4];
  for (int k = 0; k < 4; ++k) c[k] = wide_codes(inside[k], outside[k]);
  const __m256i low = _mm256_packs_epi32(c[0], c[1]), high = _mm256_packs_epi32(c[2], c[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bytes);
}
RWM_INLINE void store_codes(std::uint8_t* p, avx2::F32 inside, avx2::F32 outside, All) {
  const std::uint64_t bytes = codes(inside, outside);
  __builtin_memcpy(p, &bytes, 8);
}
RWM_INLINE void store_codes(std::uint8_t* p, avx2::F32 inside, avx2::F32 outside,
                            std::int64_t count) {
  const std::uint64_t bytes = codes(inside, outside);
  for (std::int64_t i = 0; i < count; ++i) p[i] = static_cast<std::uint8_t>(bytes >> 8 * i);
}

RWM_INLINE void split(std::uint64_t bytes, avx2::F32& inside, avx2::F32& outside) {
  const __m256i c = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<long long>(bytes)));
  // A permutation looks at three bits of an index, and the table has a period of four.
  const __m256 sign = _mm256_setr_ps(-1, 0, 1, 0, -1, 0, 1, 0);
  inside.v = _mm256_permutevar8x32_ps(sign, c);
  outside.v = _mm256_permutevar8x32_ps(sign, _mm256_srli_epi32(c, 2));
}
RWM_INLINE void load_codes(const std::uint8_t* p, avx2::F32& inside, avx2::F32& outside, All) {
  std::uint64_t bytes;
  __builtin_memcpy(&bytes, p, 8);
  split(bytes, inside, outside);
}
RWM_INLINE void load_codes(const std::uint8_t* p, avx2::F32& inside, avx2::F32& outside,
                           std::int64_t count) {
  std::uint64_t bytes = 0;
  for (std::int64_t i = 0; i < count; ++i) bytes |= static_cast<std::uint64_t>(p[i]) << 8 * i;
  split(bytes, inside, outside);
}

}  // namespace rwm::masked_l1
RWM_END_TARGET

RWM_BEGIN_AVX512
namespace rwm::masked_l1 {

// c + step·sign(v)
RWM_INLINE __m512i add_sign(__m512i c, __m512 v, int step) {
  const __m512 zero = _mm512_setzero_ps();
  const __m512i s = _mm512_set1_epi32(step);
  c = _mm512_mask_add_epi32(c, _mm512_cmp_ps_mask(v, zero, _CMP_GT_OQ), c, s);
  return _mm512_mask_sub_epi32(c, _mm512_cmp_ps_mask(v, zero, _CMP_LT_OQ), c, s);
}

RWM_INLINE __m128i codes(avx512::F32 inside, avx512::F32 outside) {
  return _mm512_cvtepi32_epi8(add_sign(add_sign(_mm512_set1_epi32(5), inside.v, 1), outside.v, 4));
}
RWM_INLINE void store_codes(std::uint8_t* p, avx512::F32 inside, avx512::F32 outside, All) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), codes(inside, outside));
}
RWM_INLINE void store_codes(std::uint8_t* p, avx512::F32 inside, avx512::F32 outside,
                            std::int64_t count) {
  _mm_mask_storeu_epi8(p, avx512::F32::mask(count), codes(inside, outside));
}

RWM_INLINE void store_four_codes(std::uint8_t* p, const avx512::F32* inside,
                                 const avx512::F32* outside) {
  for (int k = 0; k < 4; ++k) store_codes(p + k * 16, inside[k], outside[k], All{});
}

RWM_INLINE void split(__m128i bytes, avx512::F32& inside, avx512::F32& outside) {
  const __m512i c = _mm512_cvtepu8_epi32(bytes), one = _mm512_set1_epi32(1);
  const __m512i s = _mm512_sub_epi32(_mm512_and_epi32(c, _mm512_set1_epi32(3)), one);
  inside.v = _mm512_cvtepi32_ps(s);
  outside.v = _mm512_cvtepi32_ps(_mm512_sub_epi32(_mm512_srli_epi32(c, 2), one));
}
RWM_INLINE void load_codes(const std::uint8_t* p, avx512::F32& inside, avx512::F32& outside, All) {
  split(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), inside, outside);
}
RWM_INLINE void load_codes(const std::uint8_t* p, avx512::F32& inside, avx512::F32& outside,
                           std::int64_t count) {
  split(_mm_maskz_loadu_epi8(avx512::F32::mask(count), p), inside, outside);
}

}  // namespace rwm::masked_l1
RWM_END_TARGET

#endif
