// Argument checks that become a Python ValueError with a sentence. The Python side has checked
// shapes, dtypes and devices before a pointer is taken; these checks guard what only the kernel
// knows.
#pragma once

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

}  // namespace rwm
