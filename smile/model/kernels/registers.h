// Vectors as wide as the target's registers, for sums that must stay in them: GCC keeps wider ones
// in memory, at a tenth of the speed.
#pragma once

#include "common.h"

namespace smile {

#if defined(SMILE_AVX512)
constexpr int REGISTER_BYTES = 64;
#elif defined(__AVX__)
constexpr int REGISTER_BYTES = 32;
#else
constexpr int REGISTER_BYTES = 16;
#endif
constexpr int UNITS = REGISTER_BYTES / sizeof(float);  // floats

using Register = float __attribute__((vector_size(REGISTER_BYTES)));
using Pairs = uint32_t __attribute__((vector_size(REGISTER_BYTES)));  // of bfloat16, or bits

inline Register fill(float value) { return value - Register{}; }

// `count` of 1 to UNITS floats, the others zero or untouched.
inline Register load_register(const float* from, int count) {
#ifdef SMILE_AVX512
    return load_part(from, count);
#else
    Register value{};
    if (count == UNITS)
        std::memcpy(&value, from, sizeof(value));
    else
        std::memcpy(&value, from, sizeof(float) * count);
    return value;
#endif
}

inline Register load_register(const Bfloat* from, int count) {
#ifdef SMILE_AVX512
    return load_part(from, count);
#else
    uint16_t __attribute__((vector_size(REGISTER_BYTES / 2))) halves{};
    if (count == UNITS)
        std::memcpy(&halves, from, sizeof(halves));
    else
        std::memcpy(&halves, from, sizeof(Bfloat) * count);
    return bits_as<Register>(__builtin_convertvector(halves, Pairs) << 16);
#endif
}

inline void store_register(float* to, Register value, int count) {
#ifdef SMILE_AVX512
    store_part(to, value, count);
#else
    if (count == UNITS)
        std::memcpy(to, &value, sizeof(value));
    else
        std::memcpy(to, &value, sizeof(float) * count);
#endif
}

}  // namespace smile
