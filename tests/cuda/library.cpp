// The C interface of the CUDA sources compiled for the CPU: names, argument kinds, calls, and the knobs
// of the fibre machine.
#include <cstdio>
#include <exception>

#include "common/cuda_registry.h"
#include "testing/cuda_on_cpu.h"

namespace {

rwm::CudaFunction* find(int index) {
  rwm::CudaFunction* f = rwm::CudaFunction::first();
  while (f != nullptr && index-- > 0) f = f->next;
  return f;
}

}  // namespace

extern "C" {

// nullptr ends the list.
const char* sim_name(int index) {
  const rwm::CudaFunction* f = find(index);
  return f != nullptr ? f->name : nullptr;
}

const char* sim_kinds(int index) { return find(index)->kinds; }

// 0, or 1 with a message.
int sim_call(int index, const rwm::Argument* arguments, char* message, int size) {
  try {
    find(index)->call(arguments);
    return 0;
  } catch (const std::exception& error) {
    std::snprintf(message, static_cast<std::size_t>(size), "%s", error.what());
    return 1;
  }
}

void sim_set_seed(std::uint64_t seed) { rwm::on_cpu::machine().seed = seed; }

// Launches, blocks, block barriers, warp barriers since the last call.
void sim_take_counts(std::int64_t* counts) {
  rwm::on_cpu::Counts& c = rwm::on_cpu::machine().counts;
  counts[0] = c.launches;
  counts[1] = c.blocks;
  counts[2] = c.block_barriers;
  counts[3] = c.warp_barriers;
  c = {};
}
}
