// What the kernels share.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

// Room of a thread that is kept between calls, since new memory is slow, up to a size.
struct Room {
    static constexpr size_t KEPT = 32 << 20;
    std::unique_ptr<void, decltype(&std::free)> held{nullptr, std::free};
    size_t size = 0;
    // Null where there is no memory.
    template <class T> T* of(size_t count) {
        if (count * sizeof(T) > size) {
            held.reset();
            size = (count * sizeof(T) + 63) / 64 * 64;
            held.reset(std::aligned_alloc(64, size));
            if (!held) size = 0;
        }
        return (T*)held.get();
    }
    void end() {
        if (size <= KEPT) return;
        held.reset();
        size = 0;
    }
};

#if defined(__AVX512BW__)
// 16 by 16 words of 4 bytes.
inline void transpose(__m512i* r) {
    __m512i t[16];
    for (int i = 0; i < 8; i++) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            r[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
            r[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
        }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 2; j++) {
            t[8 * j + i] = _mm512_shuffle_i32x4(r[8 * j + i], r[8 * j + 4 + i], 0x88);
            t[8 * j + 4 + i] = _mm512_shuffle_i32x4(r[8 * j + i], r[8 * j + 4 + i], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    }
}
#endif

#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define AMX 1  // matrix tiles of 16 rows by 64 bytes
#include <sys/syscall.h>
#include <unistd.h>

// The process has to ask the system for its tile registers.
inline bool tiles_granted() {
    constexpr int ASK_FOR_STATE = 0x1023, TILES = 18;
    static const bool granted = syscall(SYS_arch_prctl, ASK_FOR_STATE, TILES) == 0;
    return granted;
}

// Eight tiles, each whole: 16 rows of 64 bytes. In memory from the start, as some compilers think that 8 bytes are read.
struct Shape { uint8_t palette, start, none[14]; uint16_t bytes[16]; uint8_t rows[16]; };
alignas(64) const Shape SHAPE = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64}, {16, 16, 16, 16, 16, 16, 16, 16}};
#endif
