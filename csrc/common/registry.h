// How an operator's file adds its functions to the extension module it is compiled into.
//
//     RWM_BIND(masked_l1) { m.def("masked_l1_forward", &forward); }
//
// Registration is by static object, so a new file in csrc/<op>/ needs no edit anywhere else.
#pragma once

#if defined(__CUDACC__)
#error "nvcc reads pybind11 once for each GPU target, a minute a file: see common/cuda_registry.h"
#endif

#include <pybind11/pybind11.h>

namespace rwm {

namespace py = pybind11;

class Registration {
 public:
  using Bind = void (*)(py::module_&);

  explicit Registration(Bind bind) : bind_(bind), next_(first()) { first() = this; }

  static void bind_all(py::module_& m) {
    for (const Registration* r = first(); r != nullptr; r = r->next_) r->bind_(m);
  }

 private:
  // A function-local static exists before any file's registrations run, whatever order the linker
  // chose.
  static Registration*& first() {
    static Registration* head = nullptr;
    return head;
  }

  Bind bind_;
  Registration* next_;
};

}  // namespace rwm

#define RWM_BIND(op) \
  static void rwm_bind_##op(::pybind11::module_& m); \
  static ::rwm::Registration rwm_registration_##op(rwm_bind_##op); \
  static void rwm_bind_##op(::pybind11::module_& m)
