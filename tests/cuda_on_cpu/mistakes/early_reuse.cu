// Writes shared memory anew before all threads have read it.

#include "common.cuh"

extern "C" __global__ void early_reuse(const float* x, float* out, u32 n) {
    float* shared = reinterpret_cast<float*>(shared_memory);
    float sum = 0.0f;
    for (u32 turn = 1; turn < 3; ++turn) {
        shared[threadIdx.x] = turn * x[threadIdx.x];
        __syncthreads();
        sum += shared[(threadIdx.x + turn) % n];
#if !MISTAKE
        __syncthreads();
#endif
    }
    out[threadIdx.x] = sum;
}
