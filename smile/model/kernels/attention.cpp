// Softmax attention of every token over its own text, without padding and without ever writing a
// score to memory beyond the first two caches.
//
// A task is one head of one text. Sixteen queries at a time are the sixteen lanes of a vector, so
// scores lie as [keys][16]: maximum, exponential and sum need no reduction across lanes, and keys
// and values are read as they lie, one broadcast element for sixteen queries. Where the processor
// has matrix tiles (AMX), both products are tiles of 16 by 16 in that same order.
#include <algorithm>
#include <cmath>
#include <utility>

#include "activations.h"
#include "common.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define SMILE_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace smile {
namespace {

constexpr int64_t HEADS_PER_PIECE = 3;  // of one text, so that few long texts spread evenly

int64_t padded(int64_t count, int64_t multiple) {
    return (count + multiple - 1) / multiple * multiple;
}

// --- transposing 16 by 16 words: swap halves, quarters, pairs, neighbours ---

template <int STEP, int... LANE>
inline void swap_blocks(Words& upper, Words& lower, std::integer_sequence<int, LANE...>) {
    const Words a = upper, b = lower;
    upper = __builtin_shufflevector(a, b, (LANE & STEP ? LANE - STEP + LANES : LANE)...);
    lower = __builtin_shufflevector(a, b, (LANE & STEP ? LANE + LANES : LANE + STEP)...);
}

template <int STEP>
inline void swap_rows(Words (&rows)[LANES]) {
    for (int row = 0; row < LANES; ++row)
        if (!(row & STEP))
            swap_blocks<STEP>(rows[row], rows[row + STEP],
                              std::make_integer_sequence<int, LANES>{});
}

inline void transpose(Words (&rows)[LANES]) {
    swap_rows<8>(rows);
    swap_rows<4>(rows);
    swap_rows<2>(rows);
    swap_rows<1>(rows);
}

// --- one task ---

template <class T>
struct Head {  // of one text
    const T *query, *key, *value;
    int64_t stride;  // elements from one token to the next
    T* out;
    int64_t out_stride;
    int64_t tokens;
    int64_t dims;
};

// scores[key][query lane] to weights: exp(scale * (score - greatest)). Returns 1 / their sum.
template <class T>
inline Vec soften(float* scores, int64_t keys, float scale) {
    Vec most = load(scores);
    for (int64_t key = 1; key < keys; ++key) most = greatest(most, load(scores + key * LANES));
    const Vec shift = most * scale;
    Vec sum{};
    for (int64_t key = 0; key < keys; ++key) {
        const Vec weight = exp2_of<T>(load(scores + key * LANES) * scale - shift);
        store(scores + key * LANES, weight);
        sum += weight;
    }
    return 1.0f / sum;
}

// mixed[dim][query lane] of 16 dims to rows of `out`.
template <class T>
inline void write_rows(Vec (&mixed)[LANES], Vec share, const Head<T>& head, int64_t first,
                       int64_t dim) {
    Words rows[LANES];
    for (int at = 0; at < LANES; ++at) rows[at] = bits_as<Words>(mixed[at] * share);
    transpose(rows);
    const int dims = static_cast<int>(std::min<int64_t>(LANES, head.dims - dim));
    const int64_t queries = std::min<int64_t>(LANES, head.tokens - first);
    for (int64_t row = 0; row < queries; ++row)
        store_lanes(head.out + (first + row) * head.out_stride + dim, bits_as<Vec>(rows[row]),
                    dims);
}

// --- with vectors: everything in float ---

struct Floats {  // keys or values, each row padded with zeros to whole vectors
    const float* at;
    int64_t stride;
};

template <class T>
Floats as_floats(const T* from, const Head<T>& head, Scratch& scratch) {
    if constexpr (std::is_same_v<T, float>) {
        if (head.dims % LANES == 0) return {from, head.stride};
    }
    const int64_t width = padded(head.dims, LANES);
    float* to = scratch.of<float>(head.tokens * width);
    for (int64_t token = 0; token < head.tokens; ++token)
        for_lanes(head.dims, [&](int64_t dim, int lanes) {
            store(to + token * width + dim, load_lanes(from + token * head.stride + dim, lanes));
        });
    return {to, width};
}

// query[dim][lane] for 16 tokens from `first`; tokens beyond the text are zeros.
template <class T>
void lay_queries(const Head<T>& head, int64_t first, float* to) {
    const int64_t queries = std::min<int64_t>(LANES, head.tokens - first);
    for_lanes(head.dims, [&](int64_t dim, int lanes) {
        Words rows[LANES] = {};
        for (int64_t row = 0; row < queries; ++row) {
            const T* from = head.query + (first + row) * head.stride + dim;
            rows[row] = bits_as<Words>(load_lanes(from, lanes));
        }
        transpose(rows);
        for (int at = 0; at < LANES; ++at) store(to + (dim + at) * LANES, bits_as<Vec>(rows[at]));
    });
}

template <int KEYS>
inline void score_keys(const float* query, const Floats& keys, int64_t first, int64_t dims,
                       float* scores) {
    Vec sums[KEYS] = {};
    const float* key = keys.at + first * keys.stride;
    for (int64_t dim = 0; dim < dims; ++dim) {
        const Vec lanes = load(query + dim * LANES);
        for (int at = 0; at < KEYS; ++at) sums[at] += lanes * key[at * keys.stride + dim];
    }
    for (int at = 0; at < KEYS; ++at) store(scores + (first + at) * LANES, sums[at]);
}

inline void score(const float* query, const Floats& keys, int64_t count, int64_t dims,
                  float* scores) {
    constexpr int KEYS = 8;
    if (count < KEYS) {
        for (int64_t key = 0; key < count; ++key) score_keys<1>(query, keys, key, dims, scores);
        return;
    }
    for (int64_t key = 0; key < count; key += KEYS)  // the last block overlaps the one before
        score_keys<KEYS>(query, keys, std::min(key, count - KEYS), dims, scores);
}

template <class T>
void mix(const float* weights, const Floats& values, Vec share, const Head<T>& head,
         int64_t first) {
    for (int64_t dim = 0; dim < head.dims; dim += LANES) {
        Vec mixed[LANES] = {};
        for (int64_t key = 0; key < head.tokens; ++key) {
            const Vec weight = load(weights + key * LANES);
            const float* value = values.at + key * values.stride + dim;
            for (int at = 0; at < LANES; ++at) mixed[at] += weight * value[at];
        }
        write_rows(mixed, share, head, first, dim);
    }
}

template <class T>
void attend_head(const Head<T>& head, float scale) {
    thread_local Scratch key_floats, value_floats, query_floats, score_floats;
    const Floats keys = as_floats(head.key, head, key_floats);
    const Floats values = as_floats(head.value, head, value_floats);
    float* query = query_floats.of<float>(padded(head.dims, LANES) * LANES);
    float* scores = score_floats.of<float>(head.tokens * LANES);
    for (int64_t first = 0; first < head.tokens; first += LANES) {
        lay_queries(head, first, query);
        score(query, keys, head.tokens, head.dims, scores);
        const Vec share = soften<T>(scores, head.tokens, scale);
        mix(scores, values, share, head, first);
    }
}

template <class T>
struct Attention {
    const T* qkv;
    int64_t qkv_stride;
    T* out;
    int64_t out_stride;
    const int64_t* offsets;  // [texts + 1]
    int64_t texts, heads, dims;

