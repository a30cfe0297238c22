#pragma once

#include <cstdint>
#include <string>

#include "host/dtype.h"
#include "host/parallel.h"
#include "host/vector_builds.h"

namespace bert_fast {

enum class RowActivation { kNone, kGelu, kGeluTanh };

// What lies between two int8 products of an encoder layer, in one pass over rows [T, width] of x:
//   v = x, or, of a product of quantised rows, scale[t] * x + least[t] * column_sums + bias
//   v = activation(v + residual);  v = LayerNorm(v), where there is a norm_weight
//   out = v;  quantized = round((v - least'[t]) / scale'[t]), where v = scale' * quantized + least' with a row's least
// and largest value at 0 and 255. A row that holds a NaN or an infinity gets a NaN for its least value, and so does all
// that is made of it. Null: column_sums and all that goes with it, residual, norm_weight and norm_bias, out, or quantized
// and its scale and least.
struct QuantizedRows {
    const void* x;
    HostDType x_dtype;
    int64_t rows, width;
    const float *scale, *least, *column_sums, *bias, *residual;
    RowActivation activation;
    const float *norm_weight, *norm_bias;
    float eps;
    void* out;
    HostDType out_dtype;
    uint8_t* quantized;
    float *quantized_scale, *quantized_least;
};

// Why this machine has no int8 products worth calling, or no pass written for it; "" if it has both.
std::string quantized_rows_reason();

void quantized_rows(const QuantizedRows& call, int threads, ParallelFunction parallel);

// The build for AVX-512: rows first .. last - 1. row: room for `width` floats, 64-byte aligned.
void quantized_rows_avx512(const QuantizedRows& call, int64_t first, int64_t last, float* row);

}  // namespace bert_fast
