// Has more local memory than a thread's stack here: such arrays do not belong in kernels.

#include "common.cuh"

extern "C" __global__ void large_stack(const float* x, float* out, u32 n) {
    volatile float values[MISTAKE ? 16640 : 32];
    for (u32 i = 0; i < sizeof values / 4; ++i) values[sizeof values / 4 - 1 - i] = x[threadIdx.x];
    out[threadIdx.x] = threadIdx.x < n ? values[threadIdx.x % 32] : 0.0f;
}
