// The sum of products of small matrices on tensor cores, in the way real kernels go: the next step's matrices are
// copied while this step's are multiplied.
//
// a and b are `steps` matrices (16, 16), or their transposes; b ends after `count` elements, and zeros follow.
// The copies take SIZE bytes; b comes to registers as two halves where PAIRS. One warp a block, each with its out.

#include "tensor_core.cuh"

constexpr u32 EACH = SIZE / 2;

extern "C" __global__ void product(const Scalar* a, const Scalar* b, u32 steps, u32 count, float* out) {
    Scalar* stages = reinterpret_cast<Scalar*>(shared_memory);
    const u32 lane = threadIdx.x;
    const auto copy = [&](u32 step) {
        Scalar* left = stages + step % 2 * 512;
        for (u32 i = lane * EACH; i < 256; i += 32 * EACH) {
            const u32 place = step * 256 + i, rest = place < count ? min(EACH, count - place) : 0;
            copy_async<SIZE>(left + i, a + place, SIZE);
            copy_async<SIZE>(left + 256 + i, rest ? b + place : b, 2 * rest);
        }
    };

    float sums[2][4] = {};
    copy(0);
    commit_copies();
    for (u32 step = 0; step < steps; ++step) {
        if (step + 1 < steps) copy(step + 1);
        commit_copies();
        wait_for_copies<1>();
        __syncwarp();
        const Scalar* left = stages + step % 2 * 512;
        const Scalar* right = left + 256;
        u32 left_part[4], right_parts[2][2];
        if constexpr (TRANSPOSED_A)
            load_matrices<true>(left_part, &left[(lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8]);
        else
            load_matrices<false>(left_part, &left[lane % 16 * 16 + lane / 16 * 8]);
        if constexpr (PAIRS) {
            for (u32 half = 0; half < 2; ++half) {
                if constexpr (TRANSPOSED_B)
                    load_matrices<false>(right_parts[half], &right[(half * 8 + lane % 8) * 16 + lane / 8 % 2 * 8]);
                else
                    load_matrices<true>(right_parts[half], &right[lane % 16 * 16 + half * 8]);
            }
        } else {
            u32 both[4];
            if constexpr (TRANSPOSED_B)
                load_matrices<false>(both, &right[(lane % 8 + lane / 16 * 8) * 16 + lane / 8 % 2 * 8]);
            else
                load_matrices<true>(both, &right[lane % 16 * 16 + lane / 16 * 8]);
            for (u32 i = 0; i < 4; ++i) right_parts[i / 2][i % 2] = both[i];
        }
        for (u32 half = 0; half < 2; ++half) multiply_add<Scalar>(sums[half], left_part, right_parts[half]);
        __syncwarp();
    }
    for (u32 half = 0; half < 2; ++half)
        for (u32 i = 0; i < 4; ++i)
            out[blockIdx.x * 256 + (lane / 4 + i / 2 * 8) * 16 + half * 8 + 2 * (lane % 4) + i % 2] = sums[half][i];
}
