// Makes Python classes of records (common/records.h), for the C++ and the CUDA module: each has its
// own, so that both can be loaded.
#pragma once

#include <pybind11/pybind11.h>

#include <utility>

namespace rwm {

template <class Record>
auto record(pybind11::module_& m, const char* name) {
  return pybind11::class_<Record>(m, name, pybind11::module_local());
}

// A class whose constructor takes its fields, in the order of the struct; `DEFAULTS`: those of the
// struct for what is left out.
template <class Record, bool DEFAULTS = true, class... Types>
void bind_fields(pybind11::module_& m, const char* name,
                 std::pair<const char*, Types Record::*>... fields) {
  auto c = record<Record>(m, name);
  auto make = pybind11::init([](Types... values) {
    const Record made{values...};
    made.validate();
    return made;
  });
  if constexpr (DEFAULTS) {
    c.def(std::move(make), (pybind11::arg(fields.first) = Record().*fields.second)...);
  } else {
    c.def(std::move(make), pybind11::arg(fields.first)...);
  }
  (c.def_readonly(fields.first, fields.second), ...);
}

}  // namespace rwm
