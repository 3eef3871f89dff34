// Reads what it copies asynchronously before it waits for it.

#include "tensor_core.cuh"

extern "C" __global__ void missing_wait(const float* x, float* out, u32 n) {
    float* shared = reinterpret_cast<float*>(shared_memory);
    copy_async<4>(shared + threadIdx.x, x + threadIdx.x, threadIdx.x < n ? 4 : 0);
    commit_copies();
    wait_for_copies<MISTAKE>();
    out[threadIdx.x] = shared[threadIdx.x];
}
