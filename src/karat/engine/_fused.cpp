// What lies between a layer's products, each in one pass over memory: norms by root mean square, and gates.
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
    int32_t threads;
};

namespace {

constexpr int64_t SMALL = 1 << 14;  // numbers below which a second thread costs more than it gains
constexpr int64_t PART = 1 << 12;   // numbers that a thread takes at a time

// As a number of T has it.
template <class T> inline vec rounded_to(vec v) {
    T there[LANES];
    keep(there, v);
    return load(there);
}

template <class T> void norm(const Norm& n, const T* x, T* y) {
    vec squares[2] = {};
    for (int i = 0; i < n.width; i += LANES) {
        const vec v = load(x + i);
        squares[i / LANES % 2] += v * v;
    }
    const float factor = 1.f / std::sqrt(total(squares[0] + squares[1]) / n.width + n.epsilon);
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

// x / (1 + e^-x) * up, rounded between as two operations would.
template <class T> inline void gated(T* gate, const T* up) {
    const vec x = load(gate), e = exponential(x < 0.f ? x : -x);
    const vec share = (x < 0.f ? e : splat(1.f)) / (1.f + e);
    keep(gate, rounded_to<T>(x * share) * load(up));
}

template <class T> void gates(const Gate& g) {
    T* gate = (T*)g.gate;
    const T* up = (const T*)g.up;
#pragma omp parallel for schedule(static) num_threads(g.threads) if (g.count > SMALL)
    for (int64_t first = 0; first < g.count; first += PART)
        for (int64_t i = first; i < std::min(first + PART, g.count); i += LANES) gated(gate + i, up + i);
}

}  // namespace

extern "C" int karat_norm_float32(const Norm* n) { norms<float>(*n); return 1; }
extern "C" int karat_norm_bfloat16(const Norm* n) { norms<bf16>(*n); return 1; }
extern "C" int karat_gate_float32(const Gate* g) { gates<float>(*g); return 1; }
extern "C" int karat_gate_bfloat16(const Gate* g) { gates<bf16>(*g); return 1; }
