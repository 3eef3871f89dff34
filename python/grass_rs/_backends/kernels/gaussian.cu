// A dense projection whose entries are generated where they are used: parts[g] (n, k) = x (n, p) M over the coordinates
// of group g, entry (i, j) of M being random number i k + j; normal numbers with NORMAL=1, random signs with NORMAL=0.
//
// A block makes the entries of DEPTH coordinates and COLUMNS outputs in shared memory and uses them for ROWS rows; a
// thread sums THREAD_ROWS x THREAD_COLUMNS outputs in registers. Sums are taken over SEGMENT coordinates and those
// sums added, all in the order of the coordinates: a row's bits depend neither on ROWS nor on the other rows.

#include "common.cuh"
#include "normal.cuh"

constexpr u32 THREADS = 256;
constexpr u32 COLUMNS = 64;
constexpr u32 DEPTH = 32;
constexpr u32 SEGMENT = 1024;
constexpr u32 THREAD_COLUMNS = 4;
constexpr u32 THREAD_ROWS = ROWS * COLUMNS / THREAD_COLUMNS / THREADS;
// Rows that are read at once, and how often that is.
constexpr u32 READ_ROWS = THREADS / DEPTH, READS = ROWS / READ_ROWS;

template <u32 COUNT>
struct alignas(4 * COUNT) Floats {
    float values[COUNT];
};

using Entries = float[COLUMNS];
// Four more than ROWS: four rows of eight coordinates are then on 32 different banks.
using Values = float[ROWS + 4];

// Entries of `depth` coordinates from `coordinate` on, for the outputs from `column` on.
__device__ __forceinline__ void fill_normal(Entries* entries, u64 seed, i64 coordinate, u32 depth, u32 column, u32 k) {
    // Four numbers come from one block of words; a row of entries may begin inside one.
    const u32 blocks = k % 4 == 0 ? COLUMNS / 4 : COLUMNS / 4 + 1;
    const u32 width = min(COLUMNS, k - column);
    for (u32 i = threadIdx.x; i < depth * blocks; i += THREADS) {
        const u32 d = i / blocks, block = i % blocks;
        const u64 first = static_cast<u64>(coordinate + d) * k + column;
        const u32 lead = static_cast<u32>(first) % 4;
        if (4 * block >= lead + width) continue;
        const Words words = four_words(seed, GAUSSIAN, first / 4 + block);
        const Pair low = normal_pair(words.x, words.y), high = normal_pair(words.z, words.w);
        const float numbers[] = {low.first, low.second, high.first, high.second};
        const u32 place = 4 * block - lead;
#pragma unroll
        for (u32 j = 0; j < 4; ++j)
            if (place + j < COLUMNS) entries[d][place + j] = numbers[j];
    }
}

