// The CPU module rwm_fast._C: settings shared by all kernels, then every operator's own functions
// (common/registry.h).
#include <cstdint>
#include <string>

#include "common/cpu_features.h"
#include "common/dtype.h"
#include "common/isa.h"
#include "common/parallel.h"
#include "common/registry.h"
#include "record_bindings.h"

namespace rwm {
namespace {

const char* const kIsaNames[] = {"baseline", "avx2", "avx512"};

const char* name_of(Isa value) { return kIsaNames[static_cast<int>(value)]; }

Isa isa_named(const std::string& name) {
  for (int i = 0; i < 3; ++i) {
    if (name == kIsaNames[i]) return static_cast<Isa>(i);
  }
  check(false, "set_isa: expected baseline, avx2 or avx512, got ", name);
  return Isa::baseline;
}

// Addresses of torch_parallel_for and torch_get_num_threads; 0 runs every loop in the calling
// thread.
void set_thread_pool(Pointer run, Pointer count) {
  thread_pool().run = reinterpret_cast<TorchParallelFor>(run);
  thread_pool().count = reinterpret_cast<TorchGetNumThreads>(count);
}

py::dict features() {
  const CpuFeatures f = cpu_features();
  py::dict d;
  d["avx2"] = f.avx2;
  d["avx512"] = f.avx512;
  d["avx512_bf16"] = f.avx512_bf16;
  d["amx_bf16"] = f.amx_bf16;
  return d;
}

// For tests of parallel.h: how [0, size) was cut (one owner per item), and that an exception inside
// a loop comes out whole.
std::int64_t parallel_probe(std::int64_t size, std::int64_t grain, std::int64_t throw_at) {
  std::atomic<std::int64_t> visited{0};
  parallel_for(0, size, grain, [&](std::int64_t begin, std::int64_t end) {
    check(throw_at < begin || throw_at >= end, "parallel_probe: asked to fail at ", throw_at);
    visited += end - begin;
  });
  return visited;
}

// For tests of dtype.h: out[i] = T(x[i]), and back = float(out[i]).
void convert_probe(Pointer x, Pointer out, Pointer back, std::int64_t size, int dtype) {
  dispatch(static_cast<DType>(dtype), "convert_probe", [&](auto tag) {
    using T = typename decltype(tag)::type;
    for (std::int64_t i = 0; i < size; ++i) {
      as<T>(out)[i] = static_cast<T>(as<const float>(x)[i]);
      as<float>(back)[i] = static_cast<float>(as<const T>(out)[i]);
    }
  });
}

}  // namespace
}  // namespace rwm

PYBIND11_MODULE(_C, m) {
  using namespace rwm;
  m.def("set_thread_pool", &set_thread_pool);
  m.def("num_threads", &num_threads);
  m.def("cpu_features", &features);
  m.def("detected_isa", [] { return name_of(detected_isa()); });
  m.def("isa", [] { return name_of(isa()); });
  m.def("set_isa", [](const std::string& name) { set_isa(isa_named(name)); });
  m.def("parallel_probe", &parallel_probe);
  m.def("convert_probe", &convert_probe);
  bind_operator_records(m);
  Registration::bind_all(m);
}
