// Instruction sets, chosen at run time. The build passes no -m flag: the module loads on every
// x86-64 (and other) CPU, and a kernel that gains from wider vectors is compiled several times and
// picked by isa().
//
// Plain loops, one body for all instruction sets:
//
//     struct Scale {  // static, so that every clone inlines it
//       static RWM_INLINE void run(const float* x, float* y, std::int64_t size, float gain) {
//         for (std::int64_t i = 0; i < size; ++i) y[i] = x[i] * gain;
//       }
//     };
//     run_best<Scale>(x, y, size, gain);   // inside the body of parallel_for, never around it
//
// Intrinsics: write them between RWM_BEGIN_AVX2 / RWM_BEGIN_AVX512 and RWM_END_TARGET, after every
// #include, and branch on isa().
#pragma once

#include <cstdint>

namespace rwm {

enum class Isa : int { baseline = 0, avx2 = 1, avx512 = 2 };

// Defined in isa.cpp. isa() is what kernels use: detected_isa() unless set_isa() lowered it (tests,
// RWM_FAST_CPU_ISA).
Isa detected_isa();
Isa isa();
void set_isa(Isa value);

#define RWM_INLINE inline __attribute__((always_inline))

#if defined(__x86_64__)
#define RWM_TARGET_AVX2 __attribute__((target("avx2,fma,f16c,bmi2")))
#define RWM_TARGET_AVX512 \
  __attribute__((target( \
      "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,bmi2,prefer-vector-width=512")))
#else
#define RWM_TARGET_AVX2
#define RWM_TARGET_AVX512
#endif

template <class Kernel, class... Args>
RWM_TARGET_AVX2 auto run_avx2(Args... args) {
  return Kernel::run(args...);
}

template <class Kernel, class... Args>
RWM_TARGET_AVX512 auto run_avx512(Args... args) {
  return Kernel::run(args...);
}

// Arguments are passed by value: pointers and numbers only.
template <class Kernel, class... Args>
auto run_best(Args... args) {
  switch (isa()) {
    case Isa::avx512: return run_avx512<Kernel>(args...);
    case Isa::avx2: return run_avx2<Kernel>(args...);
    default: return Kernel::run(args...);
  }
}

}  // namespace rwm

// Regions for intrinsics. Everything between is compiled for that set: keep templates of the
// standard library out of them.
#if defined(__x86_64__) && defined(__clang__)
#define RWM_BEGIN_AVX2 \
  _Pragma( \
      "clang attribute push(__attribute__((target(\"avx2,fma,f16c,bmi2\"))), apply_to = " \
      "function)")
#define RWM_BEGIN_AVX512 \
  _Pragma( \
      "clang attribute " \
      "push(__attribute__((target(\"avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c," \
      "bmi2\"))), apply_to = function)")
#define RWM_END_TARGET _Pragma("clang attribute pop")
#elif defined(__x86_64__)
#define RWM_BEGIN_AVX2 _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c,bmi2\")")
#define RWM_BEGIN_AVX512 \
  _Pragma("GCC push_options") \
      _Pragma("GCC target(\"avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma,f16c,bmi2\")")
#define RWM_END_TARGET _Pragma("GCC pop_options")
#endif
