// Which row of a table an n-gram has: open addressing over 64-bit keys in buckets of one cache line.
//
// A bucket holds five keys, their rows, and whether a key that belongs at or before it lies behind
// it. So nearly every question, found or not, costs one line from memory, asked for some questions
// ahead. The table is plain memory: a file mapped by many processes will do.
#include "ngram_keys.h"

namespace smile {
namespace {

constexpr int32_t NO_ROW = -1;
constexpr int PLACES = 5;

struct Bucket {
    int64_t keys[PLACES];
    int32_t rows[PLACES];
    int32_t passed;  // not 0: somebody found this one full
};
static_assert(sizeof(Bucket) == 64);

struct Table {
    Bucket* at;
    int64_t buckets;  // fewer than 2^32
};

// The place of a key in a bucket, or of the first free one for NO_KEY; PLACES if it is not there.
inline int place_of(const Bucket& bucket, int64_t key) {
#ifdef SMILE_AVX512
    const __m512i line = _mm512_loadu_si512(&bucket);
    const unsigned equal = _mm512_cmpeq_epi64_mask(line, _mm512_set1_epi64(key));
    return __builtin_ctz(equal | (1u << PLACES));
#else
    unsigned equal = 1u << PLACES;
    for (int place = 0; place < PLACES; ++place)
        equal |= static_cast<unsigned>(bucket.keys[place] == key) << place;
    return __builtin_ctz(equal);
#endif
}

inline int32_t row_of(const Table& table, int64_t key, int64_t at) {
    for (int64_t left = table.buckets; left > 0; --left) {
        const Bucket& bucket = table.at[at];
        const int place = place_of(bucket, key);
        if (place < PLACES) return bucket.rows[place];
        if (bucket.passed == 0) return NO_ROW;
        at = at + 1 == table.buckets ? 0 : at + 1;
    }
    return NO_ROW;
}

// The last row given to a key stays. There is room: index.py sees to it.
inline void put(const Table& table, int64_t key, int32_t row, int64_t at) {
    for (;;) {
        Bucket& bucket = table.at[at];
        int place = place_of(bucket, key);
        if (place == PLACES && bucket.passed == 0) place = place_of(bucket, NO_KEY);
        if (place < PLACES) {
            bucket.keys[place] = key;
            bucket.rows[place] = row;
            return;
        }
        bucket.passed = 1;
        at = at + 1 == table.buckets ? 0 : at + 1;
    }
}

void build(Arguments from) {
    const auto* keys = from.pointer<const int64_t>();
    const auto* rows = from.pointer<const int32_t>();
    const int64_t count = from.number();
    const Table table{from.pointer<Bucket>(), from.number()};
    Bucket empty{};
    for (int place = 0; place < PLACES; ++place) {
        empty.keys[place] = NO_KEY;
        empty.rows[place] = NO_ROW;
    }
    for (int64_t at = 0; at < table.buckets; ++at) table.at[at] = empty;
    for_keys(keys, count, table.at, table.buckets,
             [&](int64_t number, int64_t at) { put(table, keys[number], rows[number], at); });
}

// rows[i] = first + the row of keys[i]; one that is not there leaves rows[i] as it is.
void find(Arguments from) {
    const auto* keys = from.pointer<const int64_t>();
    const int64_t count = from.number();
    const Table table{from.pointer<Bucket>(), from.number()};
    const auto first = static_cast<int32_t>(from.number());
    auto* rows = from.pointer<int32_t>();
    for_keys(keys, count, table.at, table.buckets, [&](int64_t number, int64_t at) {
        const int32_t row = row_of(table, keys[number], at);
        if (row != NO_ROW) rows[number] = first + row;
    });
}

// Numbers the different keys without a row from `first` on, in the order in which they come up:
// their rows, the keys by number, and how many there are.
void number_missing(Arguments from) {
    const auto* keys = from.pointer<const int64_t>();
    auto* rows = from.pointer<int32_t>();
    const int64_t count = from.number();
    const auto first = static_cast<int32_t>(from.number());
    auto* missing = from.pointer<int64_t>();
    auto* found = from.pointer<int64_t>();
    uint64_t size = 16;
    while (size < 2 * static_cast<uint64_t>(count)) size *= 2;
    thread_local Scratch scratch;
    auto* numbers = scratch.of<int32_t>(size);
    std::memset(numbers, 0xff, size * sizeof(*numbers));
    int32_t next = 0;
    for (int64_t at = 0; at < count; ++at) {
        if (rows[at] != NO_ROW) continue;
        uint64_t place = mixed(keys[at]) & (size - 1);
        while (numbers[place] != NO_ROW && missing[numbers[place]] != keys[at])
            place = (place + 1) & (size - 1);
        if (numbers[place] == NO_ROW) {
            missing[next] = keys[at];
            numbers[place] = next++;
        }
        rows[at] = first + numbers[place];
    }
    *found = next;
}

}  // namespace
}  // namespace smile

#define SMILE_ENTRY(NAME, FUNCTION)                                        \
    extern "C" void smile_##NAME(const smile::Word* arguments) {           \
        smile::FUNCTION(smile::Arguments(arguments));                      \
    }

SMILE_ENTRY(ngrams_build, build)
SMILE_ENTRY(ngrams_find, find)
SMILE_ENTRY(ngrams_number, number_missing)