// The same for random signs: a warp makes the words of four coordinates, three each, and each lane takes its bits.
__device__ __forceinline__ void fill_signs(Entries* entries, u64 seed, i64 coordinate, u32 depth, u32 column, u32 k) {
    constexpr u32 WORDS = COLUMNS / 32 + 1, WARP_COORDINATES = 32 * DEPTH / THREADS;
    const u32 lane = threadIdx.x % 32, begin = threadIdx.x / 32 * WARP_COORDINATES;
    const auto first = [&](u32 d) { return static_cast<u64>(coordinate + d) * k + column; };
    u32 mine = 0;
    if (lane < WORDS * WARP_COORDINATES)
        mine = word(seed, RADEMACHER, first(begin + lane / WORDS) / 32 + lane % WORDS);
#pragma unroll
    for (u32 d = 0; d < WARP_COORDINATES; ++d) {
        const u32 lead = static_cast<u32>(first(begin + d)) % 32;
#pragma unroll
        for (u32 j = lane; j < COLUMNS; j += 32) {
            const u32 bit = lead + j;
            const u32 bits = __shfl_sync(0xFFFFFFFFu, mine, d * WORDS + bit / 32);
            if (begin + d < depth) entries[begin + d][j] = with_sign(1.0f, bits << (31 - bit % 32));
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
project(const Scalar* __restrict__ x, i64 row_stride, i64 n, i64 p, u32 k, u64 seed, i64 group_length,
        float* __restrict__ parts) {
    Entries* entries = reinterpret_cast<Entries*>(shared_memory);
    Values* values = reinterpret_cast<Values*>(entries + DEPTH);
    const u32 column_tiles = (k + COLUMNS - 1) / COLUMNS;
    const u32 column = blockIdx.x % column_tiles * COLUMNS;
    const i64 row = static_cast<i64>(blockIdx.x / column_tiles) * ROWS;
    const i64 begin = blockIdx.y * group_length, end = min(begin + group_length, p);
    const u32 thread_column = threadIdx.x % (COLUMNS / THREAD_COLUMNS) * THREAD_COLUMNS;
    const u32 thread_row = threadIdx.x / (COLUMNS / THREAD_COLUMNS) * THREAD_ROWS;
    // A warp reads eight neighbouring coordinates of four rows.
    const u32 read_depth = threadIdx.x % 8 + threadIdx.x / 32 % (DEPTH / 8) * 8;
    const u32 read_row = threadIdx.x / 8 % 4 + threadIdx.x / (4 * DEPTH) * 4;
    const Scalar* const first_read = x + ((row + read_row) * row_stride + read_depth);

    float totals[THREAD_ROWS][THREAD_COLUMNS] = {}, sums[THREAD_ROWS][THREAD_COLUMNS] = {};
    const auto add_segment = [&] {
#pragma unroll
        for (u32 r = 0; r < THREAD_ROWS; ++r)
#pragma unroll
            for (u32 c = 0; c < THREAD_COLUMNS; ++c) {
                totals[r][c] += sums[r][c];
                sums[r][c] = 0.0f;
            }
    };

    for (i64 coordinate = begin; coordinate < end; coordinate += DEPTH) {
        const u32 depth = static_cast<u32>(min(static_cast<i64>(DEPTH), end - coordinate));
        // All reads come before the first wait, and are under way while the entries are made.
        const i64 rows_left = read_depth < depth ? n - row - read_row : 0;
        const Scalar* next = first_read + coordinate;
        Scalar read[READS];
#pragma unroll
        for (u32 i = 0; i < READS; ++i, next += READ_ROWS * row_stride) {
            read[i] = Scalar{};
            if (i * READ_ROWS < rows_left) read[i] = *next;
        }
        if constexpr (NORMAL)
            fill_normal(entries, seed, coordinate, depth, column, k);
        else
            fill_signs(entries, seed, coordinate, depth, column, k);
#pragma unroll
        for (u32 i = 0; i < READS; ++i) values[read_depth][read_row + i * READ_ROWS] = to_float(read[i]);
        __syncthreads();

#pragma unroll 4
        for (u32 d = 0; d < depth; ++d) {
            constexpr u32 TOGETHER = THREAD_ROWS < 4 ? THREAD_ROWS : 4;
            const auto entry = *reinterpret_cast<const Floats<THREAD_COLUMNS>*>(&entries[d][thread_column]);
#pragma unroll
            for (u32 r = 0; r < THREAD_ROWS; r += TOGETHER) {
                const auto value = *reinterpret_cast<const Floats<TOGETHER>*>(&values[d][thread_row + r]);
#pragma unroll
                for (u32 i = 0; i < TOGETHER; ++i)
#pragma unroll
                    for (u32 c = 0; c < THREAD_COLUMNS; ++c)
                        sums[r + i][c] = fmaf(value.values[i], entry.values[c], sums[r + i][c]);
            }
        }
        __syncthreads();
        if ((coordinate + DEPTH - begin) % SEGMENT == 0) add_segment();
    }
    add_segment();

    float* part = parts + blockIdx.y * n * k;
#pragma unroll
    for (u32 r = 0; r < THREAD_ROWS; ++r)
#pragma unroll
        for (u32 c = 0; c < THREAD_COLUMNS; ++c)
            if (row + thread_row + r < n && column + thread_column + c < k)
                part[(row + thread_row + r) * k + column + thread_column + c] = totals[r][c];
}
