// Where the coordinates of the tile sketch go, and their signs: what both of its kernels share.
//
// The gradient (out, in) is cut into tiles of height x width, numbered row by row. Row i of a tile goes to row
// (i + shift.rows) mod height of the sketch, column j to column (j + shift.columns) mod width, with the product of a
// sign a row and a sign a column.

#pragma once

#include "common.cuh"

// Numbers of a factor's type.
template <class T>
struct Number {
    static __device__ __forceinline__ T zero() { return T(0); }
    static __device__ __forceinline__ T one() { return T(1); }
};

template <>
struct Number<Half> {
    static __device__ __forceinline__ Half zero() { return {0}; }
    static __device__ __forceinline__ Half one() { return {0x3C00}; }
};

template <>
struct Number<BFloat16> {
    static __device__ __forceinline__ BFloat16 zero() { return {0}; }
    static __device__ __forceinline__ BFloat16 one() { return {0x3F80}; }
};

struct Shift {
    u32 rows, columns;
};

__device__ __forceinline__ Shift tile_shift(u64 seed, u64 tile, u32 height, u32 width) {
    const Words words = four_words(seed, TILE_SHIFT, tile / 2);
    const bool even = tile % 2 == 0;
    return {below(height, even ? words.x : words.z), below(width, even ? words.y : words.w)};
}

// The row of a tile that goes to row `place` of the sketch, or likewise a column; `side` is how many there are.
__device__ __forceinline__ u32 turned_back(u32 place, u32 shift, u32 side) {
    return place >= shift ? place - shift : place + (side - shift);
}

// Bits first to first + 31 of a stream.
__device__ __forceinline__ u32 bits_from(u64 seed, Stream stream, u64 first) {
    const Words words = four_words(seed, stream, first / 128);
    const u32 place = static_cast<u32>(first % 128 / 32);
    const u32 low = place == 0 ? words.x : place == 1 ? words.y : place == 2 ? words.z : words.w;
    u32 high = place == 0 ? words.y : place == 1 ? words.z : words.w;
    if (place == 3) high = four_words(seed, stream, first / 128 + 1).x;
    return __funnelshift_r(low, high, static_cast<u32>(first % 32));
}

// The signs of a tile's rows (or columns) that go to rows first to first + 31 of the sketch, the lowest bit first; bits
// past the last row mean nothing.
__device__ __forceinline__ u32 turned_signs(u64 seed, Stream stream, u64 tile, u32 side, u32 shift, u32 first) {
    const u32 begin = turned_back(first, shift, side), before_the_end = side - begin;
    u32 signs = bits_from(seed, stream, tile * side + begin);
    if (before_the_end < 32) {
        const u32 from_the_start = bits_from(seed, stream, tile * side) << before_the_end;
        signs = (signs & ((1u << before_the_end) - 1)) | from_the_start;
    }
    return signs;
}
