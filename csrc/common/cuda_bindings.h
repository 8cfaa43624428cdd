// Python functions for every host function that a CUDA source offers (common/cuda_registry.h), in
// the CUDA module and in the one that the tests make of the same sources on the CPU.
#pragma once

#include <cstring>
#include <list>
#include <stdexcept>

#include "common/cuda_registry.h"
#include "common/registry.h"
#include "modulated_conv2d/bindings.h"
#include "record_bindings.h"

namespace rwm {

// A Python value as an argument; false with a Python error set if it is of another kind.
inline bool convert(PyObject* value, const CudaFunction& function, Py_ssize_t i,
                    Argument& argument) {
  switch (function.kinds[i]) {
    case 'd': argument.number = PyFloat_AsDouble(value); break;
    case 'p': argument.pointer = PyLong_AsUnsignedLongLong(value); break;
    case 'i': argument.integer = PyLong_AsLongLong(value); break;
    default: {
      py::detail::type_caster_generic caster(*function.types[i]);
      if (caster.load(value, false)) {
        argument.record = caster.value;
      } else {
        PyErr_Format(PyExc_TypeError, "%s: argument %zd cannot be a %s", function.name, i,
                     Py_TYPE(value)->tp_name);
      }
    }
  }
  return PyErr_Occurred() == nullptr;
}

// Straight from Python's calling convention: pybind11's conversions take as long as a launch.
inline PyObject* call(PyObject* self, PyObject* const* values, Py_ssize_t count) {
  const auto* function = static_cast<CudaFunction*>(PyCapsule_GetPointer(self, nullptr));
  const auto expected = static_cast<Py_ssize_t>(std::strlen(function->kinds));
  if (count != expected || count > kMostArguments) {
    return PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", function->name,
                        expected, count);
  }
  Argument arguments[kMostArguments];
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!convert(values[i], *function, i, arguments[i])) return nullptr;
  }
  try {
    function->call(arguments);
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

inline void bind_cuda(py::module_& m) {
  static std::list<PyMethodDef> definitions;  // Python keeps their addresses
  for (auto* f = CudaFunction::first(); f != nullptr; f = f->next) {
    definitions.push_back({f->name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&call)),
                           METH_FASTCALL, nullptr});
    const py::capsule self(f);
    m.add_object(f->name, py::reinterpret_steal<py::object>(
                              PyCFunction_New(&definitions.back(), self.ptr())));
  }
  bind_operator_records(m);
  bind_records(m);
  bind_cuda_records(m);
}

}  // namespace rwm
