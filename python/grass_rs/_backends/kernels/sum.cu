// The sum of partial results: out[r, c] = scale * (parts[0, r, c] + parts[1, r, c] + ...), in an order that depends on
// the number of parts alone.
//
// A warp reads 32 neighbouring outputs of a part. The block's warps take the parts in turn and each has eight reads
// under way, so that a small output with many parts waits for memory a few times only. The warps' sums are added in
// the order of the warps.

#include "common.cuh"

constexpr u32 AHEAD = 8;

extern "C" __global__ void __launch_bounds__(1024)
add_parts(const float* __restrict__ parts, u32 count, i64 size, u32 columns, float scale, float* __restrict__ out,
          i64 out_stride) {
    float(*sums)[32] = reinterpret_cast<float(*)[32]>(shared_memory);
    const u32 lane = threadIdx.x, warp = threadIdx.y, warps = blockDim.y;
    const i64 place = static_cast<i64>(blockIdx.x) * 32 + lane;

    float sum = 0.0f;
    if (place < size) {
        const float* part = parts + warp * size + place;
        const i64 step = warps * size;
        for (u32 i = warp; i < count; i += AHEAD * warps) {
            // All reads come before the first addition: a loop of single steps would wait for each.
            float values[AHEAD];
#pragma unroll
            for (u32 ahead = 0; ahead < AHEAD; ++ahead, part += step)
                values[ahead] = i + ahead * warps < count ? *part : 0.0f;
#pragma unroll
            for (u32 ahead = 0; ahead < AHEAD; ++ahead) sum += values[ahead];
        }
    }
    sums[warp][lane] = sum;
    __syncthreads();

    if (warp != 0 || place >= size) return;
    for (u32 i = 1; i < warps; ++i) sum += sums[i][lane];
    const i64 row = place / columns;
    out[row * out_stride + (place - row * columns)] = scale * sum;
}
