// Threads for host code: PyTorch's own.
#pragma once

#include <cstdint>

namespace bert_fast {

// GOMP_parallel of the OpenMP runtime that PyTorch has in this process: runs body(data) in `threads` of its threads.
// A pool of our own would compete for the cores with PyTorch's, whose threads spin for a while after each of its ops.
using ParallelFunction = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);

}  // namespace bert_fast
