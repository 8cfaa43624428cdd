#include "common/scratch.h"

#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "common/registry.h"

namespace rwm {
namespace {

constexpr std::size_t kPage = std::size_t{2}
                              << 20;  // a huge page on x86-64; elsewhere merely an alignment
constexpr std::size_t kKept = std::size_t{128} << 20;  // bytes of unused blocks
constexpr std::align_val_t kAlignment{64};

struct Free {
  void* data;
  std::size_t size;
};

// Never destroyed: tensors on blocks may outlive static objects.
struct Pool {
  std::mutex mutex;
  std::vector<Free> blocks;  // the oldest first
  std::size_t bytes = 0;
};

Pool& pool() {
  static Pool* const one = new Pool;
  return *one;
}

void* fresh(std::size_t size) {
  void* const data = ::operator new(size, std::align_val_t{kPage});
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(data, size, MADV_HUGEPAGE);  // a wish: without it everything works, slower
#endif
  return data;
}

void release(void* data) { ::operator delete(data, std::align_val_t{kPage}); }

void* take(std::size_t size) {
  Pool& p = pool();
  {
    const std::lock_guard<std::mutex> lock(p.mutex);
    for (std::size_t i = p.blocks.size(); i-- > 0;) {
      if (p.blocks[i].size != size) continue;
      void* const data = p.blocks[i].data;
      p.blocks.erase(p.blocks.begin() + static_cast<std::ptrdiff_t>(i));
      p.bytes -= size;
      return data;
    }
  }
  return fresh(size);
}

void give(void* data, std::size_t size) {
  std::vector<void*> old;
  {
    Pool& p = pool();
    const std::lock_guard<std::mutex> lock(p.mutex);
    p.blocks.push_back({data, size});
    p.bytes += size;
    std::size_t count = 0;
    for (; p.bytes > kKept; ++count) {
      p.bytes -= p.blocks[count].size;
      old.push_back(p.blocks[count].data);
    }
    p.blocks.erase(p.blocks.begin(), p.blocks.begin() + static_cast<std::ptrdiff_t>(count));
  }
  for (void* const o : old) release(o);
}

}  // namespace

Block::Block(std::size_t bytes)
    : size_(bytes < kPage ? bytes : (bytes + kPage - 1) / kPage * kPage) {
  data_ = size_ < kPage ? ::operator new(size_, kAlignment) : take(size_);
}

Block::~Block() {
  if (size_ < kPage) {
    ::operator delete(data_, kAlignment);
  } else {
    give(data_, size_);
  }
}

}  // namespace rwm

namespace py = pybind11;

// Python sees a block as a buffer, so that a tensor can lie in it and keep it.
RWM_BIND(scratch) {
  py::class_<rwm::Block>(m, "Block", py::buffer_protocol())
      .def(py::init<std::size_t>())
      .def_buffer([](rwm::Block& b) {
        return py::buffer_info(static_cast<std::uint8_t*>(b.data()),
                               static_cast<py::ssize_t>(b.size()));
      });
}
