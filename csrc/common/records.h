// Records: numbers and addresses with names that Python makes once and hands to any number of
// calls, checked when made. record_bindings.h makes Python classes of them, whose constructors call
// `validate`; nvcc reads this file too. Addresses belong to dense tensors.
#pragma once

#include <algorithm>
#include <utility>

#include "common/check.h"
#include "common/dtype.h"

namespace rwm::records {

using Pair = std::pair<std::int64_t, std::int64_t>;  // y, x

// check_least("Blend", "styles", 0, 1): "Blend: styles must be at least 1, got 0".
inline void check_least(const char* record, const char* field, std::int64_t value,
                        std::int64_t least) {
  check(value >= least, record, ": ", field, " must be at least ", least, ", got ", value);
}

inline void check_least(const char* record, const char* field, Pair value, std::int64_t least) {
  check(std::min(value.first, value.second) >= least, record, ": ", field, " must be at least ",
        least, ", got ", value.first, ", ", value.second);
}

inline void check_dtype(const char* record, const char* field, int dtype) {
  check(dtype >= 0 && dtype <= static_cast<int>(DType::f64), record, ": ", field,
        " must be a code of DTYPE_CODES, got ", dtype);
}

}  // namespace rwm::records
