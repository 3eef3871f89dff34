// Writes one element behind the end of shared memory.

#include "common.cuh"

extern "C" __global__ void outside_shared(const float* x, float* out, u32 n) {
    float* shared = reinterpret_cast<float*>(shared_memory);
    shared[(threadIdx.x + MISTAKE) % (n + MISTAKE)] = x[threadIdx.x];
    __syncthreads();
    out[threadIdx.x] = shared[threadIdx.x];
}
