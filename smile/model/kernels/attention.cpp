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
#include "amx.h"
#include "common.h"

namespace smile {
namespace {

constexpr int64_t IN_PLACE_TOKENS = 64;
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
    if constexpr (std::is_same_v<T, float>) {  // many rows far apart would share few cache sets
        if (head.dims % LANES == 0 && head.tokens <= IN_PLACE_TOKENS) return {from, head.stride};
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

#ifdef __AMX_BF16__
// --- with tiles: keys, queries, weights and values in bfloat16, sums in float ---

constexpr int64_t TILE_DIMS = amx::TILE_INNER;  // of a product's inner dimension
constexpr int64_t TILE_BYTES = 64;              // of a row

// Word `pair` of a row holds its bfloat16 elements 2 pair and 2 pair + 1.
inline Words load_words(const Bfloat* from) {
    Words words;
    std::memcpy(&words, from, sizeof(words));
    return words;
}

inline void store_words(Bfloat* to, Words words) { std::memcpy(to, &words, sizeof(words)); }

// Keys as tiles: [keys / 16][dims / 32] of 16 keys by 32 dims; beyond the text zeros.
const Bfloat* key_tiles(const Head<Bfloat>& head, int64_t keys, Scratch& scratch) {
    Bfloat* to = scratch.of<Bfloat>(keys * head.dims);
    const int64_t across = head.dims / TILE_DIMS;
    for (int64_t key = 0; key < keys; ++key)
        for (int64_t part = 0; part < across; ++part) {
            const Bfloat* from = head.key + key * head.stride + part * TILE_DIMS;
            const int64_t tile = key / LANES * across + part;
            store_words(to + tile * amx::TILE_ELEMENTS + key % LANES * TILE_DIMS,
                        key < head.tokens ? load_words(from) : Words{});
        }
    return to;
}

// Values, transposed, as tiles: [keys / 32][dims / 16] of 16 dims by 32 keys.
const Bfloat* value_tiles(const Head<Bfloat>& head, int64_t keys, Scratch& scratch) {
    Bfloat* to = scratch.of<Bfloat>(keys * head.dims);
    Bfloat* tile = to;
    const auto value = [&](int64_t key, int64_t dim) {
        if (key >= head.tokens) return Words{};
        return bits_as<Words>(load(head.value + key * head.stride + dim));  // the upper halves
    };
    for (int64_t first = 0; first < keys; first += TILE_DIMS)
        for (int64_t dim = 0; dim < head.dims; dim += LANES, tile += amx::TILE_ELEMENTS) {
            Words pairs[LANES];  // [pair of keys][dim]
            for (int64_t pair = 0; pair < LANES; ++pair)
                pairs[pair] = value(first + 2 * pair, dim) >> 16 | value(first + 2 * pair + 1, dim);
            transpose(pairs);
            for (int row = 0; row < LANES; ++row) store_words(tile + row * TILE_DIMS, pairs[row]);
        }
    return to;
}

// Queries as tiles: [dims / 32] of 16 pairs of dims by 16 queries; beyond the text zeros.
void query_tiles(const Head<Bfloat>& head, int64_t first, Bfloat* to) {
    const int64_t queries = std::min<int64_t>(LANES, head.tokens - first);
    for (int64_t dim = 0; dim < head.dims; dim += TILE_DIMS, to += amx::TILE_ELEMENTS) {
        Words rows[LANES] = {};
        for (int64_t row = 0; row < queries; ++row)
            rows[row] = load_words(head.query + (first + row) * head.stride + dim);
        transpose(rows);
        for (int row = 0; row < LANES; ++row) store_words(to + row * TILE_DIMS, rows[row]);
    }
}

// scores[key][query lane]; `keys` is a multiple of 32.
void score_tiles(const Bfloat* query, const Bfloat* key, int64_t keys, int64_t dims,
                 float* scores) {
    const int64_t across = dims / TILE_DIMS;
    for (int64_t first = 0; first < keys; first += 2 * LANES) {
        const Bfloat* upper = key + first / LANES * across * amx::TILE_ELEMENTS;
        const Bfloat* lower = upper + across * amx::TILE_ELEMENTS;
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t part = 0; part < across; ++part) {
            _tile_loadd(6, query + part * amx::TILE_ELEMENTS, TILE_BYTES);
            _tile_loadd(4, upper + part * amx::TILE_ELEMENTS, TILE_BYTES);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(5, lower + part * amx::TILE_ELEMENTS, TILE_BYTES);
            _tile_dpbf16ps(1, 5, 6);
        }
        _tile_stored(0, scores + first * LANES, TILE_BYTES);
        _tile_stored(1, scores + (first + LANES) * LANES, TILE_BYTES);
    }
}

// Weights as tiles: [keys / 32] of 16 pairs of keys by 16 queries; beyond the text zeros.
void weight_tiles(float* weights, int64_t tokens, int64_t keys, Bfloat* to) {
    for (int64_t key = tokens; key < keys; ++key) store(weights + key * LANES, Vec{});
    for (int64_t key = 0; key < keys; key += 2) {
        const auto even = __builtin_convertvector(narrow(load(weights + key * LANES)), Words);
        const auto odd = __builtin_convertvector(narrow(load(weights + (key + 1) * LANES)), Words);
        store_words(to + key * LANES, odd << 16 | even);
    }
}

void mix_tiles(const Bfloat* weights, const Bfloat* value, int64_t keys, Vec share,
               const Head<Bfloat>& head, int64_t first) {
    const int64_t across = head.dims / LANES;
    alignas(ALIGNMENT) float sums[2 * LANES * LANES];
    for (int64_t dim = 0; dim < head.dims; dim += 2 * LANES) {
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t part = 0; part < keys / TILE_DIMS; ++part) {
            const Bfloat* values = value + (part * across + dim / LANES) * amx::TILE_ELEMENTS;
            _tile_loadd(7, weights + part * amx::TILE_ELEMENTS, TILE_BYTES);
            _tile_loadd(4, values, TILE_BYTES);
            _tile_dpbf16ps(2, 4, 7);
            _tile_loadd(5, values + amx::TILE_ELEMENTS, TILE_BYTES);
            _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(2, sums, TILE_BYTES);
        _tile_stored(3, sums + LANES * LANES, TILE_BYTES);
        __asm__ volatile("" ::: "memory");  // the intrinsics do not say that they write memory
        for (int half = 0; half < 2; ++half) {
            Vec mixed[LANES];
            for (int at = 0; at < LANES; ++at) mixed[at] = load(sums + (half * LANES + at) * LANES);
            write_rows(mixed, share, head, first, dim + half * LANES);
        }
    }
}

// The tiles of this thread must be shaped.
void attend_by_tiles(const Head<Bfloat>& head, float scale) {
    thread_local Scratch key_scratch, value_scratch, query_scratch, score_scratch, weight_scratch;
    const int64_t keys = padded(head.tokens, TILE_DIMS);
    const Bfloat* key = key_tiles(head, keys, key_scratch);
    const Bfloat* value = value_tiles(head, keys, value_scratch);
    Bfloat* query = query_scratch.of<Bfloat>(LANES * head.dims);
    float* scores = score_scratch.of<float>(keys * LANES);
    Bfloat* weights = weight_scratch.of<Bfloat>(keys * LANES);
    for (int64_t first = 0; first < head.tokens; first += LANES) {
        query_tiles(head, first, query);
        __asm__ volatile("" ::: "memory");
        score_tiles(query, key, keys, head.dims, scores);
        __asm__ volatile("" ::: "memory");
        const Vec share = soften<Bfloat>(scores, head.tokens, scale);
        weight_tiles(scores, head.tokens, keys, weights);
        __asm__ volatile("" ::: "memory");
        mix_tiles(weights, value, keys, share, head, first);
    }
}

#endif

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
void attend_heads(const Attention<T>& all, int64_t begin, int64_t end) {
    const float scale = 1.44269504f / std::sqrt(static_cast<float>(all.dims));
#ifdef __AMX_BF16__
    if constexpr (std::is_same_v<T, Bfloat>) {
        if (all.dims % TILE_DIMS == 0 && amx::allowed()) {
            const amx::Tiles shaped(2 * LANES);
            for (int64_t task = begin; task < end; ++task) attend_by_tiles(all.head(task), scale);
            return;
        }
    }
#endif
    for (int64_t task = begin; task < end; ++task) attend_head(all.head(task), scale);
}

template <class T>
void attend(Arguments from) {
    const auto qkv = from.rows<const T>();
    const auto out = from.rows<T>();
    const auto* offsets = from.pointer<const int64_t>();
    const int64_t texts = from.number(), heads = from.number(), dims = from.number();
    const auto threads = static_cast<int>(from.number());
    const Attention<T> all{qkv.at, qkv.stride, out.at, out.stride, offsets, texts, heads, dims};
    parallel_for(texts * heads, HEADS_PER_PIECE, threads,
                 [&](int64_t begin, int64_t end) { attend_heads(all, begin, end); });
}

}  // namespace
}  // namespace smile

extern "C" void smile_attend_float32(const smile::Word* arguments) {
    smile::attend<float>(smile::Arguments(arguments));
}

extern "C" void smile_attend_bfloat16(const smile::Word* arguments) {
    smile::attend<smile::Bfloat>(smile::Arguments(arguments));
}
