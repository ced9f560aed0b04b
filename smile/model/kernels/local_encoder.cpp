// What a local encoder needs besides products: the sum of three words' own parts, and means over
// texts.
#include "activations.h"
#include "norm.h"

namespace smile {
namespace {

constexpr int VIEWS = 3;  // a word's parts as left, centre and right word lie side by side

// out[i] = activation(left part of ngrams[i][0] + centre part of [1] + right part of [2] + bias)
template <class T>
void sum_words(Arguments from) {
    const auto* ngrams = from.pointer<const int64_t>();
    const auto* parts = from.pointer<const T>();
    const auto* bias = from.pointer<const float>();
    const auto kind = static_cast<int>(from.number());
    const auto out = from.rows<T>();
    const Sizes sizes = sizes_of(from);
    const int64_t width = sizes.width;
    const auto part_of = [&](int64_t row, int view) {
        return parts + (ngrams[row * VIEWS + view] * VIEWS + view) * width;
    };
    with_activation(kind, [&](auto chosen) {
        constexpr Activation KIND = decltype(chosen)::value;
        for_rows(sizes, [&](int64_t row) {
            if (row + 1 < sizes.rows)
                for (int view = 0; view < VIEWS; ++view)
                    fetch(part_of(row + 1, view), width * static_cast<int64_t>(sizeof(T)));
            const T *left = part_of(row, 0), *centre = part_of(row, 1), *right = part_of(row, 2);
            for_lanes(width, [&](int64_t at, int lanes) {
                const Vec sum = (load_lanes(left + at, lanes) + load_lanes(centre + at, lanes)) +
                                (load_lanes(right + at, lanes) + load_lanes(bias + at, lanes));
                store_lanes(out[row] + at, activated<T, KIND>(sum), lanes);
            });
        });
    });
}

// Every row becomes the mean of its text's rows. Texts are few rows of few columns each.
template <class T>
void mean_texts(Arguments from) {
    const auto x = from.rows<T>();
    const auto* offsets = from.pointer<const int64_t>();
    const Sizes sizes = sizes_of(from);  // rows are texts
    for_rows(sizes, [&](int64_t text) {
        const int64_t first = offsets[text], last = offsets[text + 1];
        const float share = 1.0f / static_cast<float>(last - first);
        for_lanes(sizes.width, [&](int64_t at, int lanes) {
            Vec sum{};
            for (int64_t row = first; row < last; ++row) sum += load_lanes(x[row] + at, lanes);
            for (int64_t row = first; row < last; ++row)
                store_lanes(x[row] + at, sum * share, lanes);
        });
    });
}

}  // namespace
}  // namespace smile

#define SMILE_ENTRY(NAME, FUNCTION, T, SUFFIX)                              \
    extern "C" void smile_##NAME##_##SUFFIX(const smile::Word* arguments) { \
        smile::FUNCTION<T>(smile::Arguments(arguments));                    \
    }
#define SMILE_ENTRIES(NAME, FUNCTION)             \
    SMILE_ENTRY(NAME, FUNCTION, float, float32)   \
    SMILE_ENTRY(NAME, FUNCTION, smile::Bfloat, bfloat16)

SMILE_ENTRIES(sum_words, sum_words)
SMILE_ENTRIES(mean_texts, mean_texts)
