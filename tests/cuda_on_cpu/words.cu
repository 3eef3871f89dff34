// Random words of a stream, for the test that they are the structures' words.

#include "common.cuh"

extern "C" __global__ void words(u64 seed, u32 stream, u64 first, u32 count, u32* out) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) out[i] = word(seed, static_cast<Stream>(stream), first + i);
    __syncthreads();
}
