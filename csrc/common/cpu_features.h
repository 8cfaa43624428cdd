// What this CPU and its operating system offer, as far as the kernels care.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace rwm {

struct CpuFeatures {
  bool avx2 = false;    // with FMA, F16C and BMI2: x86-64-v3 for our purposes
  bool avx512 = false;  // F, BW, CD, DQ, VL: x86-64-v4
  bool avx512_bf16 = false;
  bool amx_bf16 = false;
};

inline CpuFeatures cpu_features() {
  CpuFeatures f;
#if defined(__x86_64__)
  __builtin_cpu_init();
  unsigned a = 0, b = 0, c = 0, d = 0;
  const bool f16c = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & (1u << 29)) != 0;
  // __builtin_cpu_supports also asks the operating system whether it saves the wider registers.
  f.avx2 = f16c && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __builtin_cpu_supports("bmi2");
  f.avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
  f.avx512_bf16 = f.avx512 && __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & (1u << 5)) != 0;
  f.amx_bf16 = f.avx512 && __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & (1u << 22)) != 0 &&
               (d & (1u << 24)) != 0;
#endif
  return f;
}

}  // namespace rwm
