// What every kernel stands on: 16 floats at a time, two storage types, one pool of threads.
//
// `Vec` is a vector extension of GCC and Clang: the compiler makes it one AVX-512 register, two of
// AVX2, or whatever the machine has. Intrinsics appear only where the extension cannot say it.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define SMILE_AVX512 1
#endif

// The entry point of libgomp, which torch has loaded; libomp and libiomp5 have it too. Weak and
// not linked: so there is exactly the thread pool that torch uses, whichever compiler built this.
extern "C" __attribute__((weak)) void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned);

namespace smile {

constexpr int LANES = 16;
constexpr size_t ALIGNMENT = 64;

using Vec = float __attribute__((vector_size(64)));
using Ints = int32_t __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));
using Halves = uint16_t __attribute__((vector_size(32)));

struct Bfloat {  // the upper half of a float's bits
    uint16_t bits;
};
static_assert(sizeof(Bfloat) == 2);

union Word {  // one argument of a kernel's C entry: these are all the kinds there are
    int64_t i;
    double f;
    void* p;
};
static_assert(sizeof(Word) == 8);

inline Vec splat(float value) { return value - Vec{}; }

// a where it is less than b, else b; NaN in `b` stays NaN.
inline Vec least(Vec a, Vec b) { return a < b ? a : b; }
inline Vec greatest(Vec a, Vec b) { return a > b ? a : b; }

template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(to));
    return to;
}

// --- loads and stores: any alignment; `count` of 1 to 16 lanes, the others zero or untouched ---

inline Vec load(const float* from) {
    Vec value;
    std::memcpy(&value, from, sizeof(value));
    return value;
}

inline Vec widen(Halves halves) {
#ifdef SMILE_AVX512  // GCC 12 makes four instructions of the conversion
    return bits_as<Vec>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits_as<__m256i>(halves)), 16));
#else
    return bits_as<Vec>(__builtin_convertvector(halves, Words) << 16);
#endif
}

inline Vec load(const Bfloat* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof(halves));
    return widen(halves);
}

// To nearest, ties to even; NaN stays NaN.
inline Halves narrow(Vec value) {
#ifdef __AVX512BF16__
    return bits_as<Halves>(_mm512_cvtneps_pbh(bits_as<__m512>(value)));
#else
    const Words bits = bits_as<Words>(value);
    const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const Words quiet = (bits >> 16) | 0x40u;
    return __builtin_convertvector(value == value ? rounded : quiet, Halves);
#endif
}

inline void store(float* to, Vec value) { std::memcpy(to, &value, sizeof(value)); }

inline void store(Bfloat* to, Vec value) {
    const Halves halves = narrow(value);
    std::memcpy(to, &halves, sizeof(halves));
}

inline Vec load_part(const float* from, int count) {
#ifdef SMILE_AVX512
    return bits_as<Vec>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), from));
#else
    Vec value{};
    std::memcpy(&value, from, sizeof(float) * count);
    return value;
#endif
}

inline Vec load_part(const Bfloat* from, int count) {
#ifdef SMILE_AVX512
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    return widen(bits_as<Halves>(_mm256_maskz_loadu_epi16(mask, from)));
#else
    Halves halves{};
    std::memcpy(&halves, from, sizeof(Bfloat) * count);
    return widen(halves);
#endif
}

inline void store_part(float* to, Vec value, int count) {
#ifdef SMILE_AVX512
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    _mm512_mask_storeu_ps(to, mask, bits_as<__m512>(value));
#else
    std::memcpy(to, &value, sizeof(float) * count);
#endif
}

inline void store_part(Bfloat* to, Vec value, int count) {
    const Halves halves = narrow(value);
#ifdef SMILE_AVX512
    const auto mask = static_cast<__mmask16>((1u << count) - 1);
    _mm256_mask_storeu_epi16(to, mask, bits_as<__m256i>(halves));
#else
    std::memcpy(to, &halves, sizeof(Bfloat) * count);
#endif
}

