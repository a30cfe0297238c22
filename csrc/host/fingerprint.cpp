#include "host/fingerprint.h"

#include <algorithm>
#include <cstring>

#include "host/checks.h"

namespace bert_fast {
namespace {

// For a given hash every step maps different words to different hashes.
uint64_t mix(uint64_t hash, uint64_t word) {
    hash = (hash ^ word) * 0x9e3779b97f4a7c15u;
    return hash ^ hash >> 29;
}

uint64_t mix_buffer(uint64_t hash, const unsigned char* bytes, int64_t size, int64_t samples) {
    uint64_t word = 0;
    if (size <= 8) {
        if (size > 0) std::memcpy(&word, bytes, static_cast<size_t>(size));
        return mix(hash, word);
    }
    // Word i of n starts at i * (words - 1) / (n - 1), in parts so that nothing overflows.
    const int64_t words = (size + 7) / 8, n = std::min(words, samples);
    const int64_t quotient = (words - 1) / (n - 1), remainder = (words - 1) % (n - 1);
    for (int64_t i = 0; i < n; ++i) {
        const int64_t at = i * quotient + i * remainder / (n - 1);
        std::memcpy(&word, bytes + std::min(at * 8, size - 8), 8);
        hash = mix(hash, word);
    }
    return hash;
}

}  // namespace

uint64_t fingerprint(const std::vector<uintptr_t>& pointers, const std::vector<int64_t>& nbytes, int64_t samples) {
    if (pointers.size() != nbytes.size()) {
        refuse("pointers and nbytes must have the same length, got " + std::to_string(pointers.size()) + " and " +
               std::to_string(nbytes.size()));
    }
    require_at_least("samples", samples, 2);
    if (samples > INT32_MAX) refuse("samples must be below 2^31, got " + std::to_string(samples));
    uint64_t hash = mix(0, pointers.size());
    for (size_t i = 0; i < pointers.size(); ++i) {
        const auto* bytes = reinterpret_cast<const unsigned char*>(pointers[i]);
        require_at_least("nbytes", nbytes[i], 0);
        require_pointer("pointers", bytes, nbytes[i] > 0);
        hash = mix_buffer(mix(hash, static_cast<uint64_t>(nbytes[i])), bytes, nbytes[i], samples);
    }
    return hash;
}

}  // namespace bert_fast
