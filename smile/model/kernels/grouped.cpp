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
                    return tiled::multiply_rows(from, call->x_stride, end - begin, weights, to,
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
                    return tiled::add_through(from, call->x_stride, to, call->y_stride, end - begin,
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
