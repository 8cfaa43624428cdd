// The CUDA sources compiled for the CPU as a Python module: their functions as in rwm_fast._cuda,
// and the knobs of the fibre machine.
#include "common/cuda_bindings.h"
#include "testing/cuda_on_cpu.h"

PYBIND11_MODULE(RWM_LIBRARY, m) {
  using rwm::on_cpu::machine;
  rwm::bind_cuda(m);
  // 0: threads in order; anything else draws the order of blocks, warps and lanes.
  m.def("set_seed", [](std::uint64_t seed) { machine().seed = seed; });
  // Since the last call.
  m.def("take_counts", [] {
    const rwm::on_cpu::Counts c = machine().counts;
    machine().counts = {};
    pybind11::dict counts;
    counts["launches"] = c.launches;
    counts["blocks"] = c.blocks;
    counts["barriers"] = c.block_barriers;
    counts["warp_barriers"] = c.warp_barriers;
    return counts;
  });
}
