// What all bindings share. Pointers arrive as integers, and nothing holds the GIL while it works.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <cstdint>


namespace bert_fast::bindings {

namespace py = pybind11;

using Address = uintptr_t;
using NoGil = py::call_guard<py::gil_scoped_release>;

template <typename T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

}  // namespace bert_fast::bindings
