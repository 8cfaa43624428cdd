// Compiles one kernel file for every instruction set, and calls the right copy.
//
//     #define RWM_KERNELS "bias_act/kernels.h"   // templates over storage types; Vec<A> is the vector of A
//     #include "common/each_isa.h"
//     RWM_EACH_ISA(A, bias_act_rows<T>(x, y, begin, end));   // inside the body of parallel_for, A the accumulator's type
//
// Double runs the baseline's copy at every instruction set: it serves the numerical checks of
// gradients, and copies cost build time.
//
// The kernel file has no include, no include guard and no namespace, and uses nothing of the
// standard library: it would be compiled for the wider set and could be picked by the linker for
// everybody.
#include "common/simd.h"

namespace rwm::baseline {
namespace {
template <class A>
using Vec = typename VecOf<A>::type;
#include RWM_KERNELS
}  // namespace
}  // namespace rwm::baseline

#if defined(__x86_64__)

RWM_BEGIN_AVX2
namespace rwm::avx2 {
namespace {
template <class A>
using Vec = typename VecOf<A>::type;
#include RWM_KERNELS
}  // namespace
}  // namespace rwm::avx2
RWM_END_TARGET

RWM_BEGIN_AVX512
namespace rwm::avx512 {
namespace {
template <class A>
using Vec = typename VecOf<A>::type;
#include RWM_KERNELS
}  // namespace
}  // namespace rwm::avx512
RWM_END_TARGET

#define RWM_EACH_ISA(A, ...) \
  if constexpr (sizeof(A) == sizeof(double)) { \
    using namespace ::rwm::baseline; \
    __VA_ARGS__; \
  } else { \
    switch (::rwm::isa()) { \
      case ::rwm::Isa::avx512: { \
        using namespace ::rwm::avx512; \
        __VA_ARGS__; \
        break; \
      } \
      case ::rwm::Isa::avx2: { \
        using namespace ::rwm::avx2; \
        __VA_ARGS__; \
        break; \
      } \
      default: { \
        using namespace ::rwm::baseline; \
        __VA_ARGS__; \
      } \
    } \
  }

#else

#define RWM_EACH_ISA(A, ...) \
  do { \
    using namespace ::rwm::baseline; \
    __VA_ARGS__; \
  } while (false)

#endif
