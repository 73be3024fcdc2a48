// What lies between a layer's products, each in one pass over memory: norms by root mean square, gates, and rotations.
//
// A row is computed by one thread in an order that its width alone decides: the same bits in any company.
#include "_common.h"

#include <algorithm>
#include <cmath>

// Mirrored field by field in fused.py. Widths are multiples of 16, and rows lie one behind the other.
struct Norm {
    const void *x, *weight;  // [rows, width], [width]
    void* y;
    int64_t rows;
    int32_t width, threads, rounded;  // rounded: before the weight is applied, too
    float epsilon, offset;            // offset is added to the weight
};

struct Gate {
    void* gate;  // [count], and where the product goes
    const void* up;
    int64_t count;
    int32_t threads, gelu;  // by tanh; else SiLU
};

// Mirrored in rotary.py. Heads are multiples of 32 numbers; those of a row's result lie one behind the other.
struct Rotary {
    const void *x, *cos, *sin;
    void* y;
    int64_t rows, x_row, x_head, angle_row;
    int32_t heads, size, threads;
};

namespace {

constexpr int64_t SMALL = 1 << 14;  // numbers below which a second thread costs more than it gains
constexpr int64_t PART = 1 << 12;   // numbers that a thread takes at a time

template <class T> void norm(const Norm& n, const T* x, T* y) {
    vec even{}, odd{};
    auto square = [&](int i) { const vec v = load(x + i); return v * v; };
    for (int i = 0; i < n.width; i += 2 * LANES) {
        even += square(i);
        if (i + LANES < n.width) odd += square(i + LANES);
    }
    const float factor = 1.f / std::sqrt(total(even + odd) / n.width + n.epsilon);
    for (int i = 0; i < n.width; i += LANES) {
        vec v = load(x + i) * factor;
        if (n.rounded) v = rounded_to<T>(v);
        keep(y + i, v * (load((const T*)n.weight + i) + n.offset));
    }
}

template <class T> void norms(const Norm& n) {
#pragma omp parallel for schedule(static) num_threads(n.threads) if (n.rows * n.width > SMALL)
    for (int64_t row = 0; row < n.rows; row++) norm<T>(n, (const T*)n.x + row * n.width, (T*)n.y + row * n.width);
}

template <class T> void gates(const Gate& g) {
    T* gate = (T*)g.gate;
    const T* up = (const T*)g.up;
#pragma omp parallel for schedule(static) num_threads(g.threads) if (g.count > SMALL)
    for (int64_t first = 0; first < g.count; first += PART)
        for (int64_t i = first; i < std::min(first + PART, g.count); i += LANES)
            keep(gate + i, gated<T>(load(gate + i), load(up + i), g.gelu));
}

// Number i of a head is turned with number i + size / 2; products are rounded as operations of their own would.
template <class T> inline void rotated(const T* x, const T* cos, const T* sin, T* y, int size) {
    const int half = size / 2;
    for (int i = 0; i < half; i += LANES) {
        const vec left = load(x + i), right = load(x + i + half);
        keep(y + i, rounded_to<T>(left * load(cos + i)) - rounded_to<T>(right * load(sin + i)));
        keep(y + i + half, rounded_to<T>(right * load(cos + i + half)) + rounded_to<T>(left * load(sin + i + half)));
    }
}

template <class T> void rotations(const Rotary& r) {
#pragma omp parallel for schedule(static) num_threads(r.threads) if (r.rows * r.heads * r.size > SMALL)
    for (int64_t row = 0; row < r.rows; row++)
        for (int head = 0; head < r.heads; head++)
            rotated((const T*)r.x + row * r.x_row + head * r.x_head, (const T*)r.cos + row * r.angle_row,
                    (const T*)r.sin + row * r.angle_row, (T*)r.y + (row * r.heads + head) * r.size, r.size);
}

}  // namespace

extern "C" int karat_norm_float32(const Norm* n) { norms<float>(*n); return 1; }
extern "C" int karat_norm_bfloat16(const Norm* n) { norms<bf16>(*n); return 1; }
extern "C" int karat_gate_float32(const Gate* g) { gates<float>(*g); return 1; }
extern "C" int karat_gate_bfloat16(const Gate* g) { gates<bf16>(*g); return 1; }
extern "C" int karat_rotary_float32(const Rotary* r) { rotations<float>(*r); return 1; }
extern "C" int karat_rotary_bfloat16(const Rotary* r) { rotations<bf16>(*r); return 1; }
