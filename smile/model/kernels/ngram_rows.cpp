// Rows of representation tables: stored small, and gathered and merged where they lie.
//
// A row is what one token's n-gram adds to its left neighbour, itself and its right neighbour: three
// views of `width` numbers, in float16, or in int8 behind a scale of their own.
#include <cmath>
#include <type_traits>

#include "norm.h"

namespace smile {
namespace {

enum Format : int64_t { FLOAT16 = 0, INT8 = 1 };

constexpr int VIEWS = 3;  // of the left neighbour, the token itself, the right one
constexpr float FLOAT16_MOST = 65504.0f;
constexpr float INT8_MOST = 127.0f;
constexpr float SCALED_MIN = 1e-30f;  // views without a larger number are zero

using Bytes = int8_t __attribute__((vector_size(16)));

// --- one number at a time, for processors without instructions for it ---

[[maybe_unused]] inline Vec from_halves(Halves halves) {
    const Words bits = __builtin_convertvector(halves, Words);
    const Vec size = bits_as<Vec>((bits & 0x7fffu) << 13) * 0x1p112f;  // exact, small ones too
    return bits_as<Vec>(bits_as<Words>(size) | ((bits & 0x8000u) << 16));
}

// To nearest, ties to even. `value` is at most FLOAT16_MOST in size.
[[maybe_unused]] inline Halves to_halves(Vec value) {
    const Words bits = bits_as<Words>(value);
    const Words sign = (bits >> 16) & 0x8000u;
    const Words size = bits & 0x7fffffffu;
    const Words normal = (size - (112u << 23) + 0xfffu + ((size >> 13) & 1u)) >> 13;
    const Words small = bits_as<Words>(bits_as<Vec>(size) + 0.5f) - bits_as<Words>(splat(0.5f));
    const Words chosen = size < (113u << 23) ? small : normal;
    return __builtin_convertvector(chosen | sign, Halves);
}

inline Vec widen_halves(Halves halves) {
#ifdef SMILE_AVX512
    return bits_as<Vec>(_mm512_cvtph_ps(bits_as<__m256i>(halves)));
#else
    return from_halves(halves);
#endif
}

inline Halves narrow_halves(Vec value) {
#ifdef SMILE_AVX512
    return bits_as<Halves>(_mm512_cvtps_ph(bits_as<__m512>(value), _MM_FROUND_TO_NEAREST_INT));
#else
    return to_halves(value);
#endif
}

inline Vec widen_bytes(Bytes bytes) {
#ifdef SMILE_AVX512
    return bits_as<Vec>(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bits_as<__m128i>(bytes))));
#else
    return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Vec);
#endif
}

// To nearest, ties to even. Numbers are at most INT8_MOST in size.
inline Bytes narrow_bytes(Vec value) {
#ifdef SMILE_AVX512
    return bits_as<Bytes>(_mm512_cvtepi32_epi8(_mm512_cvtps_epi32(bits_as<__m512>(value))));
#else
    Bytes bytes;
    for (int lane = 0; lane < LANES; ++lane)
        bytes[lane] = static_cast<int8_t>(std::nearbyint(value[lane]));
    return bytes;
#endif
}

inline float largest_of(Vec value) {
    float most = value[0];
    for (int lane = 1; lane < LANES; ++lane) most = value[lane] > most ? value[lane] : most;
    return most;
}

template <class V, class E>
inline V part_of(const E* from, int count) {
    V value{};
    if (count == LANES)
        std::memcpy(&value, from, sizeof(value));
    else
        std::memcpy(&value, from, sizeof(E) * count);
    return value;
}

// --- the two formats: the size of a view, how to read it and how to write it ---

struct Float16View {
    const uint16_t* at;

    static int64_t bytes(int64_t width) { return width * 2; }
    explicit Float16View(const char* from) : at(reinterpret_cast<const uint16_t*>(from)) {}
    Vec load(int64_t offset, int lanes) const {
        return widen_halves(part_of<Halves>(at + offset, lanes));
    }

    template <class T>
    static void write(char* to, const T* from, int64_t width) {
        for_lanes(width, [&](int64_t offset, int lanes) {
            const Vec value = load_lanes(from + offset, lanes);
            const Vec bounded = greatest(splat(-FLOAT16_MOST), least(splat(FLOAT16_MOST), value));
            const Halves halves = narrow_halves(bounded);
            std::memcpy(to + offset * 2, &halves, lanes * 2);
        });
    }
};

struct Int8View {
    const int8_t* at;
    float scale;

    static int64_t bytes(int64_t width) { return (width + 3) / 4 * 4 + 4; }
    explicit Int8View(const char* from) : at(reinterpret_cast<const int8_t*>(from) + 4) {
        std::memcpy(&scale, from, sizeof(scale));
    }
    Vec load(int64_t offset, int lanes) const {
        return widen_bytes(part_of<Bytes>(at + offset, lanes)) * scale;
    }

