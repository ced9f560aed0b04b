// Task ops of many modules in one call: see GroupedKernels in grouped.py for what each computes.
//
// A task is up to 64 rows of one member, so its weights come from memory once and from cache after.
// A row's sums run over the inner dimension in order, in one register each, whatever rows share its
// tile: results do not depend on what else is in the batch, to the bit.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "activations.h"
#include "amx.h"

namespace {

using namespace smile;

constexpr int64_t BLOCK_ROWS = 64;
constexpr int TILE_ROWS = 8;  // 8 x 3 sums and 3 weights fill 27 of AVX-512's 32 registers
constexpr int TILE_VECS = 3;
constexpr int64_t TILE_COLUMNS = TILE_VECS * LANES;

}  // namespace

// As `_Call` in native_grouped.py. Types: 0 float32, 1 bfloat16. Strides are in elements.
struct SmileGroupedCall {
    const void* x;
    void* y;
    const int64_t* addresses;  // [members], where each member's row of bytes starts
    const int32_t* ends;       // [members], where each member's rows of x and y end
    int64_t x_stride, y_stride;
    int64_t members, inputs, rank, outputs;
    int32_t rows_type, weights_type, threads;
};

namespace {

struct Block {
    int64_t member, begin, end;
};

// Calls body(address of the member's weights, first row, last row + 1) for every block, in parallel.
template <class Body>
void for_blocks(const SmileGroupedCall& call, const Body& body) {
    thread_local std::vector<Block> kept;
    std::vector<Block>& blocks = kept;
    blocks.clear();
    int64_t begin = 0;
    for (int64_t member = 0; member < call.members; ++member) {
        const int64_t end = call.ends[member];
        for (; begin < end; begin += BLOCK_ROWS)
            blocks.push_back({member, begin, std::min(begin + BLOCK_ROWS, end)});
        begin = end;
    }
    parallel_for(blocks.size(), 1, call.threads, [&](int64_t first, int64_t last) {
        for (; first < last; ++first) {
            const Block& block = blocks[first];
            body(reinterpret_cast<const char*>(call.addresses[block.member]), block.begin,
                 block.end);
        }
    });
}

// Calls body(Row{}, Weight{}), values of the types that rows and weights are stored in.
template <class Body>
void with_types(const SmileGroupedCall& call, const Body& body) {
    if (call.rows_type == 0)
        call.weights_type == 0 ? body(float{}, float{}) : body(float{}, Bfloat{});
    else
        call.weights_type == 0 ? body(Bfloat{}, float{}) : body(Bfloat{}, Bfloat{});
}

template <class W>
const W* field(const char* address, int64_t offset) {
    return offset < 0 ? nullptr : reinterpret_cast<const W*>(address + offset);
}

// --- dense products ---

template <class W>
struct Matrix {  // weights [inner, columns], rows at a stride, and a bias [columns] or none
    const W* at;
    int64_t stride, inner, columns;
    const W* bias;
};

// Columns of a vector that may be a matrix's last. Padded widths are multiples of 8.
template <class T>
inline Vec load_columns(const T* from, int lanes) {
#ifdef SMILE_AVX512
    return load_part(from, lanes);
#else
    if (lanes == LANES) return load(from);
    return lanes == 8 ? load_part(from, 8) : load_part(from, lanes);
#endif
}

// out[ROWS, VECS * 16] = bias + x[ROWS, inner] weights (+ out). The last vector has `lanes` lanes.
// Loops over sums are unrolled so that the sums stay in registers.
template <int ROWS, int VECS, class W>
void tile(const float* x, int64_t x_stride, const Matrix<W>& weights, int lanes, float* out,
          int64_t out_stride, bool add) {
    Vec sums[ROWS][VECS];
#pragma GCC unroll 8
    for (int vec = 0; vec < VECS; ++vec) {
        const int width = vec == VECS - 1 ? lanes : LANES;
        const Vec bias =
            weights.bias == nullptr ? Vec{} : load_part(weights.bias + vec * LANES, width);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) sums[row][vec] = bias;
    }
    const W* from = weights.at;
    for (int64_t step = 0; step < weights.inner; ++step, from += weights.stride) {
        Vec loaded[VECS];
#pragma GCC unroll 8
        for (int vec = 0; vec < VECS - 1; ++vec) loaded[vec] = load(from + vec * LANES);
        loaded[VECS - 1] = load_columns(from + (VECS - 1) * LANES, lanes);
#pragma GCC unroll 8
        for (int row = 0; row < ROWS; ++row) {
            const Vec value = splat(x[row * x_stride + step]);
#pragma GCC unroll 8
            for (int vec = 0; vec < VECS; ++vec) sums[row][vec] += value * loaded[vec];
        }
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 8
        for (int vec = 0; vec < VECS; ++vec) {
            float* to = out + row * out_stride + vec * LANES;
            const int width = vec == VECS - 1 ? lanes : LANES;
            const Vec before = add ? load_part(to, width) : Vec{};
            store_part(to, add ? before + sums[row][vec] : sums[row][vec], width);
        }
    }
}

