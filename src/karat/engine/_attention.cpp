// Attention over a forest of sequences on a CPU: every query row reads one path of key blocks, softmax online.
//
// Keys come in blocks of 64 positions, aligned to absolute positions, so that a row's additions happen in an order
// that does not depend on what shares the call: the same bits in any company. Built on first use by _native.py.
#include "_common.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <omp.h>
#include <type_traits>
namespace {

constexpr int BLOCK = 64;  // keys in a block
constexpr int COLUMNS = LANES == 16 ? 4 : 2;  // vectors across a register tile
constexpr int ROWS = 6;  // rows of a register tile: ROWS * COLUMNS accumulators leave registers for the operands
constexpr float MASKED = -1e30f;

// Numbers are multiplied as Half: bf16 itself where the CPU multiplies pairs of it, else float.
#if defined(__AVX512BF16__)
typedef bf16 Half;
#else
typedef float Half;
#endif
template <class T> constexpr int STEP = 1;  // numbers that one multiply-add takes from each operand
template <> constexpr int STEP<bf16> = 2;

#if AMX
// As multiply_rows below, on up to 32 rows by 32 columns at a time; `rows` and `out` have room for a multiple of 16 rows.
template <bool BOTH>  // of 16 rows each
inline void multiply_tile(const bf16* rows, int row_stride, const bf16* lanes, int width, int depth, float* out, int out_stride, bool add) {
    const int stride = 4 * out_stride;
    float* below = out + 16 * out_stride;
    if (add) {
        _tile_loadd(0, out, stride); _tile_loadd(1, out + 16, stride);
        if (BOTH) { _tile_loadd(2, below, stride); _tile_loadd(3, below + 16, stride); }
    } else {
        _tile_zero(0); _tile_zero(1);
        if (BOTH) { _tile_zero(2); _tile_zero(3); }
    }
    for (int d = 0; d < depth; d += 32) {
        const bf16* b = lanes + (int64_t)d * width;
        _tile_loadd(4, rows + d, 2 * row_stride);
        _tile_loadd(6, b, 4 * width); _tile_loadd(7, b + 32, 4 * width);
        _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
        if (!BOTH) continue;
        _tile_loadd(5, rows + d + 16 * row_stride, 2 * row_stride);
        _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, out, stride); _tile_stored(1, out + 16, stride);
    if (BOTH) { _tile_stored(2, below, stride); _tile_stored(3, below + 16, stride); }
}

inline void multiply_tiles(int count, const bf16* rows, int row_stride, const bf16* lanes, int width, int depth, float* out, int out_stride, bool add) {
    std::atomic_signal_fence(std::memory_order_seq_cst);  // compilers do not see that tiles read memory
    for (int r = 0; r < count; r += 32)
        for (int n = 0; n < width; n += 32) {
            const bf16 *from = rows + r * row_stride, *with = lanes + n * 2;
            float* to = out + r * out_stride + n;
            if (count - r > 16) multiply_tile<true>(from, row_stride, with, width, depth, to, out_stride, add);
            else multiply_tile<false>(from, row_stride, with, width, depth, to, out_stride, add);
        }
}
#endif

// acc[lane] += sum over STEP of broadcast[s] * lanes[lane][s]
inline vec madd(vec acc, const float* broadcast, const float* lanes) {
#if defined(__AVX512F__)
    return (vec)_mm512_fmadd_ps((__m512)splat(*broadcast), (__m512)load(lanes), (__m512)acc);
#elif defined(__FMA__)
    return (vec)_mm256_fmadd_ps((__m256)splat(*broadcast), (__m256)load(lanes), (__m256)acc);
#else
    return acc + splat(*broadcast) * load(lanes);
#endif
}
#if defined(__AVX512BF16__)
inline vec madd(vec acc, const bf16* broadcast, const bf16* lanes) {
    int32_t pair; std::memcpy(&pair, broadcast, 4);
    return (vec)_mm512_dpbf16_ps((__m512)acc, (__m512bh)_mm512_set1_epi32(pair), (__m512bh)_mm512_loadu_si512(lanes));
}
#endif

inline float largest(vec v) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)v);
#else
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++) v[i] = std::max(v[i], v[i + width]);
    return v[0];
#endif
}

// out[R][N vectors] (+)= rows[R][depth] . lanes[depth / STEP][width][STEP]
template <class T, int R, int N>
inline void multiply(const T* rows, int row_stride, const T* lanes, int width, int depth, float* out, int out_stride, bool add) {
    vec acc[R][N];  // in registers: every loop over them is unrolled
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) acc[r][n] = add ? load(out + r * out_stride + n * LANES) : vec{};
    int d = 0;
    do {  // there is a depth: a loop that might not run would move all sums to memory and back
#pragma GCC unroll 8
        for (int n = 0; n < N; n++)
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                acc[r][n] = madd(acc[r][n], rows + r * row_stride + d, lanes + (int64_t)d * width + n * LANES * STEP<T>);
    } while ((d += STEP<T>) < depth);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) store(out + r * out_stride + n * LANES, acc[r][n]);
}

