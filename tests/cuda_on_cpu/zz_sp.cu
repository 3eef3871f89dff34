
#include "common.cuh"
extern "C" __global__ void sp(float* out, u32 n) {
    float* s = reinterpret_cast<float*>(shared_memory);
    float v = threadIdx.x;
    for (u32 i = 0; i < n; ++i) { s[threadIdx.x] = v; __syncthreads(); v += s[threadIdx.x ^ 1]; 
#if SHFL
    for (int d = 16; d; d /= 2) v += __shfl_xor_sync(0xFFFFFFFFu, v, d);
#endif
    __syncthreads(); }
    out[blockIdx.x * blockDim.x + threadIdx.x] = v;
}