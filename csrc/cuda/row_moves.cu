// Rows out of a padded batch and back into it, each in one pass, as bytes.
#include "shared/row_moves.h"

#include <algorithm>

#include "cuda/api.h"
#include "cuda/launch.h"
#include "host/checks.h"

namespace bert_fast {
namespace {

constexpr int kRows = 4;  // that a thread moves at once, so that their loads are under way together

// What a thread moves at once.
template <int BYTES>
struct alignas(BYTES) Unit {
    uint32_t words[BYTES / 4];
};
template <>
struct Unit<2> {
    uint16_t words[1];
};
template <>
struct Unit<1> {
    uint8_t words[1];
};

struct Arguments {
    const void* from;
    const int64_t* indices;
    void* to;
    int64_t tokens, places, units;
};

// Copies rows sources[j] of `from` to the rows first + j, up to `end`, of `to`; zeros where a source is below 0.
template <int BYTES>
__device__ void move_rows(const Arguments& a, const int64_t (&sources)[kRows], int64_t first, int64_t end) {
    const auto* from = static_cast<const Unit<BYTES>*>(a.from);
    auto* to = static_cast<Unit<BYTES>*>(a.to);
    for (int64_t unit = threadIdx.x; unit < a.units; unit += blockDim.x) {
        Unit<BYTES> values[kRows];
        BERT_FAST_UNROLL
        for (int j = 0; j < kRows; ++j) {
            values[j] = Unit<BYTES>{};
            if (sources[j] >= 0) values[j] = from[sources[j] * a.units + unit];
        }
        BERT_FAST_UNROLL
        for (int j = 0; j < kRows; ++j) {
            if (first + j < end) to[(first + j) * a.units + unit] = values[j];
        }
    }
}

template <int BYTES>
__global__ void __launch_bounds__(kMoveThreads) gather_rows(Arguments a) {
    const int64_t stride = int64_t{gridDim.x} * blockDim.y * kRows;
    for (int64_t first = (int64_t{blockIdx.x} * blockDim.y + threadIdx.y) * kRows; first < a.tokens; first += stride) {
        int64_t sources[kRows];
        BERT_FAST_UNROLL
        for (int j = 0; j < kRows; ++j) {
            sources[j] = first + j < a.tokens ? a.indices[first + j] : -1;
            if (sources[j] >= a.places) sources[j] = -1;
        }
        move_rows<BYTES>(a, sources, first, a.tokens);
    }
}

template <int BYTES>
__global__ void __launch_bounds__(kMoveThreads) scatter_rows(Arguments a) {
    const int64_t stride = int64_t{gridDim.x} * blockDim.y * kRows;
    for (int64_t first = (int64_t{blockIdx.x} * blockDim.y + threadIdx.y) * kRows; first < a.places; first += stride) {
        int64_t token = indices_below(a.indices, a.tokens, a.places, first);
        int64_t sources[kRows];
        BERT_FAST_UNROLL
        for (int j = 0; j < kRows; ++j) {
            const bool filled = token < a.tokens && a.indices[token] == first + j;
            sources[j] = filled ? token : -1;
            token += filled;
        }
        move_rows<BYTES>(a, sources, first, a.places);
    }
}

template <int BYTES>
void launch_units(bool gather, Arguments a, int64_t row_bytes, cudaStream_t stream) {
    a.units = row_bytes / BYTES;
    const auto lanes = static_cast<unsigned>(lanes_for(a.units));
    const dim3 block(lanes, kMoveThreads / lanes);
    const int64_t rows = int64_t{block.y} * kRows, groups = ((gather ? a.tokens : a.places) + rows - 1) / rows;
    const auto grid = static_cast<unsigned>(std::min<int64_t>(groups, INT32_MAX));
    if (gather) {
        gather_rows<BYTES><<<grid, block, 0, stream>>>(a);
    } else {
        scatter_rows<BYTES><<<grid, block, 0, stream>>>(a);
    }
}

void launch(bool gather, const Arguments& a, int64_t row_bytes, int device, void* stream, const char* name) {
    require_at_least("tokens", a.tokens, 0);
    require_at_least("places", a.places, 0);
    require_at_least("row_bytes", row_bytes, 0);
    require_at_least("device", device, 0);
    if (row_bytes == 0 || (gather ? a.tokens : a.places) == 0) return;
    require_pointer("to", a.to, true);
    require_pointer("from", a.from, a.tokens > 0 && a.places > 0);
    require_pointer("indices", a.indices, a.tokens > 0);
    const DeviceGuard guard(device, name);
    const auto on = static_cast<cudaStream_t>(stream);
    const auto both = reinterpret_cast<uintptr_t>(a.from) | reinterpret_cast<uintptr_t>(a.to);
    const auto common = static_cast<uintptr_t>(row_bytes) | both;
    if (common % 16 == 0) {
        launch_units<16>(gather, a, row_bytes, on);
    } else if (common % 8 == 0) {
        launch_units<8>(gather, a, row_bytes, on);
    } else if (common % 4 == 0) {
        launch_units<4>(gather, a, row_bytes, on);
    } else if (common % 2 == 0) {
        launch_units<2>(gather, a, row_bytes, on);
    } else {
        launch_units<1>(gather, a, row_bytes, on);
    }
    check(cudaGetLastError(), name);
}

}  // namespace

void gather_rows_cuda(const void* from, int64_t places, const int64_t* indices, int64_t tokens, void* to,
                      int64_t row_bytes, int device, void* stream) {
    launch(true, {from, indices, to, tokens, places, 0}, row_bytes, device, stream, "gather_rows_cuda");
}

void scatter_rows_cuda(const void* from, const int64_t* indices, int64_t tokens, void* to, int64_t places,
                       int64_t row_bytes, int device, void* stream) {
    if (tokens > places) refuse("tokens must not be more than places: the indices are distinct");
    launch(false, {from, indices, to, tokens, places, 0}, row_bytes, device, stream, "scatter_rows_cuda");
}

}  // namespace bert_fast
