// Argument checks that become a Python ValueError with a sentence. The Python side has checked
// shapes, dtypes and devices before a pointer is taken; these checks guard what only the kernel
// knows, and whatever of an address and of sizes is wrong on its face.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>

namespace rwm {

// check(size > 0, "crop_patches: size must be positive, got ", size);
template <class... Parts>
void check(bool holds, const Parts&... message) {
  if (holds) return;
  std::ostringstream text;
  (text << ... << message);
  throw std::invalid_argument(text.str());
}

constexpr std::int64_t kMostElements = std::int64_t{1} << 48;  // more than any memory holds

// The product of sizes that a call multiplies: none negative, none so large that products overflow,
// whatever the others are.
inline std::int64_t elements(const char* op, std::initializer_list<std::int64_t> sizes) {
  std::int64_t count = 1, bound = 1;
  for (const std::int64_t size : sizes) {
    check(size >= 0 && size <= kMostElements / bound, op, ": a size must fit memory, got ", size);
    count *= size;
    bound *= std::max<std::int64_t>(size, 1);
  }
  return count;
}

// Refuses the address 0 of a buffer with elements; the size of a buffer is not visible here.
inline void present(const char* op, std::int64_t count,
                    std::initializer_list<std::uintptr_t> buffers) {
  for (const std::uintptr_t buffer : buffers) {
    check(buffer != 0 || count == 0, op, ": a buffer that has elements is missing");
  }
}

}  // namespace rwm
