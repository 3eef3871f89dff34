// What every kernel shares: scalars of any input dtype, and the random words of the seeded structures (the same, bit
// for bit, as grass-core's philox module).
//
// A source is compiled for one input dtype at a time: Scalar is defined as double, float, Half or BFloat16.

#pragma once

#include "platform.cuh"

using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

struct Half {
    unsigned short bits;
};

struct BFloat16 {
    unsigned short bits;
};

__device__ __forceinline__ float to_float(float value) { return value; }

__device__ __forceinline__ float to_float(double value) { return static_cast<float>(value); }

__device__ __forceinline__ float to_float(BFloat16 value) {
    return __uint_as_float(static_cast<u32>(value.bits) << 16);
}

__device__ __forceinline__ float to_float(Half value) { return half_bits_to_float(value.bits); }

// A float with its sign turned where the highest bit of `minus` is set; the other bits do not matter.
__device__ __forceinline__ float with_sign(float value, u32 minus) {
    return __uint_as_float(__float_as_uint(value) ^ (minus & 0x80000000u));
}

enum Stream : u32 {
    BUCKET = 2,
    SIGN = 3,
    ROTATION = 4,
    GAUSSIAN = 5,
    TILE_SHIFT = 6,
    TILE_ROW_SIGN = 7,
    TILE_COLUMN_SIGN = 8,
    RADEMACHER = 9,
};

struct Words {
    u32 x, y, z, w;
};

// Words 4 m to 4 m + 3 of a stream: Philox4x32 with ten rounds (Salmon et al., SC 2011).
__device__ __forceinline__ Words four_words(u64 seed, Stream stream, u64 m) {
    u32 k0 = static_cast<u32>(seed), k1 = static_cast<u32>(seed >> 32);
    u32 c0 = static_cast<u32>(m), c1 = static_cast<u32>(m >> 32), c2 = stream, c3 = 0;
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const u32 high0 = __umulhi(0xD2511F53u, c0), low0 = 0xD2511F53u * c0;
        const u32 high1 = __umulhi(0xCD9E8D57u, c2), low1 = 0xCD9E8D57u * c2;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {c0, c1, c2, c3};
}

// Word n of a stream; where many are needed, take four_words.
__device__ __forceinline__ u32 word(u64 seed, Stream stream, u64 n) {
    const Words words = four_words(seed, stream, n / 4);
    const u32 place = static_cast<u32>(n) % 4;
    return place == 0 ? words.x : place == 1 ? words.y : place == 2 ? words.z : words.w;
}

// A word as a number of [0, range).
__device__ __forceinline__ u32 below(u32 range, u32 word) { return __umulhi(word, range); }
