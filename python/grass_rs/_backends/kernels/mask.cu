// A mask: out[r, c] = scale * x[r, indices[c]].
//
// A thread has one column, reads its index once, and takes ROWS rows at a time, whose reads are under way together.
// Neighbouring threads have neighbouring columns, so the runs of a block mask are read as whole sectors.
//
// The launch defines Index, the type of the indices.

#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
mask(const Scalar* __restrict__ x, i64 x_stride, i64 n, const Index* __restrict__ indices, u32 kept, float scale,
     float* __restrict__ out) {
    constexpr i64 ROWS = 4;
    const u32 column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= kept) return;
    x += indices[column];
    out += column;
    for (i64 row = blockIdx.y * ROWS; row < n; row += gridDim.y * ROWS) {
        Scalar values[ROWS];
#pragma unroll
        for (i64 i = 0; i < ROWS; ++i) values[i] = x[min(row + i, n - 1) * x_stride];
#pragma unroll
        for (i64 i = 0; i < ROWS; ++i)
            if (row + i < n) out[(row + i) * kept] = scale * to_float(values[i]);
    }
}
