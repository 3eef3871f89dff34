// Adds signed integers beyond their range.

#include "common.cuh"

extern "C" __global__ void signed_overflow(const float* x, float* out, u32 n) {
    const int thread = static_cast<int>(threadIdx.x), first = 2147483647 - static_cast<int>(n) + MISTAKE;
    out[thread] = x[thread] + static_cast<float>(first + 1 + thread);
}
