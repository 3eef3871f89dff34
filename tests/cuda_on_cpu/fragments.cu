// What tensor_core.cuh's functions take from and put into registers, for the test that this is what the PTX ISA says.
//
// loaded (4, 32, 4): every lane's registers of matrices as they are and transposed; four of them, then two.

#include "tensor_core.cuh"

extern "C" __global__ void fragments(const unsigned short* matrices, u32* loaded, const u32* a, const u32* b,
                                     float* sums) {
    auto shared = reinterpret_cast<unsigned short*>(shared_memory);
    const u32 lane = threadIdx.x;
    for (u32 i = lane; i < 4 * 8 * 8; i += 32) shared[i] = matrices[i];
    __syncwarp();
    u32 four[4], two[2];
    load_matrices<false>(four, shared + 8 * lane);
    for (u32 i = 0; i < 4; ++i) loaded[(0 * 32 + lane) * 4 + i] = four[i];
    load_matrices<true>(four, shared + 8 * lane);
    for (u32 i = 0; i < 4; ++i) loaded[(1 * 32 + lane) * 4 + i] = four[i];
    load_matrices<false>(two, shared + 8 * lane);
    for (u32 i = 0; i < 2; ++i) loaded[(2 * 32 + lane) * 4 + i] = two[i];
    load_matrices<true>(two, shared + 8 * lane);
    for (u32 i = 0; i < 2; ++i) loaded[(3 * 32 + lane) * 4 + i] = two[i];

    float own[4];
    for (u32 i = 0; i < 4; ++i) {
        own[i] = sums[4 * lane + i];
        four[i] = a[4 * lane + i];
    }
    for (u32 i = 0; i < 2; ++i) two[i] = b[2 * lane + i];
    multiply_add<Scalar>(own, four, two);
    for (u32 i = 0; i < 4; ++i) sums[4 * lane + i] = own[i];
}
