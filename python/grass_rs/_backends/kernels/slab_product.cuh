// The product of what was staged of both factors: each thread holds some of the slab's values, summed over tokens.
//
// Two forms of the same: on tensor cores, or by multiply-adds of floats.

#pragma once

#include "staged_factors.cuh"
#include "tensor_core.cuh"

constexpr u32 WARPS = THREADS / 32;

// A slab in shared memory, row-major; 32 bytes more a row than it has columns, against bank conflicts.
constexpr u32 SLAB_PAD = 8;
using Slab = float[SLAB_OUT][SLAB_IN + SLAB_PAD];

// Sign bits of a slab's values, 32 columns a word.
using SlabSigns = u32[SLAB_OUT][SLAB_IN / 32];

// Neighbouring values, moved together.
template <u32 COUNT>
struct alignas(4 * COUNT) Neighbours {
    float values[COUNT];
};

template <u32 COUNT>
__device__ __forceinline__ Neighbours<COUNT>& neighbours(float* first) {
    return *reinterpret_cast<Neighbours<COUNT>*>(first);
}

template <u32 COUNT>
__device__ __forceinline__ const Neighbours<COUNT>& neighbours(const float* first) {
    return *reinterpret_cast<const Neighbours<COUNT>*>(first);
}

// Writes values of a row from `column` on, their signs are in `word`.
template <u32 COUNT>
__device__ __forceinline__ void store_signed(Slab& slab, u32 word, u32 row, u32 column, const float* values) {
    Neighbours<COUNT> with_signs;
#pragma unroll
    for (u32 i = 0; i < COUNT; ++i) with_signs.values[i] = with_sign(values[i], word << (31 - column % 32 - i));
    neighbours<COUNT>(&slab[row][column]) = with_signs;
}

#if TENSOR_CORES

struct SlabProduct {
    // The warps lie in WARPS_OUT rows, each has a part of the slab of OUT x IN small products of 16 x 8 values.
    static constexpr u32 WARPS_OUT = 4, WARPS_IN = WARPS / WARPS_OUT;
    static constexpr u32 OUT = SLAB_OUT / WARPS_OUT / 16, IN = SLAB_IN / WARPS_IN / 8;
    static_assert(OUT * WARPS_OUT * 16 == SLAB_OUT && IN * WARPS_IN * 8 == SLAB_IN && IN % 4 == 0);

    float sums[OUT][IN][4] = {};

    __device__ __forceinline__ static u32 first_row() { return threadIdx.x / 32 / WARPS_IN * OUT * 16; }

    __device__ __forceinline__ static u32 first_column() { return threadIdx.x / 32 % WARPS_IN * IN * 8; }

    // Adds the products of `count` tokens. Where that is no multiple of 16, grad_outputs has zeros up to the next
    // one.
    __device__ __forceinline__ void add(const StagedFactor<SLAB_OUT>& grad_outputs, const StagedFactor<SLAB_IN>& inputs,
                                        u32 count) {
        const u32 lane = threadIdx.x % 32;
#pragma unroll 1
        for (u32 token = 0; token < count; token += 16) {
            u32 left[OUT][4];
#pragma unroll
            for (u32 i = 0; i < OUT; ++i)
                load_matrices<true>(left[i], &grad_outputs[token + lane % 8 + lane / 16 * 8]
                                                          [first_row() + 16 * i + lane / 8 % 2 * 8]);
#pragma unroll
            for (u32 j = 0; j < IN; j += 2) {
                u32 right[4];
                load_matrices<true>(right, &inputs[token + lane % 16][first_column() + 8 * j + lane / 16 * 8]);
                const u32 pairs[2][2] = {{right[0], right[1]}, {right[2], right[3]}};
#pragma unroll
                for (u32 i = 0; i < OUT; ++i) {
                    multiply_add<Scalar>(sums[i][j], left[i], pairs[0]);
                    multiply_add<Scalar>(sums[i][j + 1], left[i], pairs[1]);
                }
            }
        }
    }

    __device__ __forceinline__ void store(Slab& slab, const SlabSigns& signs) const {
        const u32 lane = threadIdx.x % 32;
#pragma unroll
        for (u32 i = 0; i < 2 * OUT; ++i) {
            const u32 row = first_row() + 8 * i + lane / 4;
#pragma unroll
            for (u32 word = 0; word < IN / 4; ++word) {
                const u32 first = first_column() + 32 * word, bits = signs[row][first / 32];
#pragma unroll
                for (u32 j = 0; j < 4; ++j)
                    store_signed<2>(slab, bits, row, first + 8 * j + lane % 4 * 2,
                                    &sums[i / 2][4 * word + j][i % 2 * 2]);
            }
        }
    }
};

#else

struct SlabProduct {
    // The threads lie in a square of 16 x 16, each has OUT x IN pieces of 4 x 4 values.
    static constexpr u32 SIDE = 16, OUT = SLAB_OUT / SIDE / 4, IN = SLAB_IN / SIDE / 4;
    static_assert(OUT * SIDE * 4 == SLAB_OUT && IN * SIDE * 4 == SLAB_IN && SIDE * SIDE == THREADS);

    float sums[OUT][4][IN][4] = {};

    __device__ __forceinline__ static u32 first_row() { return threadIdx.x / SIDE * 4; }

    __device__ __forceinline__ static u32 first_column() { return threadIdx.x % SIDE * 4; }

    // Adds the products of `count` tokens.
    __device__ __forceinline__ void add(const StagedFactor<SLAB_OUT>& grad_outputs, const StagedFactor<SLAB_IN>& inputs,
                                        u32 count) {
        for (u32 token = 0; token < count; ++token) {
            Neighbours<4> left[OUT], right[IN];
#pragma unroll
            for (u32 i = 0; i < OUT; ++i) left[i] = neighbours<4>(&grad_outputs[token][first_row() + 4 * SIDE * i]);
#pragma unroll
            for (u32 j = 0; j < IN; ++j) right[j] = neighbours<4>(&inputs[token][first_column() + 4 * SIDE * j]);
#pragma unroll
            for (u32 i = 0; i < OUT; ++i)
#pragma unroll
                for (u32 row = 0; row < 4; ++row)
#pragma unroll
                    for (u32 j = 0; j < IN; ++j)
#pragma unroll
                        for (u32 column = 0; column < 4; ++column)
                            sums[i][row][j][column] += left[i].values[row] * right[j].values[column];
        }
    }

    __device__ __forceinline__ void store(Slab& slab, const SlabSigns& signs) const {
#pragma unroll
        for (u32 i = 0; i < OUT; ++i)
#pragma unroll
            for (u32 row = 0; row < 4; ++row)
#pragma unroll
                for (u32 j = 0; j < IN; ++j) {
                    const u32 to_row = first_row() + 4 * SIDE * i + row, column = first_column() + 4 * SIDE * j;
                    store_signed<4>(slab, signs[to_row][column / 32], to_row, column, sums[i][row][j]);
                }
    }
};

#endif
