// How often each n-gram was asked for, and by how many tenants, in memory of a fixed size.
//
// Four cells share a cache line, and a key's count is in its line or nowhere: where all four are
// others', the least one gives way. So what is rare is forgotten first, and no count is ever too
// high. Counts of later questions weigh more, which is how earlier ones decay.
#include "ngram_keys.h"

namespace smile {
namespace {

constexpr int CELLS = 4;

struct Cell {
    int64_t key;
    float count;
    uint32_t tenants;  // a bit for each group of tenants that asked
};

struct Line {
    Cell cells[CELLS];
};
static_assert(sizeof(Line) == 64);

void add(Line& line, int64_t key, float weight, uint32_t tenant) {
    Cell* least = line.cells;
    for (Cell& cell : line.cells) {
        if (cell.key == key) {
            cell.count += weight;
            cell.tenants |= tenant;
            return;
        }
        if (cell.count < least->count) least = &cell;
    }
    *least = {key, weight, tenant};
}

// Counts `weight` more of every key, asked by a tenant of the group whose bit is set.
void count(Arguments from) {
    const auto* keys = from.pointer<const int64_t>();
    const int64_t number_of_keys = from.number();
    auto* lines = from.pointer<Line>();
    const int64_t size = from.number();
    const float weight = from.real();
    const auto tenant = static_cast<uint32_t>(from.number());
    for_keys(keys, number_of_keys, lines, size, [&](int64_t number, int64_t at) {
        add(lines[at], keys[number], weight, tenant);
    });
}

// counts[i] = how often keys[i] was counted, 0 where it has no cell.
void counted(Arguments from) {
    const auto* keys = from.pointer<const int64_t>();
    const int64_t number_of_keys = from.number();
    const auto* lines = from.pointer<const Line>();
    const int64_t size = from.number();
    auto* counts = from.pointer<float>();
    for_keys(keys, number_of_keys, lines, size, [&](int64_t number, int64_t at) {
        counts[number] = 0.0f;
        for (const Cell& cell : lines[at].cells)
            if (cell.key == keys[number]) counts[number] = cell.count;
    });
}

}  // namespace
}  // namespace smile

extern "C" void smile_ngrams_count(const smile::Word* arguments) {
    smile::count(smile::Arguments(arguments));
}

extern "C" void smile_ngrams_counted(const smile::Word* arguments) {
    smile::counted(smile::Arguments(arguments));
}
