// Normal numbers by Box and Muller's transform: the operations of grass-core's gaussian/normal.rs, one rounding each in
// the same order, so that the bits are the same. The intrinsics are never contracted to fused operations.

#pragma once

#include "common.cuh"

__device__ __forceinline__ float times(float a, float b) { return __fmul_rn(a, b); }

__device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }

// ln u for u = (word + 1) / 2^32. With u = 2^exponent (1 + f) and 1 + f from sqrt(1/2) to sqrt(2),
// ln(1 + f) = f - f^2 / 2 + f^3 P(f).
__device__ __forceinline__ float ln_of_word(u32 word) {
    constexpr int SQRT_HALF = 0x3F3504F3;
    // ln 2: the first part has so few digits that its product with an exponent is exact.
    constexpr float LN_2_HIGH = 0.6933594f, LN_2_LOW = -2.1219444e-4f;
    // The largest word gives 2^32 all the same, by rounding.
    const float rounded = static_cast<float>(min(word, 0xFFFFFFFEu) + 1);
    const int bits = static_cast<int>(__float_as_uint(rounded));
    const int power = (bits - SQRT_HALF) >> 23;
    const float mantissa = __uint_as_float(static_cast<u32>(bits) - (static_cast<u32>(power) << 23));
    // Near 1, u has lost its last digits by rounding; 1 - u keeps them.
    const float f = power == 32 ? times(-static_cast<float>(static_cast<int>(~word)), 1.0f / 4294967296.0f)
                                : plus(mantissa, -1.0f);
    const float exponent = static_cast<float>(power - 32);
    constexpr float COEFFICIENTS[] = {0.12881622f, -0.13128768f, 0.14181196f, -0.16624553f,
                                      0.20002286f, -0.2500081f,  0.33333317f};
    float p = -0.07859546f;
#pragma unroll
    for (int i = 0; i < 7; ++i) p = plus(times(p, f), COEFFICIENTS[i]);
    const float square = times(f, f);
    const float rest = plus(plus(times(times(square, f), p), times(exponent, LN_2_LOW)), -times(0.5f, square));
    return plus(plus(rest, f), times(exponent, LN_2_HIGH));
}

struct Pair {
    float first, second;
};

// Cosine and sine of 2 pi v for v = word / 2^32: some quarters of a turn, and an angle pi / 4 z with z from -1 to 1.
//
// The largest terms are taken of the upper digits of z, with coefficients so short that they are exact.
__device__ __forceinline__ Pair cos_and_sin_of_word(u32 word) {
    constexpr u32 EIGHTH = 1u << 29;
    constexpr int LOW_DIGITS = (1 << 21) - 1;
    constexpr float SIN_HIGH = 0.7854004f, SIN_LOW = -2.238082e-6f;
    constexpr float COS_HIGH = -0.30859375f, COS_LOW = 1.6861416e-4f;
    const u32 quarter = (word + EIGHTH) >> 30;
    const int angle = static_cast<int>(word - (quarter << 30));
    const float high = times(static_cast<float>(angle & ~LOW_DIGITS), 1.0f / EIGHTH);
    const float low = times(static_cast<float>(angle & LOW_DIGITS), 1.0f / EIGHTH);
    const float z = plus(high, low);
    const float square = times(z, z);
    const float p = plus(times(plus(times(-3.587726e-5f, square), 2.489872e-3f), square), -8.074537e-2f);
    const float sine = plus(plus(times(z, plus(times(p, square), SIN_LOW)), times(low, SIN_HIGH)),
                            times(high, SIN_HIGH));
    const float q = plus(times(plus(times(3.5313345e-6f, square), -3.25942e-4f), square), 1.5854328e-2f);
    const float rest = plus(times(plus(times(q, square), COS_LOW), square), times(times(low, plus(z, high)), COS_HIGH));
    const float cosine = plus(rest, plus(times(times(high, high), COS_HIGH), 1.0f));
    const bool swapped = quarter & 1;
    return {with_sign(swapped ? sine : cosine, (quarter + 1) << 30),
            with_sign(swapped ? cosine : sine, quarter << 30)};
}

// Numbers 2 q and 2 q + 1 of a seed, from words 2 q and 2 q + 1 of its stream GAUSSIAN.
__device__ __forceinline__ Pair normal_pair(u32 first, u32 second) {
    const float radius = __fsqrt_rn(times(-2.0f, ln_of_word(first)));
    const Pair turn = cos_and_sin_of_word(second);
    return {times(radius, turn.first), times(radius, turn.second)};
}
