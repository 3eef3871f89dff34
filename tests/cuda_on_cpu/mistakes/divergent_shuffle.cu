// Has a shuffle of all lanes where only some go.

#include "common.cuh"

extern "C" __global__ void divergent_shuffle(const float* x, float* out, u32 n) {
    float value = threadIdx.x < n ? x[threadIdx.x] : 0.0f;
    if (!MISTAKE || threadIdx.x % 2 == 0) value += __shfl_down_sync(0xFFFFFFFFu, value, 1);
    __syncwarp();
    out[threadIdx.x] = value;
}
