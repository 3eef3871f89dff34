// Has a barrier that some threads do not reach, while they wait at another.

#include "common.cuh"

extern "C" __global__ void divergent_barrier(const float* x, float* out, u32 n) {
#if MISTAKE
    if (threadIdx.x % 2 == 0) __syncthreads();
#endif
    __syncthreads();
    out[threadIdx.x] = threadIdx.x < n ? x[threadIdx.x] : 0.0f;
}
