// What the lanes of a warp tell each other, for the test of these functions: one row of `out` a function.

#include "common.cuh"

extern "C" __global__ void lanes(const u32* values, u32* out) {
    const u32 lane = threadIdx.x, all = 0xFFFFFFFFu, value = values[lane];
    out[0 * 32 + lane] = __shfl_sync(all, value, 5);
    out[1 * 32 + lane] = __shfl_xor_sync(all, value, 9);
    out[2 * 32 + lane] = __shfl_down_sync(all, value, 3);
    out[3 * 32 + lane] = __shfl_up_sync(all, value, 3);
    out[4 * 32 + lane] = __match_any_sync(all, value);
    out[5 * 32 + lane] = __ballot_sync(all, value % 3 == 0);
    out[6 * 32 + lane] = __any_sync(all, value == values[0]);
    // The lower and the upper half by themselves, one of them more often.
    const u32 half = lane < 16 ? 0x0000FFFFu : 0xFFFF0000u;
    out[7 * 32 + lane] = __ballot_sync(half, value % 2);
    if (lane < 16) out[7 * 32 + lane] ^= __shfl_xor_sync(half, value, 1);
    __syncwarp();
}