template <class T, int N>
inline void multiply_rows(int count, const T* rows, int row_stride, const T* lanes, int width, int depth, float* out, int out_stride, bool add) {
    int r = 0;
    for (; r + ROWS <= count; r += ROWS)
        multiply<T, ROWS, N>(rows + (int64_t)r * row_stride, row_stride, lanes, width, depth, out + r * out_stride, out_stride, add);
    rows += (int64_t)r * row_stride; out += r * out_stride;
    switch (count - r) {
        case 5: multiply<T, 5, N>(rows, row_stride, lanes, width, depth, out, out_stride, add); break;
        case 4: multiply<T, 4, N>(rows, row_stride, lanes, width, depth, out, out_stride, add); break;
        case 3: multiply<T, 3, N>(rows, row_stride, lanes, width, depth, out, out_stride, add); break;
        case 2: multiply<T, 2, N>(rows, row_stride, lanes, width, depth, out, out_stride, add); break;
        case 1: multiply<T, 1, N>(rows, row_stride, lanes, width, depth, out, out_stride, add); break;
    }
}

template <class W, bool TILED>
inline void product(int count, const W* rows, int row_stride, const W* lanes, int width, int depth, float* out, int out_stride, bool add) {
#if AMX
    if constexpr (TILED) return multiply_tiles(count, rows, row_stride, lanes, width, depth, out, out_stride, add);
#endif
    int n = 0;
    for (; n + COLUMNS * LANES <= width; n += COLUMNS * LANES)
        multiply_rows<W, COLUMNS>(count, rows, row_stride, lanes + n * STEP<W>, width, depth, out + n, out_stride, add);
    for (; n < width; n += LANES)
        multiply_rows<W, 1>(count, rows, row_stride, lanes + n * STEP<W>, width, depth, out + n, out_stride, add);
}

}  // namespace

// Shapes are in elements. Mirrored field by field in _native.py.
struct Call {
    const void *q, *k, *v;
    void* out;
    const int32_t* block_rows;            // [blocks, 64] row of k and v at each position, -1 where there is none
    const int32_t* limits;                // [queries] last position that a query row sees
    const int32_t* tiles;                 // [tiles, 4] first query row, rows, first entry of its path, entries
    const int32_t* paths;                 // block of each 64 positions, from position 0
    const float* sinks;                   // [heads] or null
    int64_t q_row, q_head, k_row, k_head, v_row, v_head, out_row, out_head;
    int32_t heads, kv_heads, size, value_size, blocks, count, window, threads;
    float scale, softcap;
};

namespace {

inline int padded(int size) { return (size + LANES - 1) / LANES * LANES; }

// Where the keys and values of a block's head are packed.
template <class W> struct Packed {
    W *k, *v;  // [blocks, kv_heads, 64 * padded size]
    int64_t k_size, v_size;
    Packed(const Call& c, Room& room) : k_size(BLOCK * padded(c.size)), v_size(BLOCK * padded(c.value_size)) {
        const int64_t count = std::max<int64_t>(1, (int64_t)c.blocks * c.kv_heads);
        k = room.of<W>(count * (k_size + v_size));
        v = k + count * k_size;
    }
};

#if defined(__AVX512BW__)
// What is packed as it is: 16 keys at a time, words of 4 bytes by words, and values by whole vectors.
template <class T>
void pack_words(const T* const* k_rows, const T* const* v_rows, int size, int value_size, T* k_to, T* v_to) {
    constexpr int S = STEP<T>;
    auto part = [](const T* row, int from, int size) {
        const int left = size - from;
        if (!row || left <= 0) return _mm512_setzero_si512();
        if (left >= 16 * S) return _mm512_loadu_si512(row + from);
        return _mm512_maskz_loadu_epi8(~0ull >> (64 - left * (int)sizeof(T)), row + from);
    };
    for (int d = 0; d < padded(size); d += 16 * S)
        for (int i = 0; i < BLOCK; i += 16) {
            __m512i r[16];
            for (int j = 0; j < 16; j++) r[j] = part(k_rows[i + j], d, size);
            transpose(r);
            for (int j = 0; j < std::min(16, (padded(size) - d) / S); j++)
                _mm512_store_si512(k_to + (d + j * S) * BLOCK + i * S, r[j]);
        }
    for (int i = 0; i < BLOCK; i += S)
        for (int d = 0; d < padded(value_size); d += 16) {
            T* to = v_to + i * padded(value_size) + d * S;
            if constexpr (S == 1) {
                _mm512_store_si512(to, part(v_rows[i], d, value_size));
            } else {
                const __m512i a = part(v_rows[i], d, value_size), b = part(v_rows[i + 1], d, value_size);
                const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(a));
                const __m512i high = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(b));
                _mm512_store_si512(to, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
            }
        }
}
#endif

