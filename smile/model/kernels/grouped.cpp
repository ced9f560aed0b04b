// Task ops of many modules in one call: see GroupedKernels in grouped.py for what each computes.
//
// A task is up to 64 rows of one member, so its weights come from memory once and from cache after.
// A row's sums run over the inner dimension in order, in one register each, whatever rows share its
// tile: results do not depend on what else is in the batch, to the bit.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "activations.h"
#include "products.h"
#include "sparse.h"
#include "tiles.h"

namespace {

using namespace smile;
using namespace smile::grouped;

constexpr int64_t BLOCK_ROWS = 64;

// Types: 0 float32, 1 bfloat16.
struct Call {
    Rows<const void> x;  // strides are in elements
    Rows<void> y;
    const int64_t* addresses;  // [members], where each member's row of bytes starts
    const int32_t* ends;       // [members], where each member's rows of x and y end
    int64_t members, inputs, outputs;
    int64_t rows_type, weights_type;
    int threads;
};

// `threads` is a call's last argument, behind those of its own.
Call call_of(Arguments& from) {
    return {{from.pointer<const void>(), from.number()},
            {from.pointer<void>(), from.number()},
            from.pointer<const int64_t>(),
            from.pointer<const int32_t>(),
            from.number(),
            from.number(),
            from.number(),
            from.number(),
            from.number(),
            1};
}

struct Block {
    int64_t member, begin, end;
};

struct Module {  // weights of a block's member
    const char* at;
    int64_t ahead;  // bytes from there to those of this thread's next block
};

// Calls body(module, first row, last row + 1) for every block, in parallel.
template <class Body>
void for_blocks(const Call& call, const Body& body) {
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
            const Block& next = blocks[first + 1 < last ? first + 1 : first];
            const int64_t at = call.addresses[block.member];
            body(Module{reinterpret_cast<const char*>(at), call.addresses[next.member] - at},
                 block.begin, block.end);
        }
    });
}

// Calls body(Row{}, Weight{}), values of the types that rows and weights are stored in.
template <class Body>
void with_types(const Call& call, const Body& body) {
    if (call.rows_type == 0)
        call.weights_type == 0 ? body(float{}, float{}) : body(float{}, Bfloat{});
    else
        call.weights_type == 0 ? body(Bfloat{}, float{}) : body(Bfloat{}, Bfloat{});
}

template <class W>
const W* field(const Module& module, int64_t offset) {
    return offset < 0 ? nullptr : reinterpret_cast<const W*>(module.at + offset);
}

// Calls body(module, rows of x, rows of y, number of rows, Weight{}) for every block.
template <class Body>
void for_rows(const Call& call, const Body& body) {
    with_types(call, [&](auto row, auto stored) {
        using T = decltype(row);
        for_blocks(call, [&](const Module& module, int64_t begin, int64_t end) {
            const auto* x = static_cast<const T*>(call.x.at) + begin * call.x.stride;
            T* y = static_cast<T*>(call.y.at) + begin * call.y.stride;
            body(module, x, y, end - begin, stored);
        });
    });
}

template <class T, class W>
constexpr bool TILED = std::is_same_v<T, Bfloat> && std::is_same_v<W, Bfloat>;

}  // namespace

// --- entry points: first a `Call`, then offsets of fields, in bytes from a member's address; -1 is
// no field; last the threads ---

extern "C" void smile_grouped_linear(const Word* arguments) {
    Arguments from(arguments);
    Call call = call_of(from);
    const int64_t weight = from.number(), bias = from.number();
    call.threads = static_cast<int>(from.number());
    for_rows(call, [&](const Module& module, auto* x, auto* y, int64_t rows, auto stored) {
        using W = decltype(stored);
        const Matrix<W> weights{field<W>(module, weight), call.outputs, call.inputs, call.outputs,
                                field<W>(module, bias), module.ahead};
#ifdef __AMX_BF16__
        if constexpr (TILED<std::remove_pointer_t<decltype(y)>, W>)
            if (amx::allowed())
                return tiled::multiply_rows(x, call.x.stride, rows, weights, y, call.y.stride);
#endif
        multiply_rows(x, call.x.stride, rows, weights, y, call.y.stride);
    });
}

// Through `rank` columns: matrix and bias down, matrix and bias up. `activation` is -1 for none.
extern "C" void smile_grouped_through(const Word* arguments) {
    Arguments from(arguments);
    Call call = call_of(from);
    const int64_t rank = from.number();
    const int64_t down_weight = from.number(), down_bias = from.number();
    const int64_t up_weight = from.number(), up_bias = from.number();
    const auto activation = static_cast<int>(from.number());
    call.threads = static_cast<int>(from.number());
    for_rows(call, [&](const Module& module, auto* x, auto* y, int64_t rows, auto stored) {
        using W = decltype(stored);
        using T = std::remove_pointer_t<decltype(y)>;
        const Matrix<W> down{field<W>(module, down_weight), rank, call.inputs, rank,
                             field<W>(module, down_bias), module.ahead};
        const Matrix<W> up{field<W>(module, up_weight), call.outputs, rank, call.outputs,
                           field<W>(module, up_bias), module.ahead};
        const auto middle = [&](float* narrow, int64_t count) {
            if (activation < 0) return;
            with_activation(activation, [&](auto kind) {
                for_lanes(count, [&](int64_t offset, int) {
                    store(narrow + offset, activated<T, kind.value>(load(narrow + offset)));
                });
            });
        };
#ifdef __AMX_BF16__
        if constexpr (TILED<T, W>)
            if (amx::allowed())
                return tiled::add_through(x, call.x.stride, y, call.y.stride, rows, down, up,
                                          middle);
#endif
        add_through(x, call.x.stride, y, call.y.stride, rows, down, up, middle);
    });
}

extern "C" void smile_grouped_vectors(const Word* arguments) {
    Arguments from(arguments);
    Call call = call_of(from);
    const int64_t vector = from.number();
    call.threads = static_cast<int>(from.number());
    for_rows(call, [&](const Module& module, auto*, auto* y, int64_t rows, auto stored) {
        const auto* added = field<decltype(stored)>(module, vector);
        for (int64_t row = 0; row < rows; ++row) {
            auto* to = y + row * call.y.stride;
            for_lanes(call.outputs, [&](int64_t offset, int lanes) {
                const Vec sum = load_lanes(to + offset, lanes) + load_lanes(added + offset, lanes);
                store_lanes(to + offset, sum, lanes);
            });
        }
    });
}

extern "C" void smile_grouped_sparse(const Word* arguments) {
    Arguments from(arguments);
    Call call = call_of(from);
    const int64_t indices = from.number(), values = from.number(), count = from.number();
    call.threads = static_cast<int>(from.number());
    for_rows(call, [&](const Module& module, auto* x, auto* y, int64_t rows, auto stored) {
        using W = decltype(stored);
        const Entries<W> entries{field<int32_t>(module, indices), field<W>(module, values), count,
                                 call.inputs, call.outputs};
        add_sparse(x, call.x.stride, y, call.y.stride, rows, entries);
    });
}
