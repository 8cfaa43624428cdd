// The Python classes of the operators' records.
#pragma once

#include "bias_act/records.h"
#include "common/bind_record.h"
#include "crop_patches/records.h"
#include "masked_l1/records.h"
#include "upfirdn2d/records.h"

namespace rwm {

inline void bind_operator_records(pybind11::module_& m) {
  namespace py = pybind11;
  using namespace records;
  using std::pair;
  const double none = std::numeric_limits<double>::infinity();
  record<Activation>(m, "Activation")
      .def(py::init([none](double slope, double gain, const py::object& clamp) {
             const double limit = clamp.is_none() ? none : PyFloat_AsDouble(clamp.ptr());
             if (PyErr_Occurred()) throw py::error_already_set();
             const Activation made{slope, gain, limit};
             made.validate();
             return made;
           }),
           py::arg("slope") = 1.0, py::arg("gain") = 1.0, py::arg("clamp") = py::none())
      .def_readonly("slope", &Activation::slope)
      .def_readonly("gain", &Activation::gain)
      .def_property_readonly("clamp", [none](const Activation& a) {
        return a.clamp < none ? py::cast(a.clamp) : py::none();
      });
  bind_fields<Planes, false>(m, "Planes", pair("outer", &Planes::outer),
                             pair("channels", &Planes::channels), pair("inner", &Planes::inner),
                             pair("dtype", &Planes::dtype));
  bind_fields<MaskedImages, false>(
      m, "MaskedImages", pair("images", &MaskedImages::images),
      pair("channels", &MaskedImages::channels), pair("spots", &MaskedImages::spots),
      pair("pixels", &MaskedImages::pixels), pair("dtype", &MaskedImages::dtype),
      pair("mask_dtype", &MaskedImages::mask_dtype));
  bind_fields<Crops, false>(m, "Crops", pair("images", &Crops::images),
                            pair("patches", &Crops::patches), pair("channels", &Crops::channels),
                            pair("image_size", &Crops::image_size), pair("size", &Crops::size),
                            pair("channels_last", &Crops::channels_last),
                            pair("dtype", &Crops::dtype), pair("boxes_dtype", &Crops::boxes_dtype));
  bind_fields<Resampling, false>(
      m, "Resampling", pair("images", &Resampling::images), pair("channels", &Resampling::channels),
      pair("in_size", &Resampling::in_size), pair("out_size", &Resampling::out_size),
      pair("up", &Resampling::up), pair("down", &Resampling::down), pair("pad", &Resampling::pad),
      pair("taps", &Resampling::taps), pair("dtype", &Resampling::dtype));
}

}  // namespace rwm
