// Attention of one head of one sequence, in vectors of kWidth floats and tiles of up to kRows queries. Compiled once for
// each instruction set, in a namespace of its own: attention_avx2.cpp and attention_avx512.cpp include this in the middle.
// Nothing from the standard library is called: what a header defines must not be compiled for instructions that the
// machine may not have.
//
// Keys are transposed once into panels [D][2 * kWidth], the last one [D][kWidth] where that is enough, so that a tile of
// scores is a product with queries broadcast from memory; values are copied to float32 rows. A tile's scores, kRows * S
// floats, stay in the first-level cache up to about S = 512: softmax takes its rows as a whole, without rescaling.

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t IntVec __attribute__((vector_size(4 * kWidth)));
typedef uint32_t BitVec __attribute__((vector_size(4 * kWidth)));
typedef uint16_t ShortVec __attribute__((vector_size(2 * kWidth)));

constexpr int64_t kPanel = 2 * kWidth;

inline int64_t whole_vectors(int64_t n) { return (n + kWidth - 1) / kWidth * kWidth; }

inline Vec load(const float* p) {
    Vec x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}

inline Vec load(const uint16_t* p) {
    ShortVec x;
    __builtin_memcpy(&x, p, sizeof x);
    return (Vec)(__builtin_convertvector(x, BitVec) << 16);
}

inline void store(float* p, Vec x) { __builtin_memcpy(p, &x, sizeof x); }

// Rounds to the nearest bfloat16, ties to even; a NaN keeps its sign and is quiet.
inline void store(uint16_t* p, Vec x) {
    const BitVec bits = (BitVec)x;
    const BitVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const ShortVec y = __builtin_convertvector(x == x ? rounded : (bits >> 16 | 0x40), ShortVec);
    __builtin_memcpy(p, &y, sizeof y);
}

// The same for the first n elements only, where n may be above kWidth; the other lanes are 0, and left alone.
template <typename T>
inline Vec load_some(const T* p, int64_t n) {
    if (n >= kWidth) return load(p);
    T staged[kWidth] = {};
    __builtin_memcpy(staged, p, n * sizeof(T));
    return load(staged);
}

template <typename T>
inline void store_some(T* p, Vec x, int64_t n) {
    if (n >= kWidth) return store(p, x);
    T staged[kWidth];
    store(staged, x);
    __builtin_memcpy(p, staged, n * sizeof(T));
}

template <typename T>
T* row_of(const RowsOfHeads& x, int64_t row) {
    return reinterpret_cast<T*>(x.data + row * x.row);
}

// 2^x for x <= 0 within 2 units in the last place; 0 below 2^-126.
inline Vec exp2_of(Vec x) {
    x = x < -127.0f ? Vec{} - 127.0f : x;  // a NaN stays
    const Vec shifted = x + 12582912.0f;   // 1.5 * 2^23: the sum's last bits are x rounded to an integer
    const Vec f = x - (shifted - 12582912.0f);
    Vec y = f * 1.5403530e-4f + 1.3333558e-3f;
    y = f * y + 9.6181291e-3f;
    y = f * y + 5.5504109e-2f;
    y = f * y + 2.4022651e-1f;
    y = f * y + 6.9314718e-1f;
    y = f * y + 1.0f;
    const Vec power = (Vec)(((IntVec)shifted + (127 - 0x4b400000)) << 23);
    return y * power;
}

#ifdef __clang__
template <typename Pick, size_t... kLane>
inline Vec pick_lanes(Vec x, Vec y, Pick pick, std::index_sequence<kLane...>) {
    return __builtin_shufflevector(x, y, pick(static_cast<int>(kLane))...);
}
#endif

// The lanes of x and y side by side, picked by number.
template <typename Pick>
inline Vec shuffle(Vec x, Vec y, Pick pick) {
#ifdef __clang__
    return pick_lanes(x, y, pick, std::make_index_sequence<kWidth>());
#else
    IntVec lanes = {};
    for (int i = 0; i < kWidth; ++i) lanes[i] = pick(i);
    return __builtin_shuffle(x, y, lanes);
#endif
}

template <int kStep>
inline Vec exchanged(Vec x) {
    return shuffle(x, x, [](int lane) { return lane ^ kStep; });
}

template <int kStep = kWidth / 2>
inline float largest(Vec x) {
    const Vec other = exchanged<kStep>(x);
    x = other > x ? other : x;
    if constexpr (kStep > 1) return largest<kStep / 2>(x);
    return x[0];
}

