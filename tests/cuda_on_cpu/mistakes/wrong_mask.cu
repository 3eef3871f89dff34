// Calls a shuffle with a mask without its own lane.

#include "common.cuh"

extern "C" __global__ void wrong_mask(const float* x, float* out, u32 n) {
    const float other = __shfl_xor_sync(MISTAKE ? 0x7FFFFFFFu : 0xFFFFFFFFu, x[threadIdx.x], 1);
    out[threadIdx.x] = threadIdx.x < n ? other : 0.0f;
}
