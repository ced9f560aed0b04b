// Products with sparse matrices: 16 to 64 rows at a time lie transposed, so an entry is one product
// of vectors however many rows there are.
#pragma once

#include <algorithm>

#include "common.h"

namespace smile::grouped {

template <class W>
struct Entries {  // [count] of i << 16 | o and of values; fastest where sorted by (o, i)
    const int32_t* indices;
    const W* values;
    int64_t count, inputs, outputs;
};

inline void transpose(Vec (&rows)[LANES]) {
#ifdef SMILE_AVX512
    __m512 pairs[LANES], fours[LANES];
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i += 2) {
        const auto even = bits_as<__m512>(rows[i]), odd = bits_as<__m512>(rows[i + 1]);
        pairs[i] = _mm512_unpacklo_ps(even, odd);
        pairs[i + 1] = _mm512_unpackhi_ps(even, odd);
    }
#pragma GCC unroll 8
    for (int i = 0; i < LANES; ++i) {  // fours[4 g + j]: lane l has column 4 l + j of rows 4 g...
        const int group = i & ~3, high = i >> 1 & 1;
        const auto a = bits_as<__m512d>(pairs[group + high]);
        const auto b = bits_as<__m512d>(pairs[group + high + 2]);
        fours[i] = bits_as<__m512>(i & 1 ? _mm512_unpackhi_pd(a, b) : _mm512_unpacklo_pd(a, b));
    }
#pragma GCC unroll 8
    for (int j = 0; j < 4; ++j) {
        const __m512 even_low = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0x88);
        const __m512 odd_low = _mm512_shuffle_f32x4(fours[j], fours[4 + j], 0xdd);
        const __m512 even_high = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0x88);
        const __m512 odd_high = _mm512_shuffle_f32x4(fours[8 + j], fours[12 + j], 0xdd);
        rows[j] = bits_as<Vec>(_mm512_shuffle_f32x4(even_low, even_high, 0x88));
        rows[4 + j] = bits_as<Vec>(_mm512_shuffle_f32x4(odd_low, odd_high, 0x88));
        rows[8 + j] = bits_as<Vec>(_mm512_shuffle_f32x4(even_low, even_high, 0xdd));
        rows[12 + j] = bits_as<Vec>(_mm512_shuffle_f32x4(odd_low, odd_high, 0xdd));
    }
#else
    float from[LANES][LANES], to[LANES][LANES];
    std::memcpy(from, rows, sizeof(from));
    for (int row = 0; row < LANES; ++row)
        for (int column = 0; column < LANES; ++column) to[column][row] = from[row][column];
    std::memcpy(rows, to, sizeof(to));
#endif
}

// to[column * stride + row] = from[row, column], for 16 rows; those from `rows` on become zeros.
template <class T>
inline void transpose_in(const T* from, int64_t from_stride, int64_t rows, int64_t columns,
                         float* to, int64_t stride) {
    for_lanes(columns, [&](int64_t offset, int lanes) {
        Vec block[LANES];
#pragma GCC unroll 16
        for (int row = 0; row < LANES; ++row)
            block[row] =
                row < rows ? load_lanes(from + row * from_stride + offset, lanes) : Vec{};
        transpose(block);
        for (int column = 0; column < lanes; ++column)
            store(to + (offset + column) * stride, block[column]);
    });
}

// The reverse, added to `rows` of 16 rows.
template <class T>
inline void transpose_out(const float* from, int64_t stride, T* to, int64_t to_stride, int64_t rows,
                          int64_t columns) {
    for_lanes(columns, [&](int64_t offset, int lanes) {
        Vec block[LANES];
#pragma GCC unroll 16
        for (int column = 0; column < LANES; ++column)
            block[column] = column < lanes ? load(from + (offset + column) * stride) : Vec{};
        transpose(block);
        for (int64_t row = 0; row < rows; ++row) {
            T* place = to + row * to_stride + offset;
            store_lanes(place, load_lanes(place, lanes) + block[row], lanes);
        }
    });
}

// out[o, VECS * 16] += in[i, VECS * 16] * value for every entry. Entries are a tenant's data: those
// outside the matrix are passed over, which costs two comparisons that never mispredict.
template <int VECS, class W>
inline void add_entries(const Entries<W>& entries, const float* in, float* out) {
    constexpr int64_t STRIDE = VECS * LANES;
    int64_t held = 0;  // the output in registers
    Vec sums[VECS];
#pragma GCC unroll 4
    for (int vec = 0; vec < VECS; ++vec) sums[vec] = load(out + vec * LANES);
    for (int64_t entry = 0; entry < entries.count; ++entry) {
        const auto index = static_cast<uint32_t>(entries.indices[entry]);
        const int64_t i = index >> 16, o = index & 0xffff;
        if (i >= entries.inputs || o >= entries.outputs) continue;
        if (o != held) {
#pragma GCC unroll 4
            for (int vec = 0; vec < VECS; ++vec) {
                store(out + held * STRIDE + vec * LANES, sums[vec]);
                sums[vec] = load(out + o * STRIDE + vec * LANES);
            }
            held = o;
        }
        const Vec value = splat(to_float(entries.values[entry]));
#pragma GCC unroll 4
        for (int vec = 0; vec < VECS; ++vec)
            sums[vec] += load(in + i * STRIDE + vec * LANES) * value;
    }
#pragma GCC unroll 4
    for (int vec = 0; vec < VECS; ++vec) store(out + held * STRIDE + vec * LANES, sums[vec]);
}

template <int VECS, class T, class W>
inline void add_sparse(const T* x, int64_t x_stride, T* y, int64_t y_stride, int64_t rows,
                       const Entries<W>& entries) {
    constexpr int64_t STRIDE = VECS * LANES;
    thread_local Scratch scratch;
    float* in = scratch.of<float>((entries.inputs + entries.outputs) * STRIDE);
    float* out = in + entries.inputs * STRIDE;
    for (int64_t row = 0; row < STRIDE; row += LANES)
        transpose_in(x + row * x_stride, x_stride, rows - row, entries.inputs, in + row, STRIDE);
    std::memset(out, 0, entries.outputs * STRIDE * sizeof(float));
    add_entries<VECS>(entries, in, out);
    for (int64_t row = 0; row < rows; row += LANES)
        transpose_out(out + row, STRIDE, y + row * y_stride, y_stride,
                      std::min<int64_t>(rows - row, LANES), entries.outputs);
}

// y += x matrix, for 1 to 64 rows; x is read before y is written.
template <class T, class W>
inline void add_sparse(const T* x, int64_t x_stride, T* y, int64_t y_stride, int64_t rows,
                       const Entries<W>& entries) {
    switch ((rows + LANES - 1) / LANES) {
        case 1: return add_sparse<1>(x, x_stride, y, y_stride, rows, entries);
        case 2: return add_sparse<2>(x, x_stride, y, y_stride, rows, entries);
        case 3: return add_sparse<3>(x, x_stride, y, y_stride, rows, entries);
        default: return add_sparse<4>(x, x_stride, y, y_stride, rows, entries);
    }
}

}  // namespace smile::grouped
