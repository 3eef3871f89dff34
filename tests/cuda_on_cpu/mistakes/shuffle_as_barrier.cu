// Takes a shuffle for a barrier: it orders no memory.

#include "common.cuh"

extern "C" __global__ void shuffle_as_barrier(const float* x, float* out, u32 n) {
    float* shared = reinterpret_cast<float*>(shared_memory);
    shared[threadIdx.x] = x[threadIdx.x];
    const float other = __shfl_xor_sync(0xFFFFFFFFu, x[threadIdx.x], 1);
#if !MISTAKE
    __syncwarp();
#endif
    out[threadIdx.x] = threadIdx.x < n ? other + shared[threadIdx.x ^ 1] : 0.0f;
}
