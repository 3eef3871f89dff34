// Writes from two blocks to one place.

#include "common.cuh"

extern "C" __global__ void race_of_blocks(const float* x, float* out, u32 n) {
    if (threadIdx.x == 0 && blockIdx.x == 0) out[0] = n;
    if (threadIdx.x == 0 && blockIdx.x == 1) out[1 - MISTAKE] = x[0];
}