inline float to_float(float value) { return value; }
inline float to_float(Bfloat value) {
    return bits_as<float>(static_cast<uint32_t>(value.bits) << 16);
}

// Asks for the lines of `bytes` bytes to be brought near; any address will do.
inline void fetch(const void* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(static_cast<const char*>(from) + at, 0, 2);
}

// The sum of all lanes, in an order that depends on nothing.
inline float sum_of(Vec value) {
    float lanes[LANES];
    std::memcpy(lanes, &value, sizeof(value));
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
    return lanes[0];
}

// --- arguments ---

template <class T>
struct Rows {  // of a matrix; elements of a row lie side by side
    T* at;
    int64_t stride;

    T* operator[](int64_t row) const { return at + row * stride; }
};

// An entry point's arguments, one after another. Take them in braces: that fixes their order.
class Arguments {
public:
    explicit Arguments(const Word* first) : next_(first) {}

    int64_t number() { return (next_++)->i; }
    float real() { return static_cast<float>((next_++)->f); }

    template <class T>
    T* pointer() {
        return static_cast<T*>((next_++)->p);
    }

    template <class T>
    Rows<T> rows() {
        return {pointer<T>(), number()};
    }

private:
    const Word* next_;
};

// Calls body(offset, lanes) over [0, count): whole vectors with 16, then one tail with 1 to 15.
template <class Body>
inline void for_lanes(int64_t count, const Body& body) {
    int64_t offset = 0;
    for (; offset + LANES <= count; offset += LANES) body(offset, LANES);
    if (offset < count) body(offset, static_cast<int>(count - offset));
}

template <class T>
inline Vec load_lanes(const T* from, int lanes) {
    return lanes == LANES ? load(from) : load_part(from, lanes);
}

template <class T>
inline void store_lanes(T* to, Vec value, int lanes) {
    if (lanes == LANES)
        store(to, value);
    else
        store_part(to, value, lanes);
}

// --- memory and threads ---

// Bytes that live as long as their owner, aligned for vectors; grows, never shrinks. One per thread
// and purpose, `thread_local`: no allocation in the steady state.
class Scratch {
public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(data_); }

    template <class T>
    T* of(size_t count) {
        const size_t bytes = (count * sizeof(T) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        if (bytes > bytes_) {
            std::free(data_);
            bytes_ = 0;
            data_ = std::aligned_alloc(ALIGNMENT, bytes);
            if (data_ == nullptr) throw std::bad_alloc();
            bytes_ = bytes;
        }
        return static_cast<T*>(data_);
    }

private:
    void* data_ = nullptr;
    size_t bytes_ = 0;
};

// Calls body(begin, end) over [0, count) in pieces of `grain`, each taken by the next free thread.
// Which thread takes a piece never changes what it computes. `body` may throw std::bad_alloc.
template <class Body>
inline void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
    if (count <= 0) return;
    const int64_t pieces = (count + grain - 1) / grain;
    const auto team = static_cast<unsigned>(pieces < threads ? pieces : threads);
    if (team <= 1 || GOMP_parallel == nullptr) {
        body(int64_t{0}, count);
        return;
    }
    struct Shared {
        const Body& body;
        int64_t count, grain;
        std::atomic<int64_t> next;
        std::atomic<bool> failed;
    } shared{body, count, grain, {0}, {false}};
    const auto work = [](void* argument) {
        auto& all = *static_cast<Shared*>(argument);
        for (;;) {
            const int64_t begin = all.next.fetch_add(all.grain, std::memory_order_relaxed);
            if (begin >= all.count) return;
            try {
                all.body(begin, begin + all.grain < all.count ? begin + all.grain : all.count);
            } catch (const std::bad_alloc&) {  // must not leave a thread of the pool
                all.failed.store(true, std::memory_order_relaxed);
            }
        }
    };
    // Always as many threads as torch uses: libgomp would end and restart those left out.
    GOMP_parallel(work, &shared, static_cast<unsigned>(threads), 0);
    if (shared.failed.load(std::memory_order_relaxed)) throw std::bad_alloc();
}

}  // namespace smile
