#pragma once

#include <cstdint>
#include <vector>

namespace bert_fast {

// A 64-bit hash of the sizes of some buffers and of `samples` evenly spaced 8-byte words of each, its first and last
// bytes included (all words of a buffer that has fewer). A change of any one sampled word changes the hash.
uint64_t fingerprint(const std::vector<uintptr_t>& pointers, const std::vector<int64_t>& nbytes, int64_t samples);

}  // namespace bert_fast