    template <class T>
    static void write(char* to, const T* from, int64_t width) {
        Vec sizes{};
        for_lanes(width, [&](int64_t at, int lanes) {
            const Vec value = load_lanes(from + at, lanes);
            sizes = greatest(sizes, greatest(value, -value));
        });
        const float most = largest_of(sizes);
        const bool some = most > SCALED_MIN;
        const float scale = some ? most / INT8_MOST : 0.0f, by = some ? INT8_MOST / most : 0.0f;
        std::memset(to, 0, bytes(width));
        std::memcpy(to, &scale, sizeof(scale));
        for_lanes(width, [&](int64_t at, int lanes) {
            const Bytes numbers = narrow_bytes(load_lanes(from + at, lanes) * by);
            std::memcpy(to + sizeof(scale) + at, &numbers, lanes);
        });
    }
};

template <class Body>
void with_format(int64_t format, const Body& body) {
    if (format == INT8)
        body(static_cast<Int8View*>(nullptr));
    else
        body(static_cast<Float16View*>(nullptr));
}

// Rows by number: those of several stores, each numbered on from the one before.
struct Stores {
    const int64_t* bounds;  // of each store: its first row's number, its address
    int64_t count, row_bytes;

    // None for a negative number.
    const char* operator[](int32_t number) const {
        if (number < 0) return nullptr;
        int64_t at = count - 1;
        while (bounds[2 * at] > number) --at;
        const auto* from = reinterpret_cast<const char*>(bounds[2 * at + 1]);
        return from + (number - bounds[2 * at]) * row_bytes;
    }
};

// The three rows that meet at a token, and what its place adds.
template <class T>
struct Places {
    const int32_t* rows;
    const int64_t* positions;
    int64_t tokens;
    const T *position, *segment;
    int64_t position_offset;
};

// out[i] = LayerNorm(centre(i) + left(i + 1) + right(i - 1) + position + segment): what the rows of
// a token and of its neighbours in the same text say of it.
template <class T, class View>
void merge_piece(const Places<T>& places, const Stores& stores, const Norm& norm,
                 const Sizes& sizes, Rows<T> out, int64_t begin, int64_t end) {
    const int64_t width = sizes.width, view = View::bytes(width);
    thread_local Scratch scratch;
    char* nothing = scratch.of<char>(view);  // zeros are zero in both formats
    std::memset(nothing, 0, view);
    const auto row_of = [&](int64_t token) -> const char* {
        return token < 0 || token >= places.tokens ? nullptr : stores[places.rows[token]];
    };
    const auto view_of = [&](const char* row, int which) {
        return View(row == nullptr ? nothing : row + which * view);
    };
    const char *before = row_of(begin - 1), *here = row_of(begin), *after = row_of(begin + 1);
    float* sum = row_scratch(width);
    for (int64_t token = begin; token < end; ++token) {
        const char* later = row_of(token + 2);
        if (later != nullptr) fetch(later, stores.row_bytes);
        const bool first = places.positions[token] == 0;
        const bool last = token + 1 >= places.tokens || places.positions[token + 1] == 0;
        const View right = view_of(first ? nullptr : before, 2), centre = view_of(here, 1);
        const View left = view_of(last ? nullptr : after, 0);
        const T* where =
            places.position + (places.positions[token] + places.position_offset) * width;
        for_lanes(width, [&](int64_t at, int lanes) {
            const Vec said = (centre.load(at, lanes) + left.load(at, lanes)) + right.load(at, lanes);
            const Vec place = load_lanes(where + at, lanes) + load_lanes(places.segment + at, lanes);
            store(sum + at, said + place);
        });
        normalise(sum, width, norm.weight, norm.bias, norm.epsilon, out[token]);
        before = here, here = after, after = later;
    }
}

template <class T>
void merge(Arguments from) {
    Places<T> places{};
    places.rows = from.pointer<const int32_t>();
    places.positions = from.pointer<const int64_t>();
    places.position_offset = from.number();
    places.position = from.pointer<const T>();
    places.segment = from.pointer<const T>();
    const int64_t format = from.number();
    Stores stores{};
    stores.row_bytes = from.number();
    stores.count = from.number();
    stores.bounds = from.pointer<const int64_t>();
    const auto out = from.rows<T>();
    const Norm norm = norm_of(from);
    const Sizes sizes = sizes_of(from);
    places.tokens = sizes.rows;
    with_format(format, [&](auto* view) {
        using View = std::remove_pointer_t<decltype(view)>;
        parallel_for(sizes.rows, rows_per_piece(sizes.width), sizes.threads,
                     [&](int64_t begin, int64_t end) {
                         merge_piece<T, View>(places, stores, norm, sizes, out, begin, end);
                     });
    });
}

// Rows of numbers, views side by side, as tables store them.
template <class T>
void pack_rows(Arguments from) {
    const auto rows = from.rows<const T>();
    auto* out = from.pointer<char>();
    const int64_t format = from.number(), row_bytes = from.number();
    const Sizes sizes = sizes_of(from);
    with_format(format, [&](auto* view) {
        using View = std::remove_pointer_t<decltype(view)>;
        const int64_t bytes = View::bytes(sizes.width);
        for_rows(sizes, [&](int64_t row) {
            for (int which = 0; which < VIEWS; ++which)
                View::write(out + row * row_bytes + which * bytes, rows[row] + which * sizes.width,
                            sizes.width);
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

SMILE_ENTRIES(ngrams_merge, merge)
SMILE_ENTRIES(ngrams_pack, pack_rows)
