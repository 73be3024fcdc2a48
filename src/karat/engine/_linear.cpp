// Products of bfloat16 rows with a layer's weights in a CPU's matrix tiles: y = x Wᵀ + b, summed in float32;
// or with those of two layers, of which one is the other's gate: y = act(x Gᵀ + c) (x Wᵀ + b).
//
// A number's additions go through the depth from its beginning to its end, however many rows there are: the same bits
// in any company. Weights are read as they lie. It is x whose numbers are brought into the pairs that tiles multiply,
// as it is mostly the smaller one; the tiles then hold yᵀ.
#include "_common.h"

#if AMX
#include <algorithm>
#include <atomic>
#include <omp.h>

namespace {

constexpr int DEPTH = 256;         // numbers of a sum in a go: 32 rows of weights of this depth stay in the L1 cache
constexpr int64_t BYTES = 1 << 20; // of x in a go: they stay in the L2 cache
constexpr int64_t LARGE = 1 << 21; // bytes of y that no cache would keep: they are written past it
constexpr int FEW = 96;            // rows from which on each thread takes rows of its own, and not weights

// Up to 16 rows of x → [depth / 32][16 pairs][16 rows][2], zeros for rows that are not there.
inline void pack(const bf16* x, int64_t stride, int rows, int depth, bf16* to) {
    for (int d = 0; d < depth; d += 32, to += 512) {
        __m512i r[16];
        for (int i = 0; i < 16; i++) r[i] = i < rows ? _mm512_loadu_si512(x + i * stride + d) : _mm512_setzero_si512();
        transpose(r);
        for (int i = 0; i < 16; i++) _mm512_store_si512(to + i * 32, r[i]);
    }
}

// Sums of 16 rows at a column, with its bias.
inline vec summed(const float* sums, const bf16* bias, int column) {
    const vec own = load(sums + 16 * column);
    if (!bias) return own;
    float one; convert(bias[column], one);
    return own + one;
}

// 32 columns of up to 16 rows → y, at whole lines of the cache; value(i) is what 16 rows have at a column.
template <class Value> inline void keep(Value value, bf16* y, int64_t stride, int rows, bool large) {
    const __m512i in_turn = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                             23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512i r[16];
    for (int i = 0; i < 16; i++) {
        const __m512bh both = _mm512_cvtne2ps_pbh((__m512)value(2 * i + 1), (__m512)value(2 * i));
        r[i] = _mm512_permutexvar_epi16(in_turn, (__m512i)both);
    }
    transpose(r);
    if (large)
        for (int i = 0; i < rows; i++) _mm512_stream_si512((__m512i*)(y + i * stride), r[i]);
    else
        for (int i = 0; i < rows; i++) _mm512_store_si512(y + i * stride, r[i]);
}

}  // namespace

// Mirrored field by field in linear.py. Shapes and strides are in numbers; depth and width are multiples of 32.
struct Product {
    const bf16 *x, *weight, *bias;  // [rows, depth], [width, depth], [width] or null
    const bf16 *gate, *gate_bias;   // as weight, or null, and as bias
    bf16* y;                        // [rows, width]
    int64_t rows, stride;           // of x
    int32_t depth, width, threads, gelu;  // gelu: by tanh, is the gate's activation; else SiLU
};

