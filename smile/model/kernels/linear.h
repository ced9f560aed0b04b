// Dense products with weights that were packed once: y = activation(x W^T + bias).
//
// Packed weights are panels of 32 outputs. A panel has a line of 32 words for each step along the
// inputs; a word is a float, or a pair of bfloat16 side by side, as AVX512-BF16 and AMX want them.
// What is outside the matrix is zero.
//
// A sum takes its products in order of the inputs, in float32, whatever rows are computed beside
// it: a row's result depends neither on the number of rows nor on its place among them.
#pragma once

#include <algorithm>
#include <type_traits>
#include <utility>

#include "activations.h"
#include "common.h"
#include "registers.h"

namespace smile::linear {

constexpr int64_t PANEL = 2 * LANES;     // outputs
constexpr int64_t INPUTS_MULTIPLE = 32;  // two tiles of weights are 16 lines, of pairs

template <class T>
constexpr int64_t STEP_INPUTS = sizeof(float) / sizeof(T);
template <class T>
constexpr int64_t LINE = PANEL * STEP_INPUTS<T>;  // elements

inline int64_t parts(int64_t count, int64_t each) { return (count + each - 1) / each; }

template <class T>
int64_t panel_steps(int64_t inputs) {
    return parts(inputs, INPUTS_MULTIPLE) * (INPUTS_MULTIPLE / STEP_INPUTS<T>);
}

template <class T>
struct Product {
    Rows<const T> x;
    const T* packed;
    const float* bias;
    Rows<T> y;
    int64_t rows, inputs, outputs;

    int64_t panels() const { return parts(outputs, PANEL); }
    const T* panel(int64_t index) const {
        return packed + index * panel_steps<T>(inputs) * LINE<T>;
    }
};

struct Piece {  // of a product: rows and panels from the first of each
    int64_t row, rows, panel, panels;
};

// `weight` [outputs, inputs] to panels.
template <class T>
void pack(const T* weight, int64_t outputs, int64_t inputs, T* packed) {
    constexpr int64_t EACH = STEP_INPUTS<T>;
    const int64_t panel = panel_steps<T>(inputs) * LINE<T>;
    std::memset(packed, 0, parts(outputs, PANEL) * panel * sizeof(T));
    for (int64_t output = 0; output < outputs; ++output) {
        T* to = packed + output / PANEL * panel + output % PANEL * EACH;
        const T* from = weight + output * inputs;
        for (int64_t input = 0; input < inputs; ++input)
            to[input / EACH * LINE<T> + input % EACH] = from[input];
    }
}

// --- from sums to results ---

inline void store_two(float* to, Vec left, Vec right) {
    store(to, left);
    store(to + LANES, right);
}

inline void store_two(Bfloat* to, Vec left, Vec right) {
#ifdef __AVX512BF16__
    const auto both = _mm512_cvtne2ps_pbh(bits_as<__m512>(right), bits_as<__m512>(left));
    std::memcpy(to, &both, sizeof(both));
#else
    store(to, left);
    store(to + LANES, right);
#endif
}

// y[row..., column...] = change(sums + bias) for `rows` rows of sums [rows, 32], rounded once.
template <class T, class Change>
inline void finish(const Product<T>& product, const float* sums, int64_t rows, int64_t row,
                   int64_t column, const Change& change) {
    T* to = product.y[row] + column;
    const float* bias = product.bias + column;
    const int64_t columns = std::min(PANEL, product.outputs - column);
    if (columns == PANEL) {
        const Vec left = load(bias), right = load(bias + LANES);
        for (; rows > 0; --rows, to += product.y.stride, sums += PANEL)
            store_two(to, change(load(sums) + left), change(load(sums + LANES) + right));
    } else {
        for (; rows > 0; --rows, to += product.y.stride, sums += PANEL)
            for_lanes(columns, [&](int64_t at, int lanes) {
                store_lanes(to + at, change(load(sums + at) + load_lanes(bias + at, lanes)), lanes);
            });
    }
}

// --- with vectors ---

#ifdef SMILE_AVX512
constexpr int STRIP_ROWS = 12;
#else
constexpr int STRIP_ROWS = 5;  // AVX2 has 16 registers
#endif
constexpr int STRIP_REGISTERS =
    2;  // a row; beside sums there are 4 of bfloat16 weights, and 1 of x
constexpr int64_t STRIP_COLUMNS = STRIP_REGISTERS * UNITS;

template <class T>
using Weights = std::conditional_t<std::is_same_v<T, float>, Register, Pairs>;

// What rows of T are multiplied as.
#ifdef __AVX512BF16__
template <class T>
using Input = T;
#else
template <class T>
using Input = float;
#endif

inline void add_step(Register& sum, const float* x, Register weights) { sum += fill(*x) * weights; }

#ifdef __AVX512BF16__
inline void add_step(Register& sum, const Bfloat* x, Pairs weights) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof(pair));
    sum = bits_as<Register>(_mm512_dpbf16_ps(bits_as<__m512>(sum),
                                             bits_as<__m512bh>(_mm512_set1_epi32(pair)),
                                             bits_as<__m512bh>(weights)));
}
#else
inline void add_step(Register& sum, const float* x, Pairs weights) {
    sum += fill(x[0]) * bits_as<Register>(weights << 16);
    sum += fill(x[1]) * bits_as<Register>(weights & 0xffff0000u);
}
#endif

