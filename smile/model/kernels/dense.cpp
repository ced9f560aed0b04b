// Embedding, layer norm, activations, pooling and copies of rows. One row is one task: it is read,
// held as floats in the first-level cache, and written once.
#include <cmath>

#include "activations.h"
#include "norm.h"

namespace smile {
namespace {

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