template <int kStep = kWidth / 2>
inline float sum_of(Vec x) {
    x += exchanged<kStep>(x);
    if constexpr (kStep > 1) return sum_of<kStep / 2>(x);
    return x[0];
}

// In place: rows[i][j] becomes rows[j][i]. Each step exchanges the blocks of kStep beside the diagonal.
template <int kStep = 1>
inline void transpose(Vec (&rows)[kWidth]) {
    for (int i = 0; i < kWidth; ++i) {
        if ((i & kStep) != 0) continue;
        const Vec x = rows[i], y = rows[i + kStep];
        rows[i] = shuffle(x, y, [](int lane) { return (lane & kStep) == 0 ? lane : kWidth + lane - kStep; });
        rows[i + kStep] = shuffle(x, y, [](int lane) { return (lane & kStep) == 0 ? lane + kStep : kWidth + lane; });
    }
    if constexpr (2 * kStep < kWidth) transpose<2 * kStep>(rows);
}

// scores [kTile][stride] of a panel's kVecs * kWidth keys: queries [kTile][D] times panel [D][kVecs * kWidth].
template <int kTile, int kVecs>
void score_panel(const float* queries, const float* panel, int64_t head_dim, float* scores, int64_t stride) {
    Vec sums[kTile][kVecs] = {};
    for (int64_t d = 0; d < head_dim; ++d) {
        Vec keys[kVecs];
        for (int i = 0; i < kVecs; ++i) keys[i] = load(panel + (d * kVecs + i) * kWidth);
        for (int r = 0; r < kTile; ++r) {
            for (int i = 0; i < kVecs; ++i) sums[r][i] += queries[r * head_dim + d] * keys[i];
        }
    }
    for (int r = 0; r < kTile; ++r) {
        for (int i = 0; i < kVecs; ++i) store(scores + r * stride + i * kWidth, sums[r][i]);
    }
}

// Turns a row of `keys` scores (whole vectors, in log2 units) into the weights 2^(score - largest), in place. Scores from
// `length` on and those of hidden keys are ignored, and get no weight. Returns the weights' sum, 0 if nothing is seen.
inline float weigh(float* scores, int64_t length, int64_t keys, const uint8_t* visible) {
    for (int64_t j = length; j < keys; ++j) scores[j] = -__builtin_inff();
    if (visible != nullptr) {
        for (int64_t j = 0; j < length; ++j) scores[j] = visible[j] != 0 ? scores[j] : -__builtin_inff();
    }
    Vec most = load(scores);
    for (int64_t j = kWidth; j < keys; j += kWidth) {
        const Vec x = load(scores + j);
        most = x > most ? x : most;
    }
    const float top = largest(most);
    if (top == -__builtin_inff()) {  // nothing is seen, or only what is no number, which the comparisons pass over
        for (int64_t j = 0; j < length; ++j) {
            if (scores[j] != scores[j]) return scores[j];
        }
        return 0;
    }
    Vec sums = {};
    for (int64_t j = 0; j < keys; j += kWidth) {
        const Vec weight = exp2_of(load(scores + j) - top);
        store(scores + j, weight);
        sums += weight;
    }
    return sum_of(sums);
}

// Columns d .. d + kVecs * kWidth of weights [kTile][stride] times values [length][width], times `inverse`, one number a
// row. The last columns may lie beyond the head's.
template <int kTile, int kVecs, typename T>
void mix_values(const float* weights, int64_t stride, const float* values, int64_t width, int64_t length,
                const float* inverse, int64_t d, const AttentionItem& item, int64_t first) {
    Vec mixed[kTile][kVecs] = {};
    for (int64_t j = 0; j < length; ++j) {
        Vec columns[kVecs];
        for (int i = 0; i < kVecs; ++i) columns[i] = load(values + j * width + d + i * kWidth);
        for (int r = 0; r < kTile; ++r) {
            for (int i = 0; i < kVecs; ++i) mixed[r][i] += weights[r * stride + j] * columns[i];
        }
    }
    for (int r = 0; r < kTile; ++r) {
        for (int i = 0; i < kVecs; ++i) {
            store_some(row_of<T>(item.out, first + r) + d + i * kWidth, mixed[r][i] * inverse[r],
                       item.head_dim - d - i * kWidth);
        }
    }
}

// Where one item's working memory lies. keys and width: the length and the head dim in whole vectors.
struct Scratch {
    int64_t keys, width;
    float *panels, *values, *scores, *queries;

    Scratch(int64_t length, int64_t head_dim, float* memory)
        : keys(whole_vectors(length)), width(whole_vectors(head_dim)), panels(memory), values(panels + keys * head_dim),
          scores(values + keys * width), queries(scores + kRows * keys) {}
};