namespace {

// Rows of x, packed → their sums with the 32 rows of weights from `low` on: [rows / 16][32][16]; `done` is told of each
// 32 rows. A sum is kept in memory between two depths.
template <class Done>
void multiply(const bf16* packed, int rows, const bf16* low, int depth, float* sums, Done done) {
    const bf16* high = low + 16 * (int64_t)depth;
    for (int from = 0; from < depth; from += DEPTH) {
        const int to = std::min(depth, from + DEPTH);
        const bf16* next = to < depth ? low + to : low + 32 * (int64_t)depth;  // weights wanted soon
        for (int row = 0; row < rows; row += 32) {
            const bf16 *left = packed + (int64_t)row * depth, *right = left + 16 * (int64_t)depth;
            float* s = sums + row * 32;
            for (int i = row / 8; i < std::min(32, row / 8 + 4); i++)
                for (int d = 0; d < DEPTH; d += 32) _mm_prefetch(next + i * (int64_t)depth + d, _MM_HINT_T1);
            std::atomic_signal_fence(std::memory_order_seq_cst);  // compilers do not see that tiles read memory
            if (from) {
                _tile_loadd(0, s, 64); _tile_loadd(1, s + 256, 64);
                _tile_loadd(2, s + 512, 64); _tile_loadd(3, s + 768, 64);
            } else {
                _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
            }
            for (int d = from; d < to; d += 32) {
                _tile_loadd(4, low + d, 2 * depth);
                _tile_loadd(6, left + 16 * d, 64); _tile_loadd(7, right + 16 * d, 64);
                _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(2, 4, 7);
                _tile_loadd(5, high + d, 2 * depth);
                _tile_dpbf16ps(1, 5, 6); _tile_dpbf16ps(3, 5, 7);
            }
            _tile_stored(0, s, 64); _tile_stored(1, s + 256, 64);
            _tile_stored(2, s + 512, 64); _tile_stored(3, s + 768, 64);
            std::atomic_signal_fence(std::memory_order_seq_cst);
            if (to == depth) done(row);
        }
    }
}

// Rows of x, packed → 32 columns of y from `column` on; sums has room for 32 floats a row, and as many for a gate's.
void columns(const Product& p, const bf16* packed, int64_t first, int rows, int column, float* sums) {
    const bool large = 2 * p.rows * p.width > LARGE;
    const int64_t weights = (int64_t)column * p.depth;
    const bf16* bias = p.bias ? p.bias + column : nullptr;
    const bf16* gate_bias = p.gate_bias ? p.gate_bias + column : nullptr;
    float* gates = sums + ((rows + 31) / 32 * 32) * 32;
    if (p.gate) multiply(packed, rows, p.gate + weights, p.depth, gates, [](int) {});
    multiply(packed, rows, p.weight + weights, p.depth, sums, [&](int row) {
        for (int from = row; from < std::min(rows, row + 32); from += 16) {
            const float *s = sums + from * 32, *g = gates + from * 32;
            bf16* y = p.y + (first + from) * p.width + column;
            const int count = std::min(16, rows - from);
            auto value = [&](int i) { return summed(s, bias, i); };
            auto gated_value = [&](int i) {
                return gated<bf16>(rounded_to<bf16>(summed(g, gate_bias, i)), rounded_to<bf16>(value(i)), p.gelu);
            };
            if (p.gate) keep(gated_value, y, p.width, count, large);
            else keep(value, y, p.width, count, large);
        }
    });
}

}  // namespace

extern "C" int karat_has_tiles() { return tiles_granted(); }

// Whether there was memory for it.
extern "C" int karat_linear(const Product* product) {
    static thread_local Room room;
    const Product& p = *product;
    const int64_t most = std::max<int64_t>(FEW, BYTES / (2 * p.depth) / 32 * 32);
    const bool few = p.rows < FEW;
    int64_t parts = (p.rows + most - 1) / most;
    if (!few) parts = (parts + p.threads - 1) / p.threads * p.threads;
    const int64_t size = ((p.rows + parts - 1) / parts + 31) / 32 * 32;  // rows of a part
    parts = (p.rows + size - 1) / size;
    const int64_t packs = few ? 1 : p.threads, sums_size = (p.gate ? 64 : 32) * size;
    float* all_sums = room.of<float>(p.threads * sums_size + packs * size * p.depth / 2);
    if (!all_sums) return 0;
    bf16* all_packed = (bf16*)(all_sums + p.threads * sums_size);
#pragma omp parallel num_threads(p.threads)
    {
        const int me = omp_get_thread_num();
        float* sums = all_sums + me * sums_size;
        bf16* packed = all_packed + (few ? 0 : me * size * p.depth);
        auto pack_part = [&](int64_t block, int64_t first, int64_t rows) {
            pack(p.x + (first + block * 16) * p.stride, p.stride, (int)(rows - block * 16), p.depth, packed + block * 16 * p.depth);
        };
        _tile_loadconfig(&SHAPE);
        if (few) {
#pragma omp for schedule(static)
            for (int64_t block = 0; block < size / 16; block++) pack_part(block, 0, p.rows);
#pragma omp for schedule(dynamic, 1)
            for (int column = 0; column < p.width; column += 32) columns(p, packed, 0, (int)p.rows, column, sums);
        } else {
#pragma omp for schedule(dynamic, 1)
            for (int64_t part = 0; part < parts; part++) {
                const int64_t first = part * size, rows = std::min(size, p.rows - first);
                for (int64_t block = 0; block < (rows + 31) / 32 * 2; block++) pack_part(block, first, rows);
                for (int column = 0; column < p.width; column += 32) columns(p, packed, first, (int)rows, column, sums);
            }
        }
        _tile_release();
        _mm_sfence();
    }
    room.end();
    return 1;
}
#else
extern "C" int karat_has_tiles() { return 0; }
#endif
