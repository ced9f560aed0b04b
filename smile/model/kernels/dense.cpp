// Embedding, layer norm, activations, pooling and copies of rows. One row is one task: it is read,
// held as floats in the first-level cache, and written once.
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

struct Norm {
    const float *weight, *bias;
    float epsilon;
};

Norm norm_of(Arguments& from) {
    return {from.pointer<const float>(), from.pointer<const float>(), from.real()};
}

struct Sizes {  // and the threads, which every call ends with
    int64_t rows, width;
    int threads;
};

Sizes sizes_of(Arguments& from) {
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

template <class T>
void add_norm(Arguments from) {
    const auto y = from.rows<const T>(), residual = from.rows<const T>();
    const auto out = from.rows<T>();
    const Norm norm = norm_of(from);
    const Sizes sizes = sizes_of(from);
    for_rows(sizes, [&](int64_t row) {
        float* sum = row_scratch(sizes.width);
        const T *a = y[row], *b = residual[row];
        for_lanes(sizes.width, [&](int64_t at, int lanes) {
            store(sum + at, load_lanes(a + at, lanes) + load_lanes(b + at, lanes));
        });
        normalise(sum, sizes.width, norm.weight, norm.bias, norm.epsilon, out[row]);
    });
}

template <class T>
void embed(Arguments from) {
    const auto *ids = from.pointer<const int64_t>(), *positions = from.pointer<const int64_t>();
    const int64_t position_offset = from.number();
    const auto *word = from.pointer<const T>(), *position = from.pointer<const T>();
    const auto* segment = from.pointer<const T>();
    const auto out = from.rows<T>();
    const Norm norm = norm_of(from);
    const Sizes sizes = sizes_of(from);
    for_rows(sizes, [&](int64_t row) {
        float* sum = row_scratch(sizes.width);
        const T* what = word + ids[row] * sizes.width;
        const T* where = position + (positions[row] + position_offset) * sizes.width;
        for_lanes(sizes.width, [&](int64_t at, int lanes) {
            const Vec both = load_lanes(what + at, lanes) + load_lanes(where + at, lanes);
            store(sum + at, both + load_lanes(segment + at, lanes));
        });
        normalise(sum, sizes.width, norm.weight, norm.bias, norm.epsilon, out[row]);
    });
}

template <class T>
void activate(Arguments from) {
    const auto y = from.rows<T>();
    const int kind = static_cast<int>(from.number());
    const Sizes sizes = sizes_of(from);
    with_activation(kind, [&](auto chosen) {
        for_rows(sizes, [&](int64_t row) {
            for_lanes(sizes.width, [&](int64_t at, int lanes) {
                const Vec x = load_lanes(y[row] + at, lanes);
                store_lanes(y[row] + at, activated<T, decltype(chosen)::value>(x), lanes);
            });
        });
    });
}

// out[i] = mean of states[first[i]] to states[last[i] - 1], in float.
template <class T>
void pool(Arguments from) {
    const auto states = from.rows<const T>();
    const auto *firsts = from.pointer<const int64_t>(), *lasts = from.pointer<const int64_t>();
    const auto out = from.rows<float>();
    const Sizes sizes = sizes_of(from);
    parallel_for(sizes.rows, 1, sizes.threads, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t first = firsts[row], last = lasts[row];
            const float share = 1.0f / static_cast<float>(last - first);
            for_lanes(sizes.width, [&](int64_t at, int lanes) {
                Vec sum{};
                for (int64_t token = first; token < last; ++token)
                    sum += load_lanes(states[token] + at, lanes);
                store_lanes(out[row] + at, sum * share, lanes);
            });
        }
    });
}

// out[i] = x[rows[i]]; without rows, x[i].
template <class T>
void take(Arguments from) {
    const auto x = from.rows<const T>();
    const auto* rows = from.pointer<const int64_t>();
    const auto out = from.rows<T>();
    const Sizes sizes = sizes_of(from);
    for_rows(sizes, [&](int64_t row) {
        const T* source = x[rows == nullptr ? row : rows[row]];
        std::memcpy(out[row], source, sizes.width * sizeof(T));
    });
}

// Rows to length 1; those shorter than 1e-12 are divided by that. NaN spreads over its row.
void unit(Arguments from) {
    const auto x = from.rows<float>();
    const Sizes sizes = sizes_of(from);
    for_rows(sizes, [&](int64_t row) {
        Vec sum{};
        for_lanes(sizes.width, [&](int64_t at, int lanes) {
            const Vec value = load_lanes(x[row] + at, lanes);
            sum += value * value;
        });
        const float length = std::sqrt(sum_of(sum));
        const float by = length < 1e-12f ? 1e-12f : length;
        for_lanes(sizes.width, [&](int64_t at, int lanes) {
            store_lanes(x[row] + at, load_lanes(x[row] + at, lanes) / by, lanes);
        });
    });
}

}  // namespace
}  // namespace smile

// The C interface: every kernel for both storage types, named _float32 and _bfloat16.
#define SMILE_ENTRY(NAME, T, SUFFIX)                                      \
    extern "C" void smile_##NAME##_##SUFFIX(const smile::Word* arguments) { \
        smile::NAME<T>(smile::Arguments(arguments));                      \
    }
#define SMILE_ENTRIES(NAME)             \
    SMILE_ENTRY(NAME, float, float32)   \
    SMILE_ENTRY(NAME, smile::Bfloat, bfloat16)

SMILE_ENTRIES(add_norm)
SMILE_ENTRIES(embed)
SMILE_ENTRIES(activate)
SMILE_ENTRIES(pool)
SMILE_ENTRIES(take)

extern "C" void smile_unit_float32(const smile::Word* arguments) {
    smile::unit(smile::Arguments(arguments));
}
