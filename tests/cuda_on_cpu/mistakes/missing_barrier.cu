// Reads what another thread writes, without a barrier between.

#include "common.cuh"

extern "C" __global__ void missing_barrier(const float* x, float* out, u32 n) {
    if (threadIdx.x >= n) return;
    float* shared = reinterpret_cast<float*>(shared_memory);
    shared[threadIdx.x] = x[threadIdx.x];
#if !MISTAKE
    __syncthreads();
#endif
    out[threadIdx.x] = shared[n - 1 - threadIdx.x];
}
