// Reads 16 bytes at an address that is not a multiple of 16.

#include "common.cuh"

extern "C" __global__ void misaligned(const float* x, float* out, u32 n) {
    struct __align__(16) Four {
        float values[4];
    };
    const Four four = *reinterpret_cast<const Four*>(x + MISTAKE);
    out[threadIdx.x] = threadIdx.x < n ? four.values[threadIdx.x % 4] : 0.0f;
}
