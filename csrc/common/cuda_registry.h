// How a CUDA source offers its host functions, without pybind11, which nvcc would read once for every
// GPU target: a list of names, argument kinds and thunks. bindings_cuda.cpp makes Python functions of
// it, testing/library.cpp a C interface for the tests.
//
//     void forward(Pointer x, Pointer y, std::int64_t size, float gain, int device, Pointer stream);
//     RWM_CUDA_FUNCTION(scale_forward, forward);
#pragma once

#include <cstdint>
#include <utility>

#include "common/dtype.h"

namespace rwm {

union Argument {
  std::int64_t integer;
  std::uint64_t pointer;
  double number;
};

template <class T>
struct ArgumentKind;
template <>
struct ArgumentKind<int> {
  static constexpr char code = 'i';
  static int get(const Argument& a) { return static_cast<int>(a.integer); }
};
template <>
struct ArgumentKind<bool> {
  static constexpr char code = 'i';
  static bool get(const Argument& a) { return a.integer != 0; }
};
template <>
struct ArgumentKind<std::int64_t> {
  static constexpr char code = 'i';
  static std::int64_t get(const Argument& a) { return a.integer; }
};
template <>
struct ArgumentKind<Pointer> {
  static constexpr char code = 'p';
  static Pointer get(const Argument& a) { return static_cast<Pointer>(a.pointer); }
};
template <>
struct ArgumentKind<double> {
  static constexpr char code = 'd';
  static double get(const Argument& a) { return a.number; }
};
template <>
struct ArgumentKind<float> {
  static constexpr char code = 'd';
  static float get(const Argument& a) { return static_cast<float>(a.number); }
};

class CudaFunction {
 public:
  const char* name;
  const char* kinds;  // one letter an argument: i, p, d
  void (*call)(const Argument*);
  CudaFunction* next;

  CudaFunction(const char* name, const char* kinds, void (*call)(const Argument*))
      : name(name), kinds(kinds), call(call), next(first()) {
    first() = this;
  }

  // A function-local static exists before any file's registrations run.
  static CudaFunction*& first() {
    static CudaFunction* head = nullptr;
    return head;
  }
};

template <auto function>
struct Thunk;
template <class... Types, void (*function)(Types...)>
struct Thunk<function> {
  static constexpr char kinds[] = {ArgumentKind<Types>::code..., '\0'};

  static void call(const Argument* arguments) { apply(arguments, std::index_sequence_for<Types...>{}); }

  template <std::size_t... I>
  static void apply(const Argument* arguments, std::index_sequence<I...>) {
    function(ArgumentKind<Types>::get(arguments[I])...);
  }
};

}  // namespace rwm

#define RWM_CUDA_FUNCTION(name, function)                                                    \
  static ::rwm::CudaFunction rwm_cuda_##name(#name, ::rwm::Thunk<&function>::kinds,           \
                                             &::rwm::Thunk<&function>::call)
