// Work by rows, and the layer norm of one: what kernels share that read a row, hold it as floats in
// the first-level cache, and write it once.
#pragma once

#include <algorithm>
#include <cmath>

#include "common.h"

namespace smile {

constexpr int64_t GRAIN_ELEMENTS = 16384;  // a piece of work: microseconds, far above a hand-over

inline int64_t rows_per_piece(int64_t width) {
    return width >= GRAIN_ELEMENTS ? 1 : GRAIN_ELEMENTS / width;
}

constexpr int64_t STEP = 4 * LANES;  // four sums at a time hide an addition's latency

// One row of floats, with room for whole steps.
inline float* row_scratch(int64_t width) {
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

struct Norm {
    const float *weight, *bias;
    float epsilon;
};

inline Norm norm_of(Arguments& from) {
    return {from.pointer<const float>(), from.pointer<const float>(), from.real()};
}

struct Sizes {  // and the threads, which every call ends with
    int64_t rows, width;
    int threads;
};

inline Sizes sizes_of(Arguments& from) {
    return {from.number(), from.number(), static_cast<int>(from.number())};
}

// Calls body(row) for every row.
template <class Body>
void for_rows(const Sizes& sizes, const Body& body) {
    parallel_for(sizes.rows, rows_per_piece(sizes.width), sizes.threads,
                 [&](int64_t begin, int64_t end) {
                     for (int64_t row = begin; row < end; ++row) body(row);
                 });
}

}  // namespace smile
