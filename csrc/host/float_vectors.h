// Vectors of kWidth floats, for files compiled for one instruction set, which include this within a namespace of their
// own; kWidth is the includer's, with the instructions. Nothing here may call what another header defines.
// BERT_FAST_AVX512 and BERT_FAST_BF16_PAIRS: whether these may be AVX-512's, and AVX512_BF16's product of pairs.

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t IntVec __attribute__((vector_size(4 * kWidth)));
typedef uint32_t BitVec __attribute__((vector_size(4 * kWidth)));
typedef uint16_t ShortVec __attribute__((vector_size(2 * kWidth)));

inline int64_t whole_vectors(int64_t n) { return (n + kWidth - 1) / kWidth * kWidth; }

inline Vec load(const float* p) {
    Vec x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}

inline void store(float* p, Vec x) { __builtin_memcpy(p, &x, sizeof x); }

// The first elements at p, n of them if n is less than fit; the others are 0.
template <typename V, typename T>
inline V bits_of(const T* p, int64_t n) {
    constexpr int64_t kElements = sizeof(V) / sizeof(T);
    V x = {};
    if (n >= kElements) {
        __builtin_memcpy(&x, p, sizeof x);
    } else {
        __builtin_memcpy(&x, p, n * sizeof(T));
    }
    return x;
}

inline Vec widened(ShortVec x) { return (Vec)(__builtin_convertvector(x, BitVec) << 16); }

// The nearest bfloat16, ties to even; a NaN keeps its sign and is quiet.
inline ShortVec narrowed(Vec x) {
#ifdef BERT_FAST_BF16_PAIRS
    return (ShortVec)_mm512_cvtneps_pbh((__m512)x);
#else
    const BitVec bits = (BitVec)x;
    const BitVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return __builtin_convertvector(x == x ? rounded : (bits >> 16 | 0x40), ShortVec);
#endif
}

inline void store(uint16_t* p, Vec x) {
    const ShortVec y = narrowed(x);
    __builtin_memcpy(p, &y, sizeof y);
}

// The first n elements only, where n may be above kWidth.
template <typename T>
inline void store_some(T* p, Vec x, int64_t n) {
    if (n >= kWidth) return store(p, x);
    T staged[kWidth];
    store(staged, x);
    __builtin_memcpy(p, staged, n * sizeof(T));
}

// Two bfloat16 in the bits of each lane, the first in the lower half.
inline Vec pairs_of(ShortVec first, ShortVec second) {
    return (Vec)(__builtin_convertvector(first, BitVec) | __builtin_convertvector(second, BitVec) << 16);
}

// 2^x for x <= 0 within 2 units in the last place; 0 far below the smallest normal number.
inline Vec exp2_of(Vec x) {
#ifdef BERT_FAST_AVX512
    // With masks of ones, which compile to nothing: GCC warns of what the forms without a mask leave undefined.
    x = x < -200.0f ? Vec{} - 200.0f : x;  // a NaN stays
    const Vec whole = (Vec)_mm512_maskz_roundscale_ps(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Vec f = x - whole;
#else
    x = x < -127.0f ? Vec{} - 127.0f : x;  // a NaN stays
    const Vec shifted = x + 12582912.0f;   // 1.5 * 2^23: the sum's last bits are x rounded to an integer
    const Vec f = x - (shifted - 12582912.0f);
#endif
    Vec y = f * 1.5403530e-4f + 1.3333558e-3f;
    y = f * y + 9.6181291e-3f;
    y = f * y + 5.5504109e-2f;
    y = f * y + 2.4022651e-1f;
    y = f * y + 6.9314718e-1f;
    y = f * y + 1.0f;
#ifdef BERT_FAST_AVX512
    return (Vec)_mm512_maskz_scalef_ps(0xffff, (__m512)y, (__m512)whole);
#else
    return y * (Vec)(((IntVec)shifted + (127 - 0x4b400000)) << 23);
#endif
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
