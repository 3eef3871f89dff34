// Adds up shared memory that nobody set to zero.

#include "common.cuh"

extern "C" __global__ void unwritten_shared(const float* x, float* out, u32 n) {
    float* shared = reinterpret_cast<float*>(shared_memory);
#if !MISTAKE
    shared[threadIdx.x] = 0.0f;
#endif
    shared[threadIdx.x] += x[threadIdx.x];
    out[threadIdx.x] = threadIdx.x < n ? shared[threadIdx.x] : 0.0f;
}
