// Normal numbers of given words, for the test that they are the formula's.

#include "common.cuh"
#include "normal.cuh"

extern "C" __global__ void normal_pairs(const u32* words, u32 count, float* numbers) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const Pair pair = normal_pair(words[2 * i], words[2 * i + 1]);
    numbers[2 * i] = pair.first;
    numbers[2 * i + 1] = pair.second;
}
