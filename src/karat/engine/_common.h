// What the kernels share.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#if defined(__AVX512F__) || defined(__FMA__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;  // floats in a vector
#else
constexpr int LANES = 8;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));
struct bf16 { uint16_t bits; };

inline vec load(const float* p) { vec v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, vec v) { std::memcpy(p, &v, sizeof v); }
#if defined(__AVX512F__)
inline vec splat(float x) { return (vec)_mm512_set1_ps(x); }
constexpr ivec COUNT = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
#else
inline vec splat(float x) { return vec{x, x, x, x, x, x, x, x}; }
constexpr ivec COUNT = {0, 1, 2, 3, 4, 5, 6, 7};
#endif

inline void convert(float x, float& to) { to = x; }
inline void convert(bf16 x, bf16& to) { to = x; }
inline void convert(bf16 x, float& to) { uint32_t u = (uint32_t)x.bits << 16; std::memcpy(&to, &u, 4); }
inline void convert(float x, bf16& to) {  // to the nearest, ties to even
    uint32_t u; std::memcpy(&u, &x, 4);
    to.bits = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

// As many numbers as a vector has; kept ones are rounded as above.
inline vec load(const bf16* p) {
#if defined(__AVX512F__)
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16);
#else
    vec v;
    for (int i = 0; i < LANES; i++) {
        float one; convert(p[i], one);
        v[i] = one;
    }
    return v;
#endif
}
inline void keep(float* to, vec v) { store(to, v); }
inline void keep(bf16* to, vec v) {
#if defined(__AVX512BF16__)
    __m256bh half = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(to, &half, sizeof half);
#else
    for (int i = 0; i < LANES; i++) convert(v[i], to[i]);
#endif
}

// As a number of T has it.
template <class T> inline vec rounded_to(vec v) {
    T there[LANES];
    keep(there, v);
    return load(there);
}

inline float total(vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] += v[i + width];
    return v[0];
#endif
}

// e^x for x <= 0, to about 1e-7 of its value: 2^n times the Taylor terms of what is left.
inline vec exponential(vec x) {
    vec t = x * 1.44269504088896341f;
    t = t < -126.f ? splat(-126.f) : t;
    vec rounded = (t + 12582912.f) - 12582912.f, f = t - rounded;
    vec p = splat(1.535336188319500e-4f);
    p = p * f + 1.339887440266574e-3f;
    p = p * f + 9.618437357674640e-3f;
    p = p * f + 5.550332471162809e-2f;
    p = p * f + 2.402264791363012e-1f;
    p = p * f + 6.931472028550421e-1f;
    p = p * f + 1.f;
    return (vec)((ivec)p + (__builtin_convertvector(rounded, ivec) << 23));
}

// x / (1 + e^-z) * up, rounded to T between as two operations would: z is x for SiLU, and 2 √(2/π) (x + 0.044715 x³) for
// GELU by tanh, since 1 + tanh u is 2 / (1 + e^-2u).
template <class T> inline vec gated(vec x, vec up, bool gelu) {
    const vec z = gelu ? 1.5957691216057308f * (x + 0.044715f * x * x * x) : x;
    const vec e = exponential(z < 0.f ? z : -z), share = (z < 0.f ? e : splat(1.f)) / (1.f + e);
    return rounded_to<T>(x * share) * up;
}

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
