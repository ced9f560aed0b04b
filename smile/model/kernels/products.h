// Products of rows with weights in vector registers, sums in float32: any types, any widths.
//
// A row's sums run over the inner dimension in order, in one register each, whatever rows share its
// tile.
#pragma once

#include <algorithm>
#include <utility>

#include "common.h"
#include "registers.h"

namespace smile::grouped {

#ifdef SMILE_AVX512
constexpr int TILE_ROWS = 8;  // 8 x 3 sums and 3 weights fill 27 of 32 registers
constexpr int TILE_VECS = 3;
#else
constexpr int TILE_ROWS = 5;  // 5 x 2 sums, 2 weights and an input: 13 of AVX2's 16 registers
constexpr int TILE_VECS = LANES / UNITS;
#endif
constexpr int64_t TILE_COLUMNS = TILE_VECS * UNITS;

template <class W>
struct Matrix {  // weights [inner, columns], rows at a stride, and a bias [columns] or none
    const W* at;
    int64_t stride, inner, columns;
    const W* bias;
    int64_t ahead = 0;  // bytes to the weights that will be wanted next
};

// out[ROWS, VECS * UNITS] = bias + x[ROWS, inner] weights (+ out). The last vector has `lanes`
// lanes. Loops over sums are unrolled so that the sums stay in registers.
template <int ROWS, int VECS, class W>
void tile(const float* x, int64_t x_stride, const Matrix<W>& weights, int lanes, float* out,
          int64_t out_stride, bool add) {
    Register sums[ROWS][VECS];
#pragma GCC unroll 8
    for (int vec = 0; vec < VECS; ++vec) {
        const int width = vec == VECS - 1 ? lanes : UNITS;
        const Register bias =
            weights.bias == nullptr ? Register{} : load_register(weights.bias + vec * UNITS, width);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) sums[row][vec] = bias;
    }
    const W* from = weights.at;
    for (int64_t step = 0; step < weights.inner; ++step, from += weights.stride) {
        fetch(reinterpret_cast<const char*>(from) + weights.ahead, VECS * UNITS * sizeof(W));
        Register loaded[VECS];
#pragma GCC unroll 8
        for (int vec = 0; vec < VECS - 1; ++vec)
            loaded[vec] = load_register(from + vec * UNITS, UNITS);
        loaded[VECS - 1] = load_register(from + (VECS - 1) * UNITS, lanes);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) {
            const Register value = fill(x[row * x_stride + step]);
#pragma GCC unroll 8
            for (int vec = 0; vec < VECS; ++vec) sums[row][vec] += value * loaded[vec];
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 8
        for (int vec = 0; vec < VECS; ++vec) {
            float* to = out + row * out_stride + vec * UNITS;
            const int width = vec == VECS - 1 ? lanes : UNITS;
            const Register before = add ? load_register(to, width) : Register{};
            store_register(to, add ? before + sums[row][vec] : sums[row][vec], width);
        }
    }
}

template <class W>
using Tile = void (*)(const float*, int64_t, const Matrix<W>&, int, float*, int64_t, bool);

template <class W, int ROWS, int... VECS>
Tile<W> tile_of(int64_t vecs, std::integer_sequence<int, VECS...>) {
    constexpr Tile<W> tiles[] = {tile<ROWS, VECS + 1, W>...};
    return tiles[vecs - 1];
}

template <class W>
Tile<W> tile_of(int64_t rows, int64_t vecs) {
    constexpr auto VECS = std::make_integer_sequence<int, TILE_VECS>{};
    switch (std::min<int64_t>(rows, TILE_ROWS)) {
        case 1: return tile_of<W, 1>(vecs, VECS);
        case 2: return tile_of<W, 2>(vecs, VECS);
        case 3: return tile_of<W, 3>(vecs, VECS);
        case 4: return tile_of<W, 4>(vecs, VECS);
        case 5: return tile_of<W, 5>(vecs, VECS);
        case 6: return tile_of<W, 6>(vecs, VECS);
        case 7: return tile_of<W, 7>(vecs, VECS);
        default: return tile_of<W, TILE_ROWS>(vecs, VECS);
    }
}

// The next part of `left` things, when they go in as few parts of at most `most` as they can.
inline int64_t even_part(int64_t left, int64_t most) {
    const int64_t parts = (left + most - 1) / most;
    return (left + parts - 1) / parts;
}

