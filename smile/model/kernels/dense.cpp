// Embedding, layer norm, activations and pooling over packed tokens. One row is one task: it is
// read, held as floats in the first-level cache, and written once.
#include <algorithm>
#include <cmath>

#include "activations.h"
#include "common.h"

namespace smile {
namespace {

constexpr int64_t GRAIN_ELEMENTS = 16384;  // a piece of work: microseconds, far above a hand-over

int64_t rows_per_piece(int64_t width) {
    return width >= GRAIN_ELEMENTS ? 1 : GRAIN_ELEMENTS / width;
}

constexpr int64_t STEP = 4 * LANES;  // four sums at a time hide an addition's latency

// One row of floats, with room for whole steps.
float* row_scratch(int64_t width) {
    thread_local Scratch scratch;
    return scratch.of<float>((width + STEP - 1) / STEP * STEP);
}

// The sum of change(vector) over a row whose end is filled with `end` to a whole step.
template <class Change>
float sum_row(float* row, int64_t width, float end, const Change& change) {
    const int64_t padded = (width + STEP - 1) / STEP * STEP;
    std::fill(row + width, row + padded, end);
    Vec sums[4] = {};
    for (int64_t at = 0; at < padded; at += STEP)
        for (int part = 0; part < 4; ++part) sums[part] += change(load(row + at + part * LANES));
    return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

// out = (row - mean) / sqrt(variance + epsilon) * weight + bias. The variance of a row whose mean
// is large needs the mean first.
template <class T>
void normalise(float* row, int64_t width, const float* weight, const float* bias, float epsilon,
               T* out) {
    const float share = 1.0f / static_cast<float>(width);
    const float mean = sum_row(row, width, 0.0f, [](Vec x) { return x; }) * share;
    const auto squared = [mean](Vec x) { return (x - mean) * (x - mean); };
    const float variance = sum_row(row, width, mean, squared) * share;
    const float scale = 1.0f / std::sqrt(variance + epsilon);
    for_lanes(width, [&](int64_t at, int lanes) {
        const Vec off = (load(row + at) - mean) * scale;
        const Vec by = load_lanes(weight + at, lanes), plus = load_lanes(bias + at, lanes);
        store_lanes(out + at, off * by + plus, lanes);
    });
}

template <class T>
void add_norm(const T* y, int64_t y_stride, const T* residual, int64_t residual_stride, T* out,
              int64_t out_stride, const float* weight, const float* bias, float epsilon,
              int64_t rows, int64_t width, int threads) {
    parallel_for(rows, rows_per_piece(width), threads, [&](int64_t begin, int64_t end) {
        float* sum = row_scratch(width);
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
        float* sum = row_scratch(width);
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
