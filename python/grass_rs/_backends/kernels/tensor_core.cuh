// A warp's products of small matrices on tensor cores, and the loads and copies that feed them; from sm_80 on.
//
// All lanes of the warp call these together. A register holds two neighbours of 16 bits, the first in its low half.
// With q = lane / 4 and r = 2 * (lane % 4), registers hold of matrices a (16, 16), b (16, 8) and sums (16, 8):
//   a[0]: (q, r), (q, r + 1)    a[1]: (q + 8, r), (q + 8, r + 1)    a[2], a[3]: the same 8 columns further
//   b[0]: (r, q), (r + 1, q)    b[1]: (r + 8, q), (r + 9, q)
//   sums[0], sums[1]: (q, r), (q, r + 1)    sums[2], sums[3]: (q + 8, r), (q + 8, r + 1)
//
// From shared memory (each row's 16 bytes begin at a multiple of 16):
//   a of a row-major matrix:      load_matrices<false>(a, &rows[lane % 16][lane / 16 * 8])
//   a of its transpose (k, m):    load_matrices<true>(a, &rows[lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8])
//   b of a row-major (k, n):      load_matrices<true>(b, &rows[lane % 16][0])
//   b of its transpose (n, k):    load_matrices<false>(b, &rows[lane % 8][lane / 8 % 2 * 8])
// With four registers b spans 16 columns: two pairs, of columns 0 to 7 and of columns 8 to 15:
//   b of a row-major (k, n):      load_matrices<true>(b, &rows[lane % 16][lane / 16 * 8])
//   b of its transpose (n, k):    load_matrices<false>(b, &rows[lane % 8 + lane / 16 * 8][lane / 8 % 2 * 8])
//
// From platform.cuh:
//   void load_matrices<Transposed>(unsigned (&out)[2 or 4], const void* shared)
//     Matrices of 8 rows of 8 elements of 16 bits: lanes 8 m to 8 m + 7 give the addresses of matrix m's rows. out[m]
//     is elements (q, r), (q, r + 1) of matrix m, or with Transposed (r, q), (r + 1, q). With two registers lanes from
//     16 on give addresses that are not read.
//   void copy_async<Size>(void* shared, const void* global, unsigned bytes)
//     Starts to copy `bytes` of Size (4, 8 or 16) bytes, the rest become zeros; both addresses are multiples of Size;
//     with 0 bytes nothing is read.
//   void commit_copies()
//     Makes the thread's copies since the last commit one group.
//   void wait_for_copies<Pending>()
//     Waits for the thread's groups but the latest Pending. A barrier then shows them to other threads.

#pragma once

#include "common.cuh"

// sums += a b of Half or BFloat16; products and sums are float's.
template <class T>
__device__ __forceinline__ void multiply_add(float (&sums)[4], const u32 (&a)[4], const u32 (&b)[2]);

template <>
__device__ __forceinline__ void multiply_add<Half>(float (&sums)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    mma_f16(sums, a, b);
}

template <>
__device__ __forceinline__ void multiply_add<BFloat16>(float (&sums)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    mma_bf16(sums, a, b);
}