template <class W>
void product(const float* x, int64_t x_stride, int64_t rows, const Matrix<W>& columns, int64_t vecs,
             float* out, int64_t out_stride, bool add) {
    const int lanes = static_cast<int>(columns.columns - (vecs - 1) * UNITS);
    for (int64_t row = 0; row < rows;) {
        const int64_t part = even_part(rows - row, TILE_ROWS);
        tile_of<W>(part, vecs)(x + row * x_stride, x_stride, columns, lanes, out + row * out_stride,
                               out_stride, add);
        row += part;
    }
}

// Calls body(first column, some of the matrix's columns, vectors they take) for all columns.
template <class W, class Body>
void for_columns(const Matrix<W>& weights, const Body& body) {
    for (int64_t column = 0; column < weights.columns;) {
        const int64_t left = weights.columns - column;
        const int64_t vecs = even_part((left + UNITS - 1) / UNITS, TILE_VECS);
        const W* bias = weights.bias == nullptr ? nullptr : weights.bias + column;
        body(column,
             Matrix<W>{weights.at + column, weights.stride, weights.inner,
                       std::min(vecs * UNITS, left), bias, weights.ahead},
             vecs);
        column += vecs * UNITS;
    }
}

// y = or += x weights + bias, in float32 all through but for y itself.
template <class W>
void multiply(const float* x, int64_t x_stride, int64_t rows, const Matrix<W>& weights, float* y,
              int64_t y_stride, bool add) {
    for_columns(weights, [&](int64_t column, const Matrix<W>& columns, int64_t vecs) {
        product(x, x_stride, rows, columns, vecs, y + column, y_stride, add);
    });
}

template <class W>
void multiply(const float* x, int64_t x_stride, int64_t rows, const Matrix<W>& weights, Bfloat* y,
              int64_t y_stride, bool add) {
    alignas(ALIGNMENT) float sums[TILE_ROWS * TILE_COLUMNS];
    for_columns(weights, [&](int64_t column, const Matrix<W>& columns, int64_t vecs) {
        for (int64_t row = 0; row < rows;) {
            const int64_t part = even_part(rows - row, TILE_ROWS);
            product(x + row * x_stride, x_stride, part, columns, vecs, sums, TILE_COLUMNS, false);
            for (int64_t r = 0; r < part; ++r)
                for_lanes(columns.columns, [&](int64_t offset, int lanes) {
                    Bfloat* to = y + (row + r) * y_stride + column + offset;
                    const Vec sum = load(sums + r * TILE_COLUMNS + offset);
                    store_lanes(to, add ? load_lanes(to, lanes) + sum : sum, lanes);
                });
            row += part;
        }
    });
}

// Rows as float32: themselves, or a copy in scratch.
inline const float* floats(const float* x, int64_t&, int64_t, int64_t) { return x; }

inline const float* floats(const Bfloat* x, int64_t& stride, int64_t rows, int64_t width) {
    thread_local Scratch scratch;
    const int64_t padded = (width + LANES - 1) / LANES * LANES;
    float* copy = scratch.of<float>(rows * padded);
    for (int64_t row = 0; row < rows; ++row)
        for_lanes(width, [&](int64_t offset, int lanes) {
            store(copy + row * padded + offset, load_lanes(x + row * stride + offset, lanes));
        });
    stride = padded;
    return copy;
}

// y = or += x weights + bias, for rows of any number; x is read before y is written.
template <class T, class W, class Y>
void multiply_rows(const T* x, int64_t x_stride, int64_t rows, const Matrix<W>& weights, Y* y,
                   int64_t y_stride) {
    for (int64_t row = 0; row < rows;) {
        const int64_t part = even_part(rows - row, TILE_ROWS);
        int64_t stride = x_stride;
        const float* wide = floats(x + row * x_stride, stride, part, weights.inner);
        multiply(wide, stride, part, weights, y + row * y_stride, y_stride, false);
        row += part;
    }
}

// y += f(x down + d) up + u, where f changes the narrow rows [rows, stride] in place.
template <class T, class W, class Middle>
void add_through(const T* x, int64_t x_stride, T* y, int64_t y_stride, int64_t rows,
                 const Matrix<W>& down, const Matrix<W>& up, const Middle& middle) {
    thread_local Scratch scratch;
    const int64_t stride = (down.columns + LANES - 1) / LANES * LANES;
    float* narrow = scratch.of<float>(rows * stride);
    multiply_rows(x, x_stride, rows, down, narrow, stride);
    middle(narrow, rows * stride);
    multiply(narrow, stride, rows, up, y, y_stride, true);
}

}  // namespace smile::grouped
