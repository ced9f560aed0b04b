// Task ops on bfloat16 rows and weights by AMX tiles: as those of products.h, but that narrow rows
// are rounded to bfloat16 between products.
#pragma once

#include "amx.h"
#include "products.h"

#ifdef __AMX_BF16__

namespace smile::grouped::tiled {

inline amx::Packed pack(const Matrix<Bfloat>& weights, Scratch& scratch) {
    return {weights.at, weights.inner, weights.columns, scratch, weights.ahead};
}

// y[rows, 32] = or += sums + bias, for the columns from `column` on that there are.
inline void put(const float* sums, int64_t rows, int64_t column, const Matrix<Bfloat>& weights,
                Bfloat* y, int64_t y_stride, bool add) {
    const int64_t columns = std::min(weights.columns - column, amx::CHUNK_COLUMNS);
    for_lanes(columns, [&](int64_t offset, int lanes) {
        const Vec bias = weights.bias == nullptr
                             ? Vec{}
                             : load_lanes(weights.bias + column + offset, lanes);
        for (int64_t row = 0; row < rows; ++row) {
            Bfloat* to = y + row * y_stride + column + offset;
            const Vec sum = load(sums + row * amx::CHUNK_COLUMNS + offset) + bias;
            store_lanes(to, add ? load_lanes(to, lanes) + sum : sum, lanes);
        }
    });
}

inline void add_bias(float* sums, int64_t rows, int64_t column, const Matrix<Bfloat>& weights) {
    const int64_t columns = std::min(weights.columns - column, amx::CHUNK_COLUMNS);
    for_lanes(columns, [&](int64_t offset, int lanes) {
        const Vec bias = load_lanes(weights.bias + column + offset, lanes);
        for (int64_t row = 0; row < rows; ++row) {
            float* to = sums + row * amx::CHUNK_COLUMNS + offset;
            store(to, load(to) + bias);
        }
    });
}

inline void multiply_rows(const Bfloat* x, int64_t x_stride, int64_t rows,
                         const Matrix<Bfloat>& weights, Bfloat* y, int64_t y_stride) {
    thread_local Scratch weights_scratch, rows_scratch;
    const amx::Packed packed = pack(weights, weights_scratch);
    for (int64_t row = 0; row < rows;) {
        const int64_t part = even_part(rows - row, amx::CHUNK_ROWS);
        const amx::Tiles tiles(part);
        int64_t stride = x_stride;
        const Bfloat* from =
            amx::padded(x + row * x_stride, stride, part, weights.inner, rows_scratch);
        amx::multiply(from, stride, part, packed, [&](int64_t column, const float* sums) {
            put(sums, part, column, weights, y + row * y_stride, y_stride, false);
        });
        row += part;
    }
}

template <class Middle>
void add_through(const Bfloat* x, int64_t x_stride, Bfloat* y, int64_t y_stride, int64_t rows,
                 const Matrix<Bfloat>& down, const Matrix<Bfloat>& up, const Middle& middle) {
    thread_local Scratch down_scratch, up_scratch, rows_scratch, narrow_scratch;
    const amx::Packed down_packed = pack(down, down_scratch);
    const amx::Packed up_packed = pack(up, up_scratch);
    const int64_t width = up_packed.inner_tiles * amx::TILE_INNER;
    auto* narrow = narrow_scratch.of<Bfloat>(amx::CHUNK_ROWS * width);
    for (int64_t row = 0; row < rows;) {
        const int64_t part = even_part(rows - row, amx::CHUNK_ROWS);
        const amx::Tiles tiles(part);
        int64_t stride = x_stride;
        const Bfloat* from = amx::padded(x + row * x_stride, stride, part, down.inner, rows_scratch);
        std::memset(narrow, 0, part * width * sizeof(Bfloat));
        amx::multiply(from, stride, part, down_packed, [&](int64_t column, float* sums) {
            if (down.bias != nullptr) add_bias(sums, part, column, down);
            middle(sums, part * amx::CHUNK_COLUMNS);
            const int64_t columns = std::min(down.columns - column, amx::CHUNK_COLUMNS);
            for (int64_t r = 0; r < part; ++r)
                for_lanes(columns, [&](int64_t offset, int lanes) {
                    store_lanes(narrow + r * width + column + offset,
                                load(sums + r * amx::CHUNK_COLUMNS + offset), lanes);
                });
        });
        amx::multiply(narrow, width, part, up_packed, [&](int64_t column, const float* sums) {
            put(sums, part, column, up, y + row * y_stride, y_stride, true);
        });
        row += part;
    }
}

}  // namespace smile::grouped::tiled

#endif
