// The iid SJLT, and GraSS with it: out[r, d w + bucket] = scale * the sum over coordinates i of sign * x[r, i], with a
// bucket of w and a sign for each coordinate, in each draw d.
//
// A scatter without atomics: a warp has sums of its own, in shared memory, for one row and one part of the
// coordinates, and adds 32 neighbouring coordinates at a time. Where some of these share a bucket they add in rounds,
// so each sum is in the order of the coordinates. Buckets, rounds and signs are drawn for a tile of coordinates at a
// time and serve all warps that have the same part of different rows. The sums of the parts are added by sum.cu.
//
// A block has some rows of some parts, a warp each, and a slice of the buckets of one draw. Coordinates of other
// buckets are added to spare sums, one a lane.
//
// The launch defines GATHER, 1 for GraSS, where coordinate i is x[r, indices[i]]; and Index, the type of the indices.

#include "common.cuh"

constexpr u32 WARP = 32;
constexpr u32 SIGN_BLOCK = 128;

// Steps of 32 coordinates that a warp reads before it adds them: a tile.
constexpr u32 STEPS = 16;
constexpr u32 TILE = STEPS * WARP;

// What is drawn for a coordinate is kept in a word: its sign (the highest bit), round (5 bits) and place of its sum.
constexpr u32 ROUND_SHIFT = 26;
constexpr u32 SUM_MASK = (1u << ROUND_SHIFT) - 1;

// Draws the random words of a tile of coordinates, of which `first` is the first, counted over all draws.
__device__ __forceinline__ void draw_words(u64 seed, u64 first, u32 thread, u32 threads, u32* buckets, u32* signs) {
    for (u32 i = thread; i < TILE / 4; i += threads)
        reinterpret_cast<Words*>(buckets)[i] = four_words(seed, BUCKET, first / 4 + i);
    for (u32 i = thread; i < TILE / SIGN_BLOCK; i += threads)
        reinterpret_cast<Words*>(signs)[i] = four_words(seed, SIGN, first / SIGN_BLOCK + i);
}

extern "C" __global__ void __launch_bounds__(256, 2)
iid(const Scalar* __restrict__ x, i64 x_stride, u32 n, const Index* __restrict__ indices, i64 p, u32 width, u64 seed,
    u32 draws, float scale, float* __restrict__ out, u32 slices, u32 slice_width, u32 block_rows, i64 part_size,
    u32 parts) {
    const u32 slice = blockIdx.x % slices, draw = blockIdx.x / slices % draws, slice_begin = slice * slice_width;
    // The warps of one part are a team: they share a tile and differ in their rows.
    const u32 lane = threadIdx.x, teams = blockDim.y / block_rows, team = threadIdx.y / block_rows;
    const u32 member = threadIdx.y - team * block_rows;
    const u32 row = blockIdx.x / slices / draws * block_rows + member, part = blockIdx.y * teams + team;

    u32* tile = reinterpret_cast<u32*>(shared_memory) + team * TILE;
    u32* signs = reinterpret_cast<u32*>(shared_memory) + teams * TILE + team * STEPS;
    float* sums = reinterpret_cast<float*>(shared_memory) + teams * (TILE + STEPS) + threadIdx.y * (slice_width + WARP);
    for (u32 i = lane; i < slice_width + WARP; i += WARP) sums[i] = 0.0f;

    const i64 padded = (p + SIGN_BLOCK - 1) / SIGN_BLOCK * SIGN_BLOCK, begin = part * part_size;
    const Scalar* values_of_row = x + min(row, n - 1) * x_stride;
    for (i64 done = 0; done < part_size; done += TILE) {
        // Reads first: they are under way while the words are drawn.
        const i64 first = begin + done;
        Scalar values[STEPS];
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step) {
            const i64 i = first + step * WARP + lane;
            values[step] = i < p ? values_of_row[GATHER ? static_cast<i64>(indices[i]) : i] : Scalar{};
        }
        __syncthreads();
        draw_words(seed, draw * padded + first, member * WARP + lane, block_rows * WARP, tile, signs);
        __syncthreads();
        for (u32 step = member; step < STEPS; step += block_rows) {
            u32& entry = tile[step * WARP + lane];
            const u32 bucket = below(width, entry) - slice_begin;
            const bool mine = bucket < slice_width && first + step * WARP + lane < p;
            const u32 sum = mine ? bucket : slice_width + lane;
            const u32 earlier = __match_any_sync(~0u, sum) & ((1u << lane) - 1);
            entry = (signs[step] >> lane) << 31 | __popc(earlier) << ROUND_SHIFT | sum;
        }
        __syncthreads();
        u32 entries[STEPS];
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step) entries[step] = tile[step * WARP + lane];
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step) {
            const u32 round = entries[step] << 1 >> (ROUND_SHIFT + 1);
            const float value = with_sign(to_float(values[step]), entries[step]);
            u32 now = 0;
            do {
                if (round == now) sums[entries[step] & SUM_MASK] += value;
                __syncwarp();
            } while (__any_sync(~0u, round > now++));
        }
    }

    if (row >= n || part >= parts) return;
    const u64 k = static_cast<u64>(draws) * width;
    out += (static_cast<u64>(part) * n + row) * k + draw * width + slice_begin;
    for (u32 i = lane; i < min(slice_width, width - slice_begin); i += WARP) out[i] = scale * sums[i];
}