template <class W>
using Tile = void (*)(const float*, int64_t, const Matrix<W>&, int, float*, int64_t, bool);

template <class W, int ROWS>
constexpr Tile<W> tile_of(int64_t vecs) {
    constexpr Tile<W> tiles[] = {tile<ROWS, 1, W>, tile<ROWS, 2, W>, tile<ROWS, 3, W>};
    static_assert(sizeof(tiles) == TILE_VECS * sizeof(*tiles));
    return tiles[vecs - 1];
}

template <class W>
Tile<W> tile_of(int64_t rows, int64_t vecs) {
    switch (rows) {
        case 1: return tile_of<W, 1>(vecs);
        case 2: return tile_of<W, 2>(vecs);
        case 3: return tile_of<W, 3>(vecs);
        case 4: return tile_of<W, 4>(vecs);
        case 5: return tile_of<W, 5>(vecs);
        case 6: return tile_of<W, 6>(vecs);
        case 7: return tile_of<W, 7>(vecs);
        default: return tile_of<W, TILE_ROWS>(vecs);
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
    const int lanes = static_cast<int>(columns.columns - (vecs - 1) * LANES);
    for (int64_t row = 0; row < rows;) {
        const int64_t part = even_part(rows - row, TILE_ROWS);
        tile_of<W>(part, vecs)(x + row * x_stride, x_stride, columns, lanes,
                               out + row * out_stride, out_stride, add);
        row += part;
    }
}

// Calls body(first column, some of the matrix's columns, vectors they take) for all columns.
template <class W, class Body>
void for_columns(const Matrix<W>& weights, const Body& body) {
    for (int64_t column = 0; column < weights.columns;) {
        const int64_t left = weights.columns - column;
        const int64_t vecs = even_part((left + LANES - 1) / LANES, TILE_VECS);
        const W* bias = weights.bias == nullptr ? nullptr : weights.bias + column;
        body(column,
             Matrix<W>{weights.at + column, weights.stride, weights.inner,
                       std::min(vecs * LANES, left), bias},
             vecs);
        column += vecs * LANES;
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
inline const float* floats(const float* x, int64_t& stride, int64_t, int64_t) {
    (void)stride;
    return x;
}

const float* floats(const Bfloat* x, int64_t& stride, int64_t rows, int64_t width) {
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

#ifdef __AMX_BF16__

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

void add_bias(float* sums, int64_t rows, int64_t column, const Matrix<Bfloat>& weights) {
    const int64_t columns = std::min(weights.columns - column, amx::CHUNK_COLUMNS);
    for_lanes(columns, [&](int64_t offset, int lanes) {
        const Vec bias = load_lanes(weights.bias + column + offset, lanes);
        for (int64_t row = 0; row < rows; ++row) {
            float* to = sums + row * amx::CHUNK_COLUMNS + offset;
            store(to, load(to) + bias);
        }
    });
}

// As the general ones above, but that narrow rows are rounded to bfloat16 between products.
void tiled_multiply_rows(const Bfloat* x, int64_t x_stride, int64_t rows,
                         const Matrix<Bfloat>& weights, Bfloat* y, int64_t y_stride) {
    thread_local Scratch weights_scratch, rows_scratch;
    const amx::Packed packed(weights.at, weights.inner, weights.columns, weights_scratch);
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
void tiled_add_through(const Bfloat* x, int64_t x_stride, Bfloat* y, int64_t y_stride, int64_t rows,
                 const Matrix<Bfloat>& down, const Matrix<Bfloat>& up, const Middle& middle) {
    thread_local Scratch down_scratch, up_scratch, rows_scratch, narrow_scratch;
    const amx::Packed down_packed(down.at, down.inner, down.columns, down_scratch);
    const amx::Packed up_packed(up.at, up.inner, up.columns, up_scratch);
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

#endif

// --- sparse products ---

// to[column * stride + row] = from[row, column], for 16 rows at most; missing rows become zeros.
template <class T>
void transpose_in(const T* from, int64_t from_stride, int64_t rows, int64_t columns, float* to,
                  int64_t stride) {
    for (int64_t column = 0; column < columns; ++column)
        for (int64_t row = 0; row < LANES; ++row)
            to[column * stride + row] =
                row < rows ? to_float(from[row * from_stride + column]) : 0.0f;
}

inline void add_to(float* to, float value) { *to += value; }
inline void add_to(Bfloat* to, float value) {
    const Halves halves = narrow(splat(to_float(*to) + value));
    std::memcpy(to, &halves, sizeof(Bfloat));
}

// The reverse, added.
template <class T>
void transpose_out(const float* from, int64_t stride, T* to, int64_t to_stride, int64_t rows,
                   int64_t columns) {
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t column = 0; column < columns; ++column)
            add_to(to + row * to_stride + column, from[column * stride + row]);
}

template <class W>
struct Entries {  // i << 16 | o and a value, sorted by (o, i)
    const int32_t* indices;
    const W* values;
    int64_t count, inputs, outputs;
};

// out[o, VECS * 16] += in[i, VECS * 16] * value for every entry; those outside are passed over.
template <int VECS, class W>
void add_entries(const Entries<W>& entries, const float* in, float* out) {
    constexpr int64_t STRIDE = VECS * LANES;
    int64_t held = 0;  // the output in registers
    Vec sums[VECS];
#pragma GCC unroll 8
    for (int vec = 0; vec < VECS; ++vec) sums[vec] = load(out + vec * LANES);
    for (int64_t entry = 0; entry < entries.count; ++entry) {
        const auto index = static_cast<uint32_t>(entries.indices[entry]);
        const int64_t i = index >> 16, o = index & 0xffff;
        if (i >= entries.inputs || o >= entries.outputs) continue;
        if (o != held) {
#pragma GCC unroll 8
            for (int vec = 0; vec < VECS; ++vec) {
                store(out + held * STRIDE + vec * LANES, sums[vec]);
                sums[vec] = load(out + o * STRIDE + vec * LANES);
            }
            held = o;
        }
        const Vec value = splat(to_float(entries.values[entry]));
#pragma GCC unroll 8
        for (int vec = 0; vec < VECS; ++vec)
            sums[vec] += load(in + i * STRIDE + vec * LANES) * value;
    }
#pragma GCC unroll 8
    for (int vec = 0; vec < VECS; ++vec) store(out + held * STRIDE + vec * LANES, sums[vec]);
}

template <int VECS, class T, class W>
void add_sparse(const T* x, int64_t x_stride, T* y, int64_t y_stride, int64_t rows,
                const Entries<W>& entries) {
    constexpr int64_t STRIDE = VECS * LANES;
    thread_local Scratch scratch;
    float* in = scratch.of<float>((entries.inputs + entries.outputs) * STRIDE);
    float* out = in + entries.inputs * STRIDE;
    for (int64_t row = 0; row < STRIDE; row += LANES)
        transpose_in(x + std::min(row, rows) * x_stride, x_stride, std::max<int64_t>(rows - row, 0),
                     entries.inputs, in + row, STRIDE);
    std::memset(out, 0, entries.outputs * STRIDE * sizeof(float));
    add_entries<VECS>(entries, in, out);
    for (int64_t row = 0; row < rows; row += LANES)
        transpose_out(out + row, STRIDE, y + row * y_stride, y_stride,
                      std::min<int64_t>(rows - row, LANES), entries.outputs);
}

template <class T, class W>
void add_sparse(const T* x, int64_t x_stride, T* y, int64_t y_stride, int64_t rows,
                const Entries<W>& entries) {
    switch ((rows + LANES - 1) / LANES) {
        case 1: return add_sparse<1>(x, x_stride, y, y_stride, rows, entries);
        case 2: return add_sparse<2>(x, x_stride, y, y_stride, rows, entries);
        case 3: return add_sparse<3>(x, x_stride, y, y_stride, rows, entries);
        default: return add_sparse<4>(x, x_stride, y, y_stride, rows, entries);
    }
}
static_assert(BLOCK_ROWS == 4 * LANES);

}  // namespace

// --- entry points: offsets are of fields, in bytes from a member's address; -1 is no field ---

extern "C" void smile_grouped_linear(const SmileGroupedCall* call, int64_t weight, int64_t bias) {
    with_types(*call, [&](auto row, auto stored) {
        using T = decltype(row);
        using W = decltype(stored);
        const auto* x = static_cast<const T*>(call->x);
        auto* y = static_cast<T*>(call->y);
        for_blocks(*call, [&](const char* at, int64_t begin, int64_t end) {
            const Matrix<W> weights{field<W>(at, weight), call->outputs, call->inputs,
                                    call->outputs, field<W>(at, bias)};
            const T* from = x + begin * call->x_stride;
            T* to = y + begin * call->y_stride;
#ifdef __AMX_BF16__
            if constexpr (std::is_same_v<T, Bfloat> && std::is_same_v<W, Bfloat>)
                if (amx::allowed())
                    return tiled_multiply_rows(from, call->x_stride, end - begin, weights, to,
                                               call->y_stride);
#endif
            multiply_rows(from, call->x_stride, end - begin, weights, to, call->y_stride);
        });
    });
}

// `activation` is -1 for none.
extern "C" void smile_grouped_through(const SmileGroupedCall* call, const int64_t* offsets,
                                      int32_t activation) {
    with_types(*call, [&](auto row, auto stored) {
        using T = decltype(row);
        using W = decltype(stored);
        const auto* x = static_cast<const T*>(call->x);
        auto* y = static_cast<T*>(call->y);
        const auto middle = [&](float* narrow, int64_t count) {
            if (activation < 0) return;
            with_activation(activation, [&](auto kind) {
                for_lanes(count, [&](int64_t offset, int) {
                    store(narrow + offset, activated<T, kind.value>(load(narrow + offset)));
                });
            });
        };
        for_blocks(*call, [&](const char* at, int64_t begin, int64_t end) {
            const Matrix<W> down{field<W>(at, offsets[0]), call->rank, call->inputs, call->rank,
                                 field<W>(at, offsets[1])};
            const Matrix<W> up{field<W>(at, offsets[2]), call->outputs, call->rank, call->outputs,
                               field<W>(at, offsets[3])};
            const T* from = x + begin * call->x_stride;
            T* to = y + begin * call->y_stride;
#ifdef __AMX_BF16__
            if constexpr (std::is_same_v<T, Bfloat> && std::is_same_v<W, Bfloat>)
                if (amx::allowed())
                    return tiled_add_through(from, call->x_stride, to, call->y_stride, end - begin,
                                             down, up, middle);
#endif
            add_through(from, call->x_stride, to, call->y_stride, end - begin, down, up, middle);
        });
    });
}

extern "C" void smile_grouped_vectors(const SmileGroupedCall* call, int64_t vector) {
    with_types(*call, [&](auto row, auto stored) {
        using T = decltype(row);
        using W = decltype(stored);
        for_blocks(*call, [&](const char* at, int64_t begin, int64_t end) {
            const W* from = field<W>(at, vector);
            for (; begin < end; ++begin) {
                T* to = static_cast<T*>(call->y) + begin * call->y_stride;
                for_lanes(call->outputs, [&](int64_t offset, int lanes) {
                    const Vec sum = load_lanes(to + offset, lanes) + load_lanes(from + offset, lanes);
                    store_lanes(to + offset, sum, lanes);
                });
            }
        });
    });
}

extern "C" void smile_grouped_sparse(const SmileGroupedCall* call, int64_t indices, int64_t values,
                                     int64_t count) {
    with_types(*call, [&](auto row, auto stored) {
        using T = decltype(row);
        using W = decltype(stored);
        const auto* x = static_cast<const T*>(call->x);
        auto* y = static_cast<T*>(call->y);
        for_blocks(*call, [&](const char* at, int64_t begin, int64_t end) {
            const Entries<W> entries{field<int32_t>(at, indices), field<W>(at, values), count,
                                     call->inputs, call->outputs};
            add_sparse(x + begin * call->x_stride, call->x_stride, y + begin * call->y_stride,
                       call->y_stride, end - begin, entries);
        });
    });
}