template <class T, class W>
void pack(const Call& c, const Packed<W>& packed, int block, int head) {
    const int dk = padded(c.size), dv = padded(c.value_size), S = STEP<W>;
    W* k_to = packed.k + ((int64_t)block * c.kv_heads + head) * packed.k_size;
    W* v_to = packed.v + ((int64_t)block * c.kv_heads + head) * packed.v_size;
    const T *k_rows[BLOCK], *v_rows[BLOCK];
    for (int i = 0; i < BLOCK; i++) {
        const int64_t row = c.block_rows[(int64_t)block * BLOCK + i];
        k_rows[i] = row < 0 ? nullptr : (const T*)c.k + row * c.k_row + head * c.k_head;
        v_rows[i] = row < 0 ? nullptr : (const T*)c.v + row * c.v_row + head * c.v_head;
    }
#if defined(__AVX512BW__)
    if constexpr (std::is_same_v<T, W>) return pack_words<T>(k_rows, v_rows, c.size, c.value_size, k_to, v_to);
#endif
    std::memset((void*)k_to, 0, sizeof(W) * BLOCK * dk);
    std::memset((void*)v_to, 0, sizeof(W) * BLOCK * dv);
    for (int i = 0; i < BLOCK; i++) {
        if (!k_rows[i]) continue;
        for (int d = 0; d < c.size; d++) convert(k_rows[i][d], k_to[(d / S) * BLOCK * S + i * S + d % S]);
        for (int d = 0; d < c.value_size; d++) convert(v_rows[i][d], v_to[(i / S) * dv * S + d * S + i % S]);
    }
}

// What rows of queries have seen so far: [rows, padded to a vector] each.
struct Seen {
    float *top, *next;  // highest score: before a block, and with it
    float* shrink;      // what weights by the former are multiplied with
    vec* sum;           // of weights
};

// A row's scores against a block of keys, as they count: scaled, capped, and masked; the highest.
inline float scored(const Call& c, float* scores, int base, int limit) {
    const int low = c.window ? limit - c.window + 1 : 0;
    const bool whole = base + BLOCK - 1 <= limit && base >= low;
    vec high = splat(MASKED);
    for (int n = 0; n < BLOCK / LANES; n++) {
        vec s = load(scores + n * LANES) * c.scale;
        if (c.softcap != 0.f) {  // cap * tanh(s / cap), by e^-2|x|
            vec x = s / c.softcap, a = x < 0.f ? -x : x, e = exponential(-2.f * a), t = (1.f - e) / (1.f + e);
            s = c.softcap * (x < 0.f ? -t : t);
        }
        if (!whole) {
            const ivec at = COUNT + (base + n * LANES);
            s = (at > limit) | (at < low) ? splat(MASKED) : s;
        }
        store(scores + n * LANES, s);
        high = s > high ? s : high;
    }
    return largest(high);
}

// Scores of rows against one block → weights; in passes, so that no row waits for what another needs.
template <class W>
void soften(const Call& c, int rows, int group, const int32_t* limits, float* scores, W* weights, int base, const Seen& seen, float* out, int dv) {
    for (int r = 0; r < rows; r++)
        seen.next[r] = std::max(seen.top[r], scored(c, scores + r * BLOCK, base, limits[r / group]));
    for (int r = 0; r < rows; r += LANES) {
        const vec was = load(seen.top + r), next = load(seen.next + r), shrink = exponential(was - next);
        store(seen.shrink + r, was == MASKED ? vec{} : shrink);
        store(seen.top + r, next);
    }
    for (int r = 0; r < rows; r++) {
        const vec top = splat(seen.top[r]);
        vec sum = seen.sum[r];
        if (const float shrink = seen.shrink[r]; shrink != 1.f) {
            sum *= shrink;
            for (int d = 0; d < dv; d += LANES) store(out + r * dv + d, load(out + r * dv + d) * shrink);
        }
        for (int n = 0; n < BLOCK / LANES; n++) {
            const vec s = load(scores + r * BLOCK + n * LANES);
            vec p = exponential(s - top);
            p = s == MASKED ? vec{} : p;
            sum += p;
            keep(weights + r * BLOCK + n * LANES, p);
        }
        seen.sum[r] = sum;
    }
}

