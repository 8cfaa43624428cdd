// The CUDA module rwm_fast._cuda: the device query, and a Python function for every host function that
// a CUDA source offers (common/cuda_registry.h). The CUDA runtime is linked statically, so the module
// loads without a driver.
#include <cuda_runtime.h>

#include <cstring>
#include <list>
#include <stdexcept>
#include <string>

#include "common/cuda_registry.h"
#include "common/registry.h"

namespace {

// Empty if kernels can be launched, else a clause: no driver, a driver older than this toolkit, no
// GPU.
std::string device_problem() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) {
    cudaGetLastError();
    return std::string("the CUDA runtime says: ") + cudaGetErrorString(status) + " (code " +
           std::to_string(static_cast<int>(status)) + ")";
  }
  return count == 0 ? "there is no GPU" : "";
}

constexpr Py_ssize_t kMaxArguments = 64;

// A Python number as an argument of the kind; false with a Python error set if it is none.
bool convert(PyObject* value, char kind, rwm::Argument& argument) {
  if (kind == 'd') {
    argument.number = PyFloat_AsDouble(value);
  } else if (kind == 'p') {
    argument.pointer = PyLong_AsUnsignedLongLong(value);
  } else {
    argument.integer = PyLong_AsLongLong(value);
  }
  return PyErr_Occurred() == nullptr;
}

// Straight from Python's calling convention: a launch has twenty arguments, and pybind11's conversions
// would take longer than the launch.
PyObject* call(PyObject* self, PyObject* const* values, Py_ssize_t count) {
  const auto* function = static_cast<rwm::CudaFunction*>(PyCapsule_GetPointer(self, nullptr));
  const auto expected = static_cast<Py_ssize_t>(std::strlen(function->kinds));
  if (count != expected || count > kMaxArguments) {
    return PyErr_Format(PyExc_TypeError, "%s takes %zd arguments, got %zd", function->name,
                        expected, count);
  }
  rwm::Argument arguments[kMaxArguments];
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (!convert(values[i], function->kinds[i], arguments[i])) return nullptr;
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

void bind(pybind11::module_& m, rwm::CudaFunction& function) {
  static std::list<PyMethodDef> definitions;  // Python keeps their addresses
  definitions.push_back({function.name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(&call)),
                         METH_FASTCALL, nullptr});
  const pybind11::capsule self(&function);
  m.add_object(function.name, pybind11::reinterpret_steal<pybind11::object>(
                                  PyCFunction_New(&definitions.back(), self.ptr())));
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.def("device_problem", &device_problem);
  m.def("runtime_version", [] { return CUDART_VERSION; });
  for (auto* f = rwm::CudaFunction::first(); f != nullptr; f = f->next) bind(m, *f);
  rwm::Registration::bind_all(m);
}
