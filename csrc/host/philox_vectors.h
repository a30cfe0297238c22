// Philox4x32-10 in vectors Vec of 64-bit elements, of which products read the low halves alone: what the rounds leave
// in the high ones is only cleared at the end. Included by philox_lanes.cpp once for each instruction set, in a
// namespace of its own; nothing from the standard library is called, as in attention_item.h.

inline void draw(PhiloxLanes& lanes, uint32_t pass, uint64_t seed) {
    constexpr int kWords = sizeof(Vec) / sizeof(uint64_t), kVecs = kLanes / kWords;
    const Vec multiplier0 = Vec{} + 0xD2511F53u, multiplier2 = Vec{} + 0xCD9E8D57u, low_halves = Vec{} + 0xFFFFFFFFu;
    Vec c0[kVecs], c1[kVecs], c2[kVecs], c3[kVecs];
    for (int v = 0; v < kVecs; ++v) {
        __builtin_memcpy(&c0[v], lanes.block + v * kWords, sizeof(Vec));
        c1[v] = Vec{} + pass;
        __builtin_memcpy(&c2[v], lanes.low + v * kWords, sizeof(Vec));
        __builtin_memcpy(&c3[v], lanes.high + v * kWords, sizeof(Vec));
    }
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const Vec key0 = Vec{} + k0, key1 = Vec{} + k1;
        for (int v = 0; v < kVecs; ++v) {
            const Vec product0 = product(c0[v], multiplier0), product2 = product(c2[v], multiplier2);
            c0[v] = (product2 >> 32) ^ c1[v] ^ key0;
            c1[v] = product2;
            c2[v] = (product0 >> 32) ^ c3[v] ^ key1;
            c3[v] = product0;
        }
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    for (int v = 0; v < kVecs; ++v) {
        const Vec first = (c0[v] & low_halves) | (c1[v] << 32);
        const Vec last = (c2[v] & low_halves) | (c3[v] << 32);
        __builtin_memcpy(lanes.first + v * kWords, &first, sizeof(Vec));
        __builtin_memcpy(lanes.last + v * kWords, &last, sizeof(Vec));
    }
}
