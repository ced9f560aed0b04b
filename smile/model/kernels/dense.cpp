// Embedding, layer norm, activations and pooling over packed tokens. One row is one task: it is
// read, held as floats in the first-level cache, and written once.
#include <cmath>

#include "activations.h"
#include "common.h"

namespace smile {
namespace {

constexpr int64_t GRAIN_ELEMENTS = 16384;  // a piece of work: microseconds, far above a hand-over

int64_t rows_per_piece(int64_t width) {
    return width >= GRAIN_ELEMENTS ? 1 : GRAIN_ELEMENTS / width;
}

// out = (row - mean) / sqrt(variance + epsilon) * weight + bias. `row` is padded with zeros to
// whole vectors. Two passes: the variance of large means needs it.
template <class T>
void normalise(const float* row, int64_t width, const float* weight, const float* bias,
               float epsilon, T* out) {
    Vec sums{};
    for (int64_t at = 0; at < width; at += LANES) sums += load(row + at);
    const float mean = sum_of(sums) / static_cast<float>(width);
    Vec squares{};
    for_lanes(width, [&](int64_t at, int lanes) {
        Vec off = load(row + at) - mean;
        if (lanes < LANES) {
            float kept[LANES] = {};
            store_part(kept, off, lanes);
            off = load(kept);
        }
        squares += off * off;
    });
    const float variance = sum_of(squares) / static_cast<float>(width);
    const float scale = 1.0f / std::sqrt(variance + epsilon);
    for_lanes(width, [&](int64_t at, int lanes) {
        const Vec off = (load(row + at) - mean) * scale;
        const Vec by = load_lanes(weight + at, lanes), plus = load_lanes(bias + at, lanes);
        store_lanes(out + at, off * by + plus, lanes);
    });
}

float* zero_padded_row(int64_t width) {
    thread_local Scratch scratch;
    const int64_t padded = (width + LANES - 1) / LANES * LANES;
    float* row = scratch.of<float>(padded);
    store(row + padded - LANES, Vec{});
    return row;
}

template <class T>
void add_norm(const T* y, int64_t y_stride, const T* residual, int64_t residual_stride, T* out,
              int64_t out_stride, const float* weight, const float* bias, float epsilon,
              int64_t rows, int64_t width, int threads) {
    parallel_for(rows, rows_per_piece(width), threads, [&](int64_t begin, int64_t end) {
        float* sum = zero_padded_row(width);
        for (int64_t row = begin; row < end; ++row) {
            const T *a = y + row * y_stride, *b = residual + row * residual_stride;
            for_lanes(width, [&](int64_t at, int lanes) {
                store(sum + at, load_lanes(a + at, lanes) + load_lanes(b + at, lanes));
            });
            normalise(sum, width, weight, bias, epsilon, out + row * out_stride);
        }
    });
}

template <class T>
void embed(const int64_t* ids, const int64_t* positions, int64_t position_offset, const T* word,
           const T* position, const T* segment, T* out, const float* weight, const float* bias,
           float epsilon, int64_t rows, int64_t width, int threads) {
    parallel_for(rows, rows_per_piece(width), threads, [&](int64_t begin, int64_t end) {
        float* sum = zero_padded_row(width);
        for (int64_t row = begin; row < end; ++row) {
            const T* what = word + ids[row] * width;
            const T* where = position + (positions[row] + position_offset) * width;
            for_lanes(width, [&](int64_t at, int lanes) {
                const Vec both = load_lanes(what + at, lanes) + load_lanes(where + at, lanes);
                store(sum + at, both + load_lanes(segment + at, lanes));
            });
            normalise(sum, width, weight, bias, epsilon, out + row * width);
        }
    });
}

template <class T>
void activate(T* y, int64_t stride, int64_t rows, int64_t width, int kind, int threads) {
    with_activation(kind, [&](auto chosen) {
        parallel_for(rows, rows_per_piece(width), threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                T* at_row = y + row * stride;
                for_lanes(width, [&](int64_t at, int lanes) {
                    const Vec x = load_lanes(at_row + at, lanes);
                    store_lanes(at_row + at, activated<T, decltype(chosen)::value>(x), lanes);
                });
            }
        });
    });
}

template <class T>
void pool_mean(const T* states, int64_t stride, const int64_t* offsets, float* out, int64_t texts,
               int64_t width, int threads) {
    parallel_for(texts, 1, threads, [&](int64_t begin, int64_t end) {
        for (int64_t text = begin; text < end; ++text) {
            const int64_t first = offsets[text], last = offsets[text + 1];
            const float share = 1.0f / static_cast<float>(last - first);
            for_lanes(width, [&](int64_t at, int lanes) {
                Vec sum{};
                for (int64_t row = first; row < last; ++row)
                    sum += load_lanes(states + row * stride + at, lanes);
                store_lanes(out + text * width + at, sum * share, lanes);
            });
        }
    });
}

}  // namespace
}  // namespace smile

// The C interface: every kernel for both storage types, named _float32 and _bfloat16.
#define SMILE_DENSE(T, SUFFIX)                                                                     \
    void smile_add_norm_##SUFFIX(const T* y, int64_t y_stride, const T* residual,                  \
                                 int64_t residual_stride, T* out, int64_t out_stride,              \
                                 const float* weight, const float* bias, float epsilon,            \
                                 int64_t rows, int64_t width, int threads) {                       \
        smile::add_norm(y, y_stride, residual, residual_stride, out, out_stride, weight, bias,     \
                        epsilon, rows, width, threads);                                            \
    }                                                                                              \
    void smile_embed_##SUFFIX(const int64_t* ids, const int64_t* positions,                        \
                              int64_t position_offset, const T* word, const T* position,           \
                              const T* segment, T* out, const float* weight, const float* bias,    \
                              float epsilon, int64_t rows, int64_t width, int threads) {           \
        smile::embed(ids, positions, position_offset, word, position, segment, out, weight, bias,  \
                     epsilon, rows, width, threads);                                               \
    }                                                                                              \
    void smile_activate_##SUFFIX(T* y, int64_t stride, int64_t rows, int64_t width, int kind,      \
                                 int threads) {                                                    \
        smile::activate(y, stride, rows, width, kind, threads);                                    \
    }                                                                                              \
    void smile_pool_mean_##SUFFIX(const T* states, int64_t stride, const int64_t* offsets,         \
                                  float* out, int64_t texts, int64_t width, int threads) {         \
        smile::pool_mean(states, stride, offsets, out, texts, width, threads);                     \
    }

extern "C" {
SMILE_DENSE(float, float32)
SMILE_DENSE(smile::Bfloat, bfloat16)
}
