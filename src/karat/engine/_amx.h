// The CPU's matrix tiles (AMX), where it has them for bfloat16.
#pragma once
#include <cstdint>
#if defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define AMX 1
#include <immintrin.h>
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
