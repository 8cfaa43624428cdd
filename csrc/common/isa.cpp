#include "isa.h"

#include <atomic>

#include "check.h"
#include "cpu_features.h"

namespace rwm {

namespace {

std::atomic<int>& chosen() {
  static std::atomic<int> value{static_cast<int>(detected_isa())};
  return value;
}

}  // namespace

Isa detected_isa() {
  static const Isa best = [] {
    const CpuFeatures f = cpu_features();
    if (f.avx2 && f.avx512) return Isa::avx512;
    return f.avx2 ? Isa::avx2 : Isa::baseline;
  }();
  return best;
}

Isa isa() { return static_cast<Isa>(chosen().load(std::memory_order_relaxed)); }

void set_isa(Isa value) {
  check(value <= detected_isa(), "set_isa: this CPU has no ",
        value == Isa::avx512 ? "AVX-512" : "AVX2");
  chosen().store(static_cast<int>(value), std::memory_order_relaxed);
}

}  // namespace rwm
