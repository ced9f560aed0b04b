// exp2 and activations, 16 lanes at a time. Polynomials are minimax fits of our own; the errors
// stated were measured over all of the range against float64.
#pragma once

#include "common.h"

namespace smile {

// Numbered as smile.model.kernels.activation numbers them.
enum class Activation : int { GELU = 0, GELU_TANH = 1, RELU = 2, SILU = 3, TANH = 4 };

template <size_t DEGREE>
inline Vec polynomial(Vec x, const float (&terms)[DEGREE]) {  // terms[0] + terms[1] x + ...
    Vec sum = splat(terms[DEGREE - 1]);
    for (size_t term = DEGREE - 1; term-- > 0;) sum = sum * x + terms[term];
    return sum;
}

// How exact results must be: what is stored as T hides errors below its own rounding.
template <class T>
struct Exactness;

template <>
struct Exactness<float> {  // exp2: 8e-8 of the result. Phi: 1e-7.
    static constexpr float exp2[] = {1.0000001192092896f, 0.6931469440460205f, 0.2402212023735046f,
                                     0.05550713464617729f, 0.009675540961325169f,
                                     0.0013276466634124517f};
};

template <>
struct Exactness<Bfloat> {  // exp2: 8e-5 of the result. Phi: 4e-5. A bfloat16 has 4e-3.
    static constexpr float exp2[] = {0.9999280571937561f, 0.6932609677314758f,
                                     0.2426111251115799f, 0.055171623826026917f};
};

// 2^x; below 2^-126 it is that. NaN stays NaN.
template <class T>
inline Vec exp2_of(Vec x) {
    constexpr float SHIFT = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    x = least(splat(127.0f), greatest(splat(-126.0f), x));
    const Vec shifted = x + SHIFT;
    const Vec part = polynomial(x - (shifted - SHIFT), Exactness<T>::exp2);
    return bits_as<Vec>(bits_as<Words>(part) + (bits_as<Words>(shifted) << 23));
}

// 1 / (1 + e^-x)
template <class T>
inline Vec sigmoid(Vec x) {
    return 1.0f / (1.0f + exp2_of<T>(x * -1.44269504f));
}

// Phi(x) - 1/2 for the normal distribution, as x P(x^2) / Q(x^2); exactly +-1/2 far out.
inline Vec normal_part(Vec x, float) {
    constexpr float P[] = {0.398942232131958f, 0.03432656452059746f, 0.004703940358012915f,
                           0.0001733029494062066f, 6.348848728521261e-06f,
                           2.2160723034403418e-08f};
    constexpr float Q[] = {1.0f, 0.2527097165584564f, 0.02891097404062748f, 0.001909927697852254f,
                           7.490472489735112e-05f, 1.1800855190813309e-06f};
    x = least(splat(5.6f), greatest(splat(-5.6f), x));
    const Vec square = x * x;
    return x * polynomial(square, P) / polynomial(square, Q);
}

inline Vec normal_part(Vec x, Bfloat) {
    constexpr float P[] = {0.39879247546195984f,    -0.06612130254507065f,
                           0.009666405618190765f,   -0.0010610336903482676f,
                           8.517012611264363e-05f,  -4.799836005986435e-06f,
                           1.7782804206945002e-07f, -3.855057606472201e-09f,
                           3.6832013133869523e-11f};
    x = least(splat(4.4f), greatest(splat(-4.4f), x));
    return x * polynomial(x * x, P);
}

template <class T, Activation KIND>
inline Vec activated(Vec x) {
    if constexpr (KIND == Activation::GELU) {
        return x * (0.5f + normal_part(x, T{}));
    } else if constexpr (KIND == Activation::GELU_TANH) {  // Hendrycks and Gimpel, 1606.08415
        return x * sigmoid<T>(x * (1.5957691216057308f + 0.07135481282780496f * (x * x)));
    } else if constexpr (KIND == Activation::RELU) {
        return greatest(Vec{}, x);
    } else if constexpr (KIND == Activation::TANH) {
        return 2.0f * sigmoid<T>(2.0f * x) - 1.0f;
    } else {
        return x * sigmoid<T>(x);
    }
}

// Calls body with the kind as a compile-time constant: body(Kind<KIND>{}).
template <Activation KIND>
struct Kind {
    static constexpr Activation value = KIND;
};

template <class Body>
inline void with_activation(int kind, const Body& body) {
    switch (static_cast<Activation>(kind)) {
        case Activation::GELU: return body(Kind<Activation::GELU>{});
        case Activation::GELU_TANH: return body(Kind<Activation::GELU_TANH>{});
        case Activation::RELU: return body(Kind<Activation::RELU>{});
        case Activation::SILU: return body(Kind<Activation::SILU>{});
        case Activation::TANH: return body(Kind<Activation::TANH>{});
    }
}

}  // namespace smile
