// Keys of n-grams: where in a table each belongs, and going through many of them.
#pragma once

#include "common.h"

namespace smile {

constexpr int64_t NO_KEY = -1;  // keys are not negative
constexpr int64_t AHEAD = 16;   // keys whose lines are on their way

// Both steps can be undone, so different keys stay different; ngrams.py has the same in NumPy.
inline uint64_t mixed(int64_t key) {
    auto bits = static_cast<uint64_t>(key);
    bits = (bits ^ (bits >> 31)) * 0x9E3779B97F4A7C15u;
    return (bits ^ (bits >> 32)) * 0xD6E8FEB86659FD93u;
}

inline int64_t home(int64_t key, int64_t size) {
    return static_cast<int64_t>(((mixed(key) >> 32) * static_cast<uint64_t>(size)) >> 32);
}

// Calls body(number, home) for every key; the lines of those ahead are on their way.
template <class Line, class Body>
void for_keys(const int64_t* keys, int64_t count, const Line* lines, int64_t size,
              const Body& body) {
    int64_t homes[AHEAD];
    const auto ask = [&](int64_t number) {
        const int64_t at = home(keys[number], size);
        homes[number % AHEAD] = at;
        __builtin_prefetch(lines + at, 1, 3);
    };
    for (int64_t number = 0; number < AHEAD && number < count; ++number) ask(number);
    for (int64_t number = 0; number < count; ++number) {
        const int64_t at = homes[number % AHEAD];
        if (number + AHEAD < count) ask(number + AHEAD);
        body(number, at);
    }
}

}  // namespace smile
