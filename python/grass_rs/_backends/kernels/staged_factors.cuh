// What the masks keep of some tokens of a linear layer's factors, gathered into shared memory.
//
// Reading is what bounds FactGraSS: under a random mask most kept values lie in a sector of 32 bytes of their own.
// Lanes of a warp take neighbouring kept columns of one token, which share sectors where the mask has runs, and a
// thread has READS_AHEAD reads under way before it needs the first.

#pragma once

#include "common.cuh"

constexpr u32 THREADS = 256;
constexpr u32 READS_AHEAD = sizeof(Scalar) == 8 ? 8 : 16;

#if TENSOR_CORES
using Staged = Scalar;
// 16 bytes more a row: the eight rows that a matrix is loaded from then lie in different banks.
constexpr u32 STAGED_PAD = 8;

__device__ __forceinline__ Staged staged(Scalar value) { return value; }
#else
using Staged = float;
constexpr u32 STAGED_PAD = 0;

__device__ __forceinline__ Staged staged(Scalar value) { return to_float(value); }
#endif

// Kept columns of TOKENS tokens.
template <u32 COLUMNS>
using StagedFactor = Staged[TOKENS][COLUMNS + STAGED_PAD];

__device__ __forceinline__ void set_one(double& value) { value = 1.0; }

__device__ __forceinline__ void set_one(float& value) { value = 1.0f; }

__device__ __forceinline__ void set_one(Half& value) { value.bits = 0x3C00; }

__device__ __forceinline__ void set_one(BFloat16& value) { value.bits = 0x3F80; }

// No column of a factor.
constexpr u32 NO_COLUMN = 0xFFFFFFFFu;

// The column that the thread reads of a slab's `count` kept ones.
template <u32 COLUMNS>
__device__ __forceinline__ u32 kept_column(const u32* kept, u32 count) {
    static_assert(THREADS % COLUMNS == 0);
    const u32 place = threadIdx.x % COLUMNS;
    return place < count ? kept[place] : NO_COLUMN;
}

// Gathers the thread's column of tokens `first` to `first + count - 1`, and zeros for the tokens that follow up to a
// multiple of 16. Column `ones` is not in memory: it is one everywhere. A thread without a column writes what nobody
// uses.
template <u32 COLUMNS>
__device__ __forceinline__ void gather(const Scalar* factor, i64 token_stride, u32 column, u32 ones, u32 first,
                                       u32 count, StagedFactor<COLUMNS>& to) {
    constexpr u32 STEP = THREADS / COLUMNS;
    constexpr u32 READS = STEP * READS_AHEAD < TOKENS ? READS_AHEAD : TOKENS / STEP;
    static_assert(TOKENS % (STEP * READS) == 0 && 16 % STEP == 0);
    const u32 place = threadIdx.x % COLUMNS, written = (count + 15) / 16 * 16;
    Scalar unread = {};
    if (column == ones) set_one(unread);
    const u32 readable = column == ones || column == NO_COLUMN ? 0 : count;

    u32 token = threadIdx.x / COLUMNS;
    const Scalar* next = factor + static_cast<i64>(first + token) * token_stride + column;
    for (u32 begin = 0; begin < written; begin += STEP * READS) {
        Scalar values[READS];
#pragma unroll
        for (u32 i = 0; i < READS && begin + i * STEP < written; ++i, next += STEP * token_stride) {
            values[i] = unread;
            if (token + i * STEP < readable) values[i] = *next;
        }
#pragma unroll
        for (u32 i = 0; i < READS && begin + i * STEP < written; ++i, token += STEP)
            to[token][place] = staged(values[i]);
    }
}
