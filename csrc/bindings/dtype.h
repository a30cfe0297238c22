// The dtypes of CUDA code by their names.
#pragma once

#include <stdexcept>
#include <string>

#include "cuda/api.h"

namespace bert_fast::bindings {

inline bert_fast::DType dtype_named(const std::string& name) {
    if (name == "float32") return bert_fast::DType::kFloat32;
    if (name == "float16") return bert_fast::DType::kFloat16;
    if (name == "bfloat16") return bert_fast::DType::kBFloat16;
    throw std::invalid_argument("dtype must be float32, float16 or bfloat16, got " + name);
}

}  // namespace bert_fast::bindings