int64_t scratch_floats(int64_t length, int64_t head_dim) {
    const Scratch all(length, head_dim, nullptr);
    return all.keys * (head_dim + all.width + kRows) + kRows * head_dim;
}

// Hidden keys and values are packed as zeros: a NaN there would outlive the weight of 0.
inline bool seen(const AttentionItem& item, int64_t key) {
    return key < item.length && (item.visible == nullptr || item.visible[key] != 0);
}

template <typename T>
void pack_keys(const AttentionItem& item, const Scratch& scratch) {
    const int64_t head_dim = item.head_dim;
    for (int64_t key = 0; key < scratch.keys; key += kWidth) {
        const int64_t panel = key / kPanel * kPanel;
        const int64_t step = scratch.keys - panel < kPanel ? kWidth : kPanel;
        float* target = scratch.panels + panel * head_dim + (key - panel);
        for (int64_t d = 0; d < head_dim; d += kWidth) {
            Vec rows[kWidth];
            for (int i = 0; i < kWidth; ++i) {
                rows[i] = seen(item, key + i) ? load_some(row_of<T>(item.k, key + i) + d, head_dim - d) : Vec{};
            }
            transpose(rows);
            const int64_t columns = head_dim - d < kWidth ? head_dim - d : kWidth;
            for (int64_t i = 0; i < columns; ++i) store(target + (d + i) * step, rows[i]);
        }
    }
}

template <typename T>
void pack_values(const AttentionItem& item, const Scratch& scratch) {
    for (int64_t key = 0; key < item.length; ++key) {
        for (int64_t d = 0; d < scratch.width; d += kWidth) {
            const T* source = row_of<T>(item.v, key) + d;
            store(scratch.values + key * scratch.width + d, seen(item, key) ? load_some(source, item.head_dim - d) : Vec{});
        }
    }
}

template <typename T, int kTile>
void attend_tile(const AttentionItem& item, const Scratch& scratch, int64_t first) {
    const int64_t head_dim = item.head_dim, keys = scratch.keys, width = scratch.width;
    for (int r = 0; r < kTile; ++r) {
        for (int64_t d = 0; d < head_dim; d += kWidth) {
            const Vec x = load_some(row_of<T>(item.q, first + r) + d, head_dim - d);
            store_some(scratch.queries + r * head_dim + d, x * item.scale_log2, head_dim - d);
        }
    }
    int64_t key = 0;
    for (; key + kPanel <= keys; key += kPanel) {
        score_panel<kTile, 2>(scratch.queries, scratch.panels + key * head_dim, head_dim, scratch.scores + key, keys);
    }
    if (key < keys) {
        score_panel<kTile, 1>(scratch.queries, scratch.panels + key * head_dim, head_dim, scratch.scores + key, keys);
    }
    float inverse[kTile];
    for (int r = 0; r < kTile; ++r) {
        float* row = scratch.scores + r * keys;
        const float sum = weigh(row, item.length, keys, item.visible);
        inverse[r] = 1 / sum;
        if (sum == 0) {  // nothing is seen
            for (int64_t j = 0; j < keys; ++j) row[j] = 0;
            inverse[r] = 0;
        }
    }
    int64_t d = 0;
    for (; d + kPanel <= width; d += kPanel) {
        mix_values<kTile, 2, T>(scratch.scores, keys, scratch.values, width, item.length, inverse, d, item, first);
    }
    if (d < width) {
        mix_values<kTile, 1, T>(scratch.scores, keys, scratch.values, width, item.length, inverse, d, item, first);
    }
}

// attend_tile<T, rows> for 1 <= rows <= kTile.
template <typename T, int kTile>
void attend_rows(const AttentionItem& item, const Scratch& scratch, int64_t first, int64_t rows) {
    if (rows == kTile) {
        attend_tile<T, kTile>(item, scratch, first);
    } else if constexpr (kTile > 1) {
        attend_rows<T, kTile - 1>(item, scratch, first, rows);
    }
}

template <typename T>
void attend(const AttentionItem& item, float* memory) {
    const Scratch scratch(item.length, item.head_dim, memory);
    pack_keys<T>(item, scratch);
    pack_values<T>(item, scratch);
    // Tiles of equal height, not full ones and a rest.
    const int64_t tiles = (item.last - item.first + kRows - 1) / kRows;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = item.first + (item.last - item.first) * tile / tiles;
        const int64_t end = item.first + (item.last - item.first) * (tile + 1) / tiles;
        attend_rows<T, kRows>(item, scratch, first, end - first);
    }
}
