// Reads one element behind the end of an array.

#include "common.cuh"

extern "C" __global__ void outside_array(const float* x, float* out, u32 n) {
    out[threadIdx.x] = threadIdx.x + MISTAKE <= n ? x[threadIdx.x + MISTAKE] : 0.0f;
}
