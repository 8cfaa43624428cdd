// Python classes of records.h, for the C++ and the CUDA module: each has its own, so that both can
// be loaded.
#pragma once

#include <pybind11/pybind11.h>

#include "modulated_conv2d/records.h"

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

inline void bind_records(pybind11::module_& m) {
  namespace py = pybind11;
  using namespace records;
  using std::pair;
  bind_fields<Images, false>(m, "Images", pair("batch", &Images::batch),
                             pair("pixels", &Images::pixels), pair("channels", &Images::channels),
                             pair("dtype", &Images::dtype));
  bind_fields(m, "Blend", pair("scale", &Blend::scale), pair("regions", &Blend::regions),
              pair("styles", &Blend::styles));
  const double none = std::numeric_limits<double>::infinity();
  record<Activation>(m, "Activation")
      .def(py::init([none](double slope, double gain, const py::object& clamp) {
             const Activation made{slope, gain, clamp.is_none() ? none : clamp.cast<double>()};
             made.validate();
             return made;
           }),
           py::arg("slope") = 1.0, py::arg("gain") = 1.0, py::arg("clamp") = py::none())
      .def_readonly("slope", &Activation::slope)
      .def_readonly("gain", &Activation::gain)
      .def_property_readonly("clamp", [none](const Activation& a) {
        return a.clamp < none ? py::cast(a.clamp) : py::none();
      });
  bind_fields(m, "Epilogue", pair("blend", &Epilogue::blend), pair("noise", &Epilogue::noise),
              pair("noise_per_image", &Epilogue::noise_per_image),
              pair("strength", &Epilogue::strength), pair("bias", &Epilogue::bias),
              pair("activation", &Epilogue::activation));
}

inline void bind_cuda_records(pybind11::module_& m) {
  using namespace records;
  using std::pair;
  bind_fields(m, "Sums", pair("out", &Sums::out), pair("channels", &Sums::channels),
              pair("pixels", &Sums::pixels), pair("regions", &Sums::regions),
              pair("strength", &Sums::strength), pair("chunks", &Sums::chunks),
              pair("first_style", &Sums::first_style), pair("summed", &Sums::summed),
              pair("wide", &Sums::wide));
  bind_fields(m, "RgbSums", pair("outputs", &RgbSums::outputs), pair("dx", &RgbSums::dx),
              pair("products", &RgbSums::products), pair("bias", &RgbSums::bias),
              pair("chunks", &RgbSums::chunks));
}

}  // namespace rwm
