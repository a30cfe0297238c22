// What the entry points of several kernels ask of their arguments, and make of them.
#pragma once

#include <cmath>
#include <initializer_list>

#include "cuda/api.h"
#include "host/checks.h"
#include "shared/dropout.h"

namespace bert_fast {

inline bool all_aligned(std::initializer_list<const void*> pointers) {
    for (const void* pointer : pointers) {
        if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
    }
    return true;
}

// The threshold is round(p * 2^32), ties to even as in Python, and no more than a word can hold.
inline Dropout dropout_of(const DropoutOptions& options) {
    if (!(options.p >= 0 && options.p <= 1)) refuse("p must be from 0 to 1, got " + std::to_string(options.p));
    if (options.p == 0) return {nullptr, 0, 0, 1.0f};
    require_pointer("seed, where p is above 0,", options.seed, true);
    const double threshold = std::fmin(std::nearbyint(options.p * 4294967296.0), 4294967295.0);
    const double scale = options.p == 1 ? 0.0 : 1.0 / (1.0 - options.p);
    return {options.seed, static_cast<uint32_t>(options.site), static_cast<uint32_t>(threshold),
            static_cast<float>(scale)};
}

inline void require_width(int64_t hidden) {
    require_at_least("hidden", hidden, 1);
    if (hidden > INT32_MAX / 2) refuse("hidden must be below 2^30, got " + std::to_string(hidden));
}

inline void require_embedding(const EmbeddingInputs& inputs) {
    require_at_least("tokens", inputs.tokens, 0);
    require_width(inputs.hidden);
    require_at_least("vocab", inputs.vocab, 1);
    require_at_least("positions", inputs.positions, 1);
    require_at_least("types", inputs.types, 1);
    if (inputs.tokens == 0) return;
    require_pointer("input_ids", inputs.input_ids, true);
    require_pointer("position_ids", inputs.position_ids, true);
    for (const void* table : {inputs.word, inputs.position, inputs.type, inputs.gamma}) {
        require_pointer("word, position, type and gamma", table, true);
    }
}

}  // namespace bert_fast
