// How a CUDA source offers its host functions, without pybind11, which nvcc would read once for
// every GPU target: a list of names, argument kinds and thunks. common/cuda_bindings.h makes Python
// functions of it. Arguments are numbers, addresses and records (const references to a class that
// Python has).
//
//     void forward(Pointer x, Pointer y, std::int64_t size, float gain, int device, Pointer stream);
//     RWM_CUDA_FUNCTION(scale_forward, forward);
#pragma once

#include <cstdint>
#include <typeinfo>
#include <utility>

#include "common/dtype.h"

namespace rwm {

union Argument {
  std::int64_t integer;
  std::uint64_t pointer;
  double number;
  const void* record;
};

template <class T>
struct ArgumentKind {
  static constexpr char code = std::is_floating_point_v<T>  ? 'd'
                               : std::is_same_v<T, Pointer> ? 'p'
                                                            : 'i';
  static const std::type_info* type() { return nullptr; }
  static T get(const Argument& a) {
    if constexpr (code == 'd') return static_cast<T>(a.number);
    if constexpr (code == 'p') return static_cast<T>(a.pointer);
    return static_cast<T>(a.integer);
  }
};
template <class T>
struct ArgumentKind<const T&> {
  static constexpr char code = 'r';
  static const std::type_info* type() { return &typeid(T); }
  static const T& get(const Argument& a) { return *static_cast<const T*>(a.record); }
};

class CudaFunction {
 public:
  const char* name;
  const char* kinds;                   // one letter an argument: i, p, d, r
  const std::type_info* const* types;  // of the records
  void (*call)(const Argument*);
  CudaFunction* next;

  CudaFunction(const char* name, const char* kinds, const std::type_info* const* types,
               void (*call)(const Argument*))
      : name(name), kinds(kinds), types(types), call(call), next(first()) {
    first() = this;
  }

  // A function-local static exists before any file's registrations run.
  static CudaFunction*& first() {
    static CudaFunction* head = nullptr;
    return head;
  }
};

constexpr int kMostArguments = 10;

template <auto function>
struct Thunk;
template <class... Types, void (*function)(Types...)>
struct Thunk<function> {
  static_assert(sizeof...(Types) <= kMostArguments, "more belong in a record");
  static constexpr char kinds[] = {ArgumentKind<Types>::code..., '\0'};
  inline static const std::type_info* const types[] = {ArgumentKind<Types>::type()...};

  static void call(const Argument* arguments) {
    apply(arguments, std::index_sequence_for<Types...>{});
  }

  template <std::size_t... I>
  static void apply(const Argument* arguments, std::index_sequence<I...>) {
    function(ArgumentKind<Types>::get(arguments[I])...);
  }
};

}  // namespace rwm

#define RWM_CUDA_FUNCTION(name, function) \
  static ::rwm::CudaFunction rwm_cuda_##name(#name, ::rwm::Thunk<&function>::kinds, \
                                             ::rwm::Thunk<&function>::types, \
                                             &::rwm::Thunk<&function>::call)
