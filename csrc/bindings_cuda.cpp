// The CUDA module rwm_fast._cuda: the device query, and what the CUDA sources offer. The CUDA
// runtime is linked statically, so the module loads without a driver.
#include <cuda_runtime.h>

#include <string>

#include "common/cuda_bindings.h"

namespace {

// Empty if kernels can be launched, else a clause: no driver, a driver older than this toolkit, no
// GPU.
std::string device_problem() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    return std::string("the CUDA runtime says: ") + cudaGetErrorString(status) + " (code " +
           std::to_string(static_cast<int>(status)) + ")";
  }
  return count == 0 ? "there is no GPU" : "";
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.def("device_problem", &device_problem);
  m.def("runtime_version", [] { return CUDART_VERSION; });
  rwm::bind_cuda(m);
}
