// Dense products of rows of any number with packed weights (linear.h), by AMX tiles where there are
// any.
#include "linear.h"

#include "amx.h"

namespace smile::linear {
namespace {

// Rows of a piece lie in the second cache while panel after panel, each in the first one or near,
// passes over them.
constexpr int64_t PIECE_BYTES = 384 << 10;
constexpr int64_t PIECE_ROWS = 256;
constexpr int64_t ROWS_MULTIPLE = 32;
constexpr int64_t PIECES_PER_THREAD = 4;

#ifdef __AMX_BF16__

// Weights that lie in the second cache themselves pass over few rows at a time instead: those stay
// in the first, and results go where the ones beside them went just before.
constexpr int64_t NEAR_ELEMENTS = 640 << 10;

struct Finished {  // sums of which no results were made yet
    const float* sums = nullptr;
    int64_t rows = 0, row = 0, column = 0;
};

// sums [16 or 32, 32] of rows and one panel; beside(step) is called after each product of tiles.
template <bool TALL, class Beside>
inline void sum_tiles(Rows<const Bfloat> x, const Bfloat* panel, int64_t inner_tiles, float* sums,
                      const Beside& beside) {
    constexpr int64_t LINE_BYTES = PANEL * sizeof(float);
    const int64_t row_bytes = x.stride * static_cast<int64_t>(sizeof(Bfloat));
    const Bfloat *upper = x[0], *lower = x[amx::TILE_ROWS];
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (TALL) {
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t inner = 0; inner < inner_tiles; ++inner) {
        _tile_loadd(4, upper + inner * amx::TILE_INNER, row_bytes);
        _tile_loadd(6, panel, LINE_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, panel + LANES * STEP_INPUTS<Bfloat>, LINE_BYTES);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (TALL) {
            _tile_loadd(5, lower + inner * amx::TILE_INNER, row_bytes);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
        panel += amx::TILE_ROWS * LINE<Bfloat>;
        beside(inner);
    }
    __asm__ volatile("" ::: "memory");  // the intrinsics do not say that they write memory
    _tile_stored(0, sums, LINE_BYTES);
    _tile_stored(1, sums + LANES, LINE_BYTES);
    if constexpr (TALL) {
        _tile_stored(2, sums + amx::TILE_ROWS * PANEL, LINE_BYTES);
        _tile_stored(3, sums + amx::TILE_ROWS * PANEL + LANES, LINE_BYTES);
    }
    __asm__ volatile("" ::: "memory");
}

// One product after another by the tiles, and beside each one, in the vector units, the results of
// the sums before it.
template <class Change>
class Tiled {
public:
    Tiled(const Product<Bfloat>& product, const Change& change)
        : product_(product),
          change_(change),
          inner_tiles_(amx::tiles(product.inputs, amx::TILE_INNER)) {}

    // `rows` rows, 1 to 32, for y's rows from `row` on; tiles of this thread must be shaped for
    // them.
    void add(Rows<const Bfloat> x, int64_t rows, int64_t row, int64_t panel) {
        float* sums = before_.sums == sums_[0] ? sums_[1] : sums_[0];
        const int64_t each = parts(before_.rows, inner_tiles_);
        const auto beside = [&](int64_t step) {
            finish_rows(step * each, std::min(before_.rows, (step + 1) * each));
        };
        const Bfloat* weights = product_.panel(panel);
        if (rows > amx::TILE_ROWS)
            sum_tiles<true>(x, weights, inner_tiles_, sums, beside);
        else
            sum_tiles<false>(x, weights, inner_tiles_, sums, beside);
        before_ = {sums, rows, row, panel * PANEL};
    }

    void end() { finish_rows(0, before_.rows); }

private:
    void finish_rows(int64_t first, int64_t last) {
        finish(product_, before_.sums + first * PANEL, last - first, before_.row + first,
               before_.column, change_);
    }

    alignas(ALIGNMENT) float sums_[2][amx::CHUNK_ROWS * PANEL];
    const Product<Bfloat>& product_;
    const Change& change_;
    const int64_t inner_tiles_;
    Finished before_;
};

template <class Change>
void run_tiles(const Product<Bfloat>& product, const Piece& piece, const Change& change) {
    thread_local Scratch scratch;
    Rows<const Bfloat> x{product.x[piece.row], product.x.stride};
    x.at = amx::padded(x.at, x.stride, piece.rows, product.inputs, scratch);
    Tiled<Change> tiled(product, change);
    const int64_t strips = piece.rows / amx::CHUNK_ROWS, whole = strips * amx::CHUNK_ROWS;
    if (strips > 0) {
        const amx::Tiles tiles(amx::CHUNK_ROWS);
        const bool near = product.panel(piece.panels) - product.panel(0) <= NEAR_ELEMENTS;
        for (int64_t at = 0; at < strips * piece.panels; ++at) {
            const int64_t strip = near ? at / piece.panels : at % strips;
            const int64_t panel = near ? at % piece.panels : at / strips;
            tiled.add({x[strip * amx::CHUNK_ROWS], x.stride}, amx::CHUNK_ROWS,
                      piece.row + strip * amx::CHUNK_ROWS, piece.panel + panel);
        }
    }
    if (whole < piece.rows) {
        const amx::Tiles tiles(piece.rows - whole);
        for (int64_t panel = 0; panel < piece.panels; ++panel)
            tiled.add({x[whole], x.stride}, piece.rows - whole, piece.row + whole,
                      piece.panel + panel);
    }
    tiled.end();
}

#endif

template <class Change>
void run(const Product<float>& product, const Piece& piece, const Change& change) {
    run_strips(product, piece, change);
}

template <class Change>
void run(const Product<Bfloat>& product, const Piece& piece, const Change& change) {
#ifdef __AMX_BF16__
    if (amx::allowed()) return run_tiles(product, piece, change);
#endif
    run_strips(product, piece, change);
}

// Calls body(change) with what becomes of sums: themselves, if `kind` is -1.
template <class T, class Body>
void with_change(int kind, const Body& body) {
    if (kind < 0) return body([](Vec sum) { return sum; });
    with_activation(kind, [&](auto chosen) {
        body([](Vec sum) { return activated<T, decltype(chosen)::value>(sum); });
    });
}

template <class T>
void run_all(const Product<T>& product, int activation, int threads) {
    const int64_t row_bytes = product.inputs * static_cast<int64_t>(sizeof(T));
    const int64_t fitting = PIECE_BYTES / row_bytes / ROWS_MULTIPLE * ROWS_MULTIPLE;
    const int64_t rows = std::clamp(fitting, ROWS_MULTIPLE, PIECE_ROWS);
    const int64_t high = parts(product.rows, rows);
    const int64_t wanted = threads > 1 ? parts(PIECES_PER_THREAD * threads, high) : 1;
    const int64_t panels = parts(product.panels(), wanted);
    const int64_t wide = parts(product.panels(), panels);
    with_change<T>(activation, [&](const auto& change) {
        parallel_for(high * wide, 1, threads, [&](int64_t begin, int64_t end) {
            for (int64_t at = begin; at < end; ++at) {
                const int64_t row = at / wide * rows, panel = at % wide * panels;
                run(product,
                    {row, std::min(rows, product.rows - row), panel,
                     std::min(panels, product.panels() - panel)},
                    change);
            }
        });
    });
}

template <class T>
void pack_words(const Word* words) {
    Arguments from(words);
    const T* weight = from.pointer<const T>();
    const int64_t outputs = from.number(), inputs = from.number();
    pack(weight, outputs, inputs, from.pointer<T>());
}

template <class T>
void run_words(const Word* words) {
    Arguments from(words);
    const Product<T> product{
        from.rows<const T>(), from.pointer<const T>(), from.pointer<const float>(),
        from.rows<T>(),       from.number(),           from.number(),
        from.number()};
    const auto activation = static_cast<int>(from.number());
    run_all(product, activation, static_cast<int>(from.number()));
}

}  // namespace
}  // namespace smile::linear

// The C interface, for both storage types:
//   pack: weight [outputs, inputs], outputs, inputs, packed
//   linear: x, its row stride, packed, bias, y, its row stride, rows, inputs, outputs, activation
//       (-1: none), threads
extern "C" {
void smile_pack_float32(const smile::Word* words) { smile::linear::pack_words<float>(words); }
void smile_pack_bfloat16(const smile::Word* words) {
    smile::linear::pack_words<smile::Bfloat>(words);
}
void smile_linear_float32(const smile::Word* words) { smile::linear::run_words<float>(words); }
void smile_linear_bfloat16(const smile::Word* words) {
    smile::linear::run_words<smile::Bfloat>(words);
}
}