// sums[ROWS, STRIP_COLUMNS] of a [ROWS, 32] matrix. Loops are unrolled so that the sums stay in
// registers.
template <int ROWS, class T>
void strip(Rows<const Input<T>> x, const T* panel, int64_t steps, float* sums) {
    Register total[ROWS][STRIP_REGISTERS] = {};
    for (int64_t step = 0; step < steps; ++step, panel += LINE<T>) {
        Weights<T> weights[STRIP_REGISTERS];
#pragma GCC unroll 16
        for (int part = 0; part < STRIP_REGISTERS; ++part)
            std::memcpy(&weights[part], panel + part * REGISTER_BYTES / sizeof(T), REGISTER_BYTES);
#pragma GCC unroll 16
        for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 16
            for (int part = 0; part < STRIP_REGISTERS; ++part)
                add_step(total[row][part], x[row] + step * STEP_INPUTS<T>, weights[part]);
    }
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row)
#pragma GCC unroll 16
        for (int part = 0; part < STRIP_REGISTERS; ++part)
            std::memcpy(sums + row * PANEL + part * UNITS, &total[row][part], REGISTER_BYTES);
}

template <class T, int... ROWS>
auto strip_of(int64_t rows, std::integer_sequence<int, ROWS...>) {
    constexpr decltype(&strip<1, T>) strips[] = {strip<ROWS + 1, T>...};
    return strips[rows - 1];
}

// Rows for `strip`: themselves, or a copy in scratch: floats of bfloat16, pairs of an odd number of
// inputs, and rows so far apart that they would all have the same few places in the first cache.
template <class T>
Rows<const Input<T>> inputs_of(Rows<const T> x, int64_t rows, int64_t inputs) {
    if constexpr (std::is_same_v<T, Input<T>>) {
        constexpr int64_t SAME_PLACES = 4096 / sizeof(T);
        if (inputs % STEP_INPUTS<T> == 0 && x.stride % SAME_PLACES != 0) return x;
    }
    thread_local Scratch scratch;
    const int64_t width = (parts(inputs, LANES) | 1) * LANES;
    const Rows<Input<T>> copy{scratch.of<Input<T>>(rows * width), width};
    for (int64_t row = 0; row < rows; ++row)
        for_lanes(inputs, [&](int64_t at, int lanes) {
            store(copy[row] + at, load_lanes(x[row] + at, lanes));
        });
    return {copy.at, copy.stride};
}

template <class T, class Change>
void run_strips(const Product<T>& product, const Piece& piece, const Change& change) {
    alignas(ALIGNMENT) float sums[STRIP_ROWS * PANEL];
    const int64_t steps = parts(product.inputs, STEP_INPUTS<T>);
    const Rows<const T> own{product.x[piece.row], product.x.stride};
    const auto x = inputs_of(own, piece.rows, product.inputs);
    for (int64_t index = piece.panel; index < piece.panel + piece.panels; ++index) {
        const T* panel = product.panel(index);
        for (int64_t row = 0; row < piece.rows;) {
            const int64_t left = piece.rows - row, rows = parts(left, parts(left, STRIP_ROWS));
            const auto sum = strip_of<T>(rows, std::make_integer_sequence<int, STRIP_ROWS>{});
            for (int64_t column = 0; column < PANEL; column += STRIP_COLUMNS)
                sum({x[row], x.stride}, panel + column * STEP_INPUTS<T>, steps, sums + column);
            finish(product, sums, rows, piece.row + row, index * PANEL, change);
            row += rows;
        }
    }
}

}  // namespace smile::linear
