// Products of bfloat16 rows by AMX tiles, sums in float32. Only where the compiler's target has it
// and the kernel grants it; intrinsics are Intel's (Intel 64 SDM vol. 1, chapter 18).
//
// A tile is 16 rows of 64 bytes. A sum takes its products in order of the inner dimension, whatever
// rows share its tile.
#pragma once

#include "common.h"

#ifdef __AMX_BF16__

#include <algorithm>

#include <sys/syscall.h>
#include <unistd.h>

namespace smile::amx {

constexpr int64_t TILE_ROWS = 16;
constexpr int64_t TILE_INNER = 32;
constexpr int64_t TILE_ELEMENTS = TILE_ROWS * TILE_INNER;
constexpr int64_t CHUNK_ROWS = 2 * TILE_ROWS;  // rows whose sums are held at a time: 2 x 2 tiles
constexpr int64_t CHUNK_COLUMNS = 2 * LANES;

inline int64_t tiles(int64_t width, int64_t each) { return (width + each - 1) / each; }

// Whether this process may use tiles: Linux grants them on request (arch_prctl, since 5.16).
inline bool allowed() {
    constexpr int REQUEST = 0x1023, TILE_DATA = 18;
    static const bool granted = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
    return granted;
}

// Tiles of one thread while it lives: sums 0-3 (rows by columns: 00, 01, 10, 11), rows 4 and 5,
// weights 6 and 7. `rows` of 1 to 32 is what rows tiles hold together.
class Tiles {
public:
    explicit Tiles(int64_t rows) {
        struct alignas(ALIGNMENT) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        const auto first = static_cast<uint8_t>(std::min(rows, TILE_ROWS));
        const auto second = static_cast<uint8_t>(std::max<int64_t>(rows - TILE_ROWS, 1));
        const uint8_t heights[] = {first, first, second, second, first, second, 16, 16};
        for (int tile = 0; tile < 8; ++tile) {
            shape.row_bytes[tile] = 64;
            shape.rows[tile] = heights[tile];
        }
        __asm__ volatile("" ::: "memory");  // the intrinsics do not say that they read memory
        _tile_loadconfig(&shape);
    }
    Tiles(const Tiles&) = delete;
    Tiles& operator=(const Tiles&) = delete;
    ~Tiles() { _tile_release(); }
};

// Weights [inner, columns] as tiles want them: [inner / 32, columns / 16] tiles, each 16 pairs of
// inner rows, interleaved; what is outside the matrix is zero. Meanwhile what lies `ahead` bytes
// further than the weights is brought near: those to be packed next.
class Packed {
public:
    Packed(const Bfloat* from, int64_t inner, int64_t columns, Scratch& scratch, int64_t ahead)
        : inner_tiles(tiles(inner, TILE_INNER)), column_tiles(tiles(columns, LANES)) {
        Bfloat* to = scratch.of<Bfloat>(inner_tiles * column_tiles * TILE_ELEMENTS);
        at_ = to;
        for (int64_t pair = 0; pair < inner_tiles * TILE_ROWS; ++pair) {
            Bfloat* row = to + pair / TILE_ROWS * column_tiles * TILE_ELEMENTS +
                          pair % TILE_ROWS * TILE_INNER;
            const Bfloat* even = 2 * pair < inner ? from + 2 * pair * columns : nullptr;
            const Bfloat* odd = 2 * pair + 1 < inner ? from + (2 * pair + 1) * columns : nullptr;
            if (even != nullptr)
                fetch(reinterpret_cast<const char*>(even) + ahead, 2 * columns * sizeof(Bfloat));
            for_lanes(columns, [&](int64_t offset, int lanes) {
                const __m512i high = _mm512_slli_epi32(words(odd, offset, lanes), 16);
                const __m512i both = _mm512_or_si512(high, words(even, offset, lanes));
                _mm512_store_si512(row + offset / LANES * TILE_ELEMENTS, both);
            });
        }
    }

    const Bfloat* tile(int64_t inner, int64_t column) const {
        return at_ + (inner * column_tiles + column) * TILE_ELEMENTS;
    }

    const int64_t inner_tiles, column_tiles;

private:
    static __m512i words(const Bfloat* row, int64_t offset, int lanes) {
        if (row == nullptr) return _mm512_setzero_si512();
        const auto mask = static_cast<__mmask16>((1u << lanes) - 1);
        return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, row + offset));
    }

    const Bfloat* at_;
};

// Calls finish(first column, sums [rows, 32] in float32) for 32 columns of x weights at a time.
// x is [rows, inner tiles * 32] at a stride; the tiles of this thread must be shaped for `rows`.
template <class Finish>
inline void multiply(const Bfloat* x, int64_t stride, int64_t rows, const Packed& weights,
                     const Finish& finish) {
    alignas(ALIGNMENT) float sums[CHUNK_ROWS * CHUNK_COLUMNS];
    const int64_t row_bytes = stride * static_cast<int64_t>(sizeof(Bfloat));
    constexpr int64_t SUMS_BYTES = CHUNK_COLUMNS * sizeof(float);
    const bool tall = rows > TILE_ROWS;
    __asm__ volatile("" ::: "memory");
    for (int64_t column = 0; column < weights.column_tiles; column += 2) {
        const bool wide = column + 1 < weights.column_tiles;
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
        for (int64_t inner = 0; inner < weights.inner_tiles; ++inner) {
            const Bfloat* from = x + inner * TILE_INNER;
            _tile_loadd(4, from, row_bytes);
            _tile_loadd(6, weights.tile(inner, column), 64);
            _tile_dpbf16ps(0, 4, 6);
            if (wide) {
                _tile_loadd(7, weights.tile(inner, column + 1), 64);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (tall) {
                _tile_loadd(5, from + TILE_ROWS * stride, row_bytes);
                _tile_dpbf16ps(2, 5, 6);
                if (wide) _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, sums, SUMS_BYTES);
        _tile_stored(1, sums + LANES, SUMS_BYTES);
        if (tall) {
            _tile_stored(2, sums + TILE_ROWS * CHUNK_COLUMNS, SUMS_BYTES);
            _tile_stored(3, sums + TILE_ROWS * CHUNK_COLUMNS + LANES, SUMS_BYTES);
        }
        __asm__ volatile("" ::: "memory");
        finish(column * LANES, sums);
    }
}

// Rows for `multiply`: themselves, or padded with zeros to whole tiles, in scratch.
inline const Bfloat* padded(const Bfloat* x, int64_t& stride, int64_t rows, int64_t inner,
                            Scratch& scratch) {
    if (inner % TILE_INNER == 0) return x;
    const int64_t width = tiles(inner, TILE_INNER) * TILE_INNER;
    Bfloat* copy = scratch.of<Bfloat>(rows * width);
    std::memset(copy, 0, rows * width * sizeof(Bfloat));
    for (int64_t row = 0; row < rows; ++row)
        std::memcpy(copy + row * width, x + row * stride, inner * sizeof(Bfloat));
    stride = width;
    return copy;
}

}  // namespace smile::amx

#endif
