// FactGraSS of a linear layer in one pass: what the masks keep of both factors is gathered, multiplied and summed
// over tokens, and the product goes through the SJLT, all on the chip. Device memory sees the kept values and the
// outputs.
//
// A block takes one example, a part of its tokens, and a part of the product's slabs, usually one. It computes a slab
// in registers, then lays it into shared memory, where what was staged of the factors has been, and adds it to its
// outputs. With more than one part, the parts' outputs are added afterwards.
//
// Macros: Scalar; TENSOR_CORES, 1 for products on tensor cores (Half or BFloat16 from sm_80 on); IID, 1 for the iid
// kind; SLAB_OUT and SLAB_IN, most rows and columns of a slab, 64 or 128; TOKENS, how many are staged at a time.

#include "slab_sjlt.cuh"

union Workspace {
    struct {
        StagedFactor<SLAB_OUT> grad_outputs;
        StagedFactor<SLAB_IN> inputs;
    } staged;
    Slab slab;
};

struct Shared {
    Workspace workspace;
    SlabSigns signs;
    Page pages[PAGES];
};

extern "C" __global__ void __launch_bounds__(THREADS, 2)
factgrass(const Scalar* __restrict__ inputs, i64 inputs_example, i64 inputs_token,
          const Scalar* __restrict__ grad_outputs, i64 grad_outputs_example, i64 grad_outputs_token,
          const u32* __restrict__ kept_in, const u32* __restrict__ kept_out, u32 ones, u32 tokens, u32 tokens_a_part,
          u32 k_in, u32 k_out, u32 reciprocal, u32 slab_rows, u32 slab_columns, u32 slabs_a_row, u32 slabs,
          u32 slabs_a_part, u64 seed, const u32* __restrict__ places, u32 k, float scale, float* __restrict__ outputs) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory);
    auto& staged = shared.workspace.staged;
    const ProductShape shape = {k_in, k_out, reciprocal};

    const u32 example = blockIdx.x, part = blockIdx.z * gridDim.y + blockIdx.y;
    inputs += example * inputs_example;
    grad_outputs += example * grad_outputs_example;
    Outputs sums = {outputs + (static_cast<i64>(part) * gridDim.x + example) * k, k, scale};

    const u32 begin = blockIdx.y * tokens_a_part, end = min(tokens, begin + tokens_a_part);
    const u32 first_slab = blockIdx.z * slabs_a_part, end_slab = min(slabs, first_slab + slabs_a_part);
    for (u32 number = first_slab; number < end_slab; ++number) {
        const SlabRange range(shape, number, slabs_a_row, slab_rows, slab_columns);
        const u32 column_in = kept_column<SLAB_IN>(kept_in + range.first_column, range.columns);
        const u32 column_out = kept_column<SLAB_OUT>(kept_out + range.first_row, range.rows);
        draw_signs(seed, shape, range, IID ? shape.size() : k, shared.signs);

        SlabProduct product;
        for (u32 token = begin; token < end; token += TOKENS) {
            const u32 count = min(static_cast<u32>(TOKENS), end - token);
            if (token != begin) __syncthreads();  // the tokens before are still being read
            gather<SLAB_IN>(inputs, inputs_token, column_in, ones, token, count, staged.inputs);
            gather<SLAB_OUT>(grad_outputs, grad_outputs_token, column_out, NO_COLUMN, token, count,
                             staged.grad_outputs);
            __syncthreads();
            product.add(staged.grad_outputs, staged.inputs, count);
        }
        __syncthreads();
        product.store(shared.workspace.slab, shared.signs);

        const bool last = number + 1 == end_slab;
        if (IID)
            add_iid(places, number, shared.workspace.slab, sums, last);
        else
            add_cyclic(seed, shape, range, shared.workspace.slab, shared.pages, sums, last);
    }
}