// Rows of queries that go through blocks together, in whole tiles; each part of what is kept of them is in whole lines
// of the cache.
inline int room_of(const Call& c, const int32_t* tile) { return (tile[1] * (c.heads / c.kv_heads) + 15) / 16 * 16; }
inline int64_t aside(const Call& c, int room) {
    return (int64_t)room * (2 * BLOCK + padded(c.size) + padded(c.value_size) + LANES + 3);
}

template <class T, class W, bool TILED>
void attend(const Call& c, const Packed<W>& packed, const int32_t* tile, int head, float* scores) {
    const int dk = padded(c.size), dv = padded(c.value_size), group = c.heads / c.kv_heads;
    const int rows = tile[1] * group, first = tile[0], room = room_of(c, tile);
    float *out = scores + room * BLOCK, *sums = out + room * dv, *top = sums + room * LANES;
    W *weights = (W*)(top + 3 * room), *q = weights + room * BLOCK;
    const Seen seen{top, top + room, top + 2 * room, (vec*)sums};
    std::fill_n(top, 3 * room, MASKED);
    std::memset(out, 0, sizeof(float) * room * (dv + LANES));
    std::memset((void*)q, 0, sizeof(W) * rows * dk);
    int highest = 0, lowest = INT32_MAX;
    for (int r = 0; r < rows; r++) {
        const T* from = (const T*)c.q + (int64_t)(first + r / group) * c.q_row + (head * group + r % group) * c.q_head;
        for (int d = 0; d < c.size; d++) convert(from[d], q[r * dk + d]);
        highest = std::max(highest, c.limits[first + r / group]);
        lowest = std::min(lowest, c.limits[first + r / group]);
    }
    for (int j = 0; j < tile[3]; j++) {
        const int base = j * BLOCK;
        if (base > highest) break;
        if (c.window && base + BLOCK - 1 < lowest - c.window + 1) continue;
        const int64_t block = (int64_t)c.paths[tile[2] + j] * c.kv_heads + head;
        const W *k = packed.k + block * packed.k_size, *v = packed.v + block * packed.v_size;
        product<W, TILED>(rows, q, dk, k, BLOCK, dk, scores, BLOCK, false);
        soften<W>(c, rows, group, c.limits + first, scores, weights, base, seen, out, dv);
        product<W, TILED>(rows, weights, BLOCK, v, dv, BLOCK, out, dv, true);
    }
    for (int r = 0; r < rows; r++) {
        float bottom = total(seen.sum[r]);
        float factor = 1.f;
        if (c.sinks) {  // one more key that takes weight and gives nothing
            const float sink = c.sinks[head * group + r % group], high = std::max(top[r], sink);
            factor = std::exp(top[r] - high);
            bottom = bottom * factor + std::exp(sink - high);
        }
        factor = bottom > 0.f ? factor / bottom : 0.f;
        T* to = (T*)c.out + (int64_t)(first + r / group) * c.out_row + (head * group + r % group) * c.out_head;
        for (int d = 0; d < c.value_size; d++) convert(out[r * dv + d] * factor, to[d]);
    }
}

// Whether there was memory for it.
template <class T, class W, bool TILED = false>
int run(const Call& c) {
    static thread_local Room room, tiles;
    int most = 0;
    for (int tile = 0; tile < c.count; tile++) most = std::max(most, room_of(c, c.tiles + tile * 4));
    const int64_t each = aside(c, most);
    float* all = tiles.of<float>(c.threads * each);
    const Packed<W> packed(c, room);
    if (!packed.k || !all) return 0;
#pragma omp parallel num_threads(c.threads)
    {
#if AMX
        if (TILED) _tile_loadconfig(&SHAPE);
#endif
#pragma omp for collapse(2) schedule(static)
        for (int block = 0; block < c.blocks; block++)
            for (int head = 0; head < c.kv_heads; head++) pack<T, W>(c, packed, block, head);
#pragma omp for collapse(2) schedule(dynamic, 1)
        for (int tile = 0; tile < c.count; tile++)
            for (int head = 0; head < c.kv_heads; head++) attend<T, W, TILED>(c, packed, c.tiles + tile * 4, head, all + omp_get_thread_num() * each);
#if AMX
        if (TILED) _tile_release();
#endif
    }
    room.end();
    tiles.end();
    return 1;
}

}  // namespace

extern "C" int karat_attention_float32(const Call* call) { return run<float, float>(*call); }
extern "C" int karat_attention_bfloat16(const Call* call) {
#if AMX
    if (call->size % 32 == 0 && call->value_size % 32 == 0 && tiles_granted()) return run<bf16, bf16, true>(*call);
#endif
    return run<bf16, Half>(*call);
}