    Head<T> head(int64_t task) const {
        const int64_t text = task / heads, width = heads * dims, column = task % heads * dims;
        const int64_t first = offsets[text];
        const T* query = qkv + first * qkv_stride + column;
        return {query,      query + width, query + 2 * width,
                qkv_stride, out + first * out_stride + column,
                out_stride, offsets[text + 1] - first, dims};
    }
};

template <class T>
void attend(const Attention<T>& all, int threads) {
    const float scale = 1.44269504f / std::sqrt(static_cast<float>(all.dims));
    parallel_for(all.texts * all.heads, HEADS_PER_PIECE, threads, [&](int64_t begin, int64_t end) {
        for (int64_t task = begin; task < end; ++task) attend_head(all.head(task), scale);
    });
}

}  // namespace
}  // namespace smile

#define SMILE_ATTEND(T, SUFFIX)                                                                    \
    void smile_attend_##SUFFIX(const T* qkv, int64_t qkv_stride, T* out, int64_t out_stride,       \
                               const int64_t* offsets, int64_t texts, int64_t heads, int64_t dims, \
                               int threads) {                                                      \
        smile::attend<T>({qkv, qkv_stride, out, out_stride, offsets, texts, heads, dims}, threads); \
    }

extern "C" {
SMILE_ATTEND(float, float32)
SMILE_ATTEND(smile::Bfloat, bfloat16)
}
