// Copies 8 bytes asynchronously from an address that is not a multiple of 8.

#include "tensor_core.cuh"

extern "C" __global__ void misaligned_copy(const float* x, float* out, u32 n) {
    float* shared = reinterpret_cast<float*>(shared_memory);
    if (threadIdx.x < n / 2) copy_async<8>(shared + 2 * threadIdx.x, x + 2 * threadIdx.x + MISTAKE, 8);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    out[threadIdx.x] = shared[threadIdx.x];
}
