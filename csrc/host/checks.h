// What the entry points of host and CUDA code ask of their arguments. std::invalid_argument becomes ValueError.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace bert_fast {

[[noreturn]] inline void refuse(const std::string& message) { throw std::invalid_argument(message); }

inline void require_at_least(const char* name, int64_t value, int64_t least) {
    if (value < least) {
        refuse(std::string(name) + " must be at least " + std::to_string(least) + ", got " + std::to_string(value));
    }
}

inline void require_pointer(const char* name, const void* pointer, bool needed) {
    if (needed && pointer == nullptr) refuse(std::string(name) + " must not be null");
}

// B * S, with room to spare for the bytes of what is indexed by it.
inline int64_t checked_area(int64_t batch, int64_t seqlen) {
    require_at_least("batch", batch, 0);
    require_at_least("seqlen", seqlen, 0);
    if (seqlen > 0 && batch > INT64_MAX / 16 / seqlen) {
        refuse("batch * seqlen is too large: " + std::to_string(batch) + " * " + std::to_string(seqlen));
    }
    return batch * seqlen;
}

}  // namespace bert_fast
