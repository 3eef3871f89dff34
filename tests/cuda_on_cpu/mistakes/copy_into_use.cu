// Copies asynchronously into what other threads still read.

#include "tensor_core.cuh"

extern "C" __global__ void copy_into_use(const float* x, float* out, u32 n) {
    float* shared = reinterpret_cast<float*>(shared_memory);
    shared[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    const float other = shared[n - 1 - threadIdx.x];
#if !MISTAKE
    __syncthreads();
#endif
    copy_async<4>(shared + threadIdx.x, x + n - 1 - threadIdx.x, 4);
    commit_copies();
    wait_for_copies<0>();
    out[threadIdx.x] = other + shared[threadIdx.x];
}
