// Random words and draws, for the test that they are the structures' own.

#include "common.cuh"

extern "C" __global__ void words(const u64* seeds, const u32* streams, const u64* places, const u32* ranges, u32 count,
                                 u32* words, u32* draws) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    words[i] = word(seeds[i], static_cast<Stream>(streams[i]), places[i]);
    draws[i] = below(ranges[i], words[i]);
}
