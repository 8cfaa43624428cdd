// Large buffers that live for a call, or until Python drops them, kept for the next one.
//
// A fresh page costs more than the numbers in it: the kernel clears it, and in a virtual machine
// maps it twice. malloc gives buffers above 32 MiB back at once, so every call would pay again.
// Blocks here are aligned for huge pages, ask for them where the system leaves that to the program
// (512 times fewer faults and address translations), and stay in the process, at most kKept bytes
// of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace rwm {

class Block {
 public:
  explicit Block(std::size_t bytes);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  void* data_;
  std::size_t size_;  // of the memory, which may be more than was asked for
};

// Uninitialised memory for `count` numbers.
template <class A>
class Scratch {
 public:
  explicit Scratch(std::int64_t count) : block_(static_cast<std::size_t>(count) * sizeof(A)) {}
  A* get() const { return static_cast<A*>(block_.data()); }

 private:
  Block block_;
};

}  // namespace rwm
