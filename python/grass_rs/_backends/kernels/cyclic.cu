// The cyclic SJLT, and GraSS with it: out[r, d w + (j + rotation) mod w] = scale * the sum over pages b of
// sign * x[r, b w + j], with a rotation for each page of w coordinates and a sign for each coordinate, in each draw d.
//
// The work is cut by output: a thread sums COLUMNS columns of ROWS rows in registers and reads, from page after page,
// the coordinates that the rotation brings to its columns. Neighbouring threads read neighbouring coordinates, no two
// threads add to the same place, and each sum is in the order of the pages. No table is read: signs and rotations are
// made where they are used, 128 signs by one call of the random words, for a batch of pages at a time that then
// streams without barriers. With few rows, speed is a matter of instructions a coordinate: so a warp that does not
// meet the end of a page takes its coordinates, and their signs, at fixed distances from the first.
//
// A block has a slice of the columns of one draw, ROWS rows, and a group of the pages. Where the columns are too few
// for its threads it has several teams of them: team t takes the group's pages t, t + teams, ..., and the teams' sums
// are added in their order. The sums of the groups are parts that sum.cu adds.
//
// The launch defines ROWS and COLUMNS; SLICED, 1 where a block has a part of the w columns; GATHER, 1 for GraSS, where
// coordinate i is x[r, indices[i]]; and Index, the type of the indices.

#include "common.cuh"

constexpr u32 WARP = 32;
constexpr u32 SIGN_BLOCK = 128;

// Values that a thread reads before it adds them: 64 KB of floats are under way in 1024 threads.
constexpr u32 READS = sizeof(Scalar) == 8 ? 8 : 16;
// The pages that they are of.
constexpr u32 AHEAD = READS / (ROWS * COLUMNS) > 4 ? 4 : READS / (ROWS * COLUMNS);
static_assert(AHEAD > 0, "too many sums for a thread");

// A batch of pages, as a thread sees it.
struct Batch {
    // The first page of each row; for GraSS the rows, and the first page of the indices.
    const Scalar* rows[ROWS];
    const Index* indices;
    u32 width;
    // Bits from a page's last sign to the end of its last sign block.
    u32 padding;
    u32 pages;
    // Pages that have all their coordinates: all of the batch, or all but the last.
    u32 full_pages;
    u32 last_length;
    // For each page, the coordinate that its rotation brings to the slice's first column.
    u32* starts;
    // For each page, `words` words of signs, each turned so that turning it right by b brings bit b to the top.
    u32* signs;
    u32 words;
};

// The coordinate of a column in a page.
struct Place {
    u32 coordinate;
    // Its number in the batch, -1 for none.
    int number;
    // Its sign: a bit of a word of the batch.
    int word;
    u32 bit;
};

__device__ __forceinline__ Place place(const Batch& batch, u32 page, u32 column) {
    const u32 start = batch.starts[page], along = start + column;
    const u32 coordinate = min(along, along - batch.width);
    const u32 past_end = along >= batch.width ? batch.padding : 0;
    const u32 bit = SLICED ? start % SIGN_BLOCK + column + past_end : coordinate;
    return {coordinate, static_cast<int>(page * batch.width + coordinate),
            static_cast<int>(page * batch.words + bit / 32), bit};
}

// Draws the starts and signs of the batch's pages, of which `first` is the first, counted over all draws.
__device__ __forceinline__ void draw_pages(const Batch& batch, u64 seed, u64 first, u32 slice_begin) {
    const u32 thread = threadIdx.y * blockDim.x + threadIdx.x, threads = blockDim.x * blockDim.y;
    const u32 width = batch.width, page_blocks = (width + batch.padding) / SIGN_BLOCK, blocks = batch.words / 4;
    for (u32 page = thread; page < batch.pages; page += threads) {
        const u32 rotation = below(width, word(seed, ROTATION, first + page));
        batch.starts[page] = slice_begin - rotation + (slice_begin < rotation ? width : 0);
    }
    __syncthreads();
    for (u32 i = thread; i < batch.pages * blocks; i += threads) {
        const u32 page = i / blocks;
        u32 block = i - page * blocks + (SLICED ? batch.starts[page] / SIGN_BLOCK : 0);
        if (block >= page_blocks) block -= page_blocks;
        const Words words = four_words(seed, SIGN, (first + page) * page_blocks + block);
        reinterpret_cast<Words*>(batch.signs)[i] = {
            __funnelshift_r(words.x, words.x, 1), __funnelshift_r(words.y, words.y, 1),
            __funnelshift_r(words.z, words.z, 1), __funnelshift_r(words.w, words.w, 1)};
    }
    __syncthreads();
}

// Adds a coordinate of each of some pages to each column's sums, page after page. ALL: every place has one.
template <bool ALL>
__device__ __forceinline__ void add(const Batch& batch, const Place (&places)[AHEAD][COLUMNS],
                                    float (&sums)[ROWS][COLUMNS]) {
    // Three stages, so that all reads of a stage are under way before the first is waited for.
    Index from[AHEAD][COLUMNS];
    Scalar values[AHEAD][COLUMNS][ROWS];
#pragma unroll
    for (u32 ahead = 0; ahead < AHEAD; ++ahead)
#pragma unroll
        for (u32 i = 0; i < COLUMNS; ++i) {
            const int number = places[ahead][i].number;
            from[ahead][i] = GATHER && (ALL || number >= 0) ? batch.indices[number] : number;
        }
#pragma unroll
    for (u32 ahead = 0; ahead < AHEAD; ++ahead)
#pragma unroll
        for (u32 i = 0; i < COLUMNS; ++i)
#pragma unroll
            for (u32 r = 0; r < ROWS; ++r)
                values[ahead][i][r] = ALL || from[ahead][i] >= 0 ? batch.rows[r][from[ahead][i]] : Scalar{};
#pragma unroll
    for (u32 ahead = 0; ahead < AHEAD; ++ahead)
#pragma unroll
        for (u32 i = 0; i < COLUMNS; ++i) {
            const u32 word = batch.signs[places[ahead][i].word];
            const u32 minus = __funnelshift_r(word, word, places[ahead][i].bit);
#pragma unroll
            for (u32 r = 0; r < ROWS; ++r) sums[r][i] += with_sign(to_float(values[ahead][i][r]), minus);
        }
}

// Adds the pages of the thread's team to the sums of the columns from `own` on, 32 apart.
__device__ __forceinline__ void add_pages(const Batch& batch, u32 own, u32 last_column, float (&sums)[ROWS][COLUMNS]) {
    const u32 step = blockDim.y, lane = own % WARP, first_column = min(own, last_column);
    for (u32 page = threadIdx.y; page < batch.pages; page += AHEAD * step) {
        Place places[AHEAD][COLUMNS];
        if (COLUMNS > 1 && page + (AHEAD - 1) * step < batch.full_pages) {
            bool together = true;
#pragma unroll
            for (u32 ahead = 0; ahead < AHEAD; ++ahead) {
                places[ahead][0] = place(batch, page + ahead * step, first_column);
                // Lanes agree: beyond the page's end, a lane's coordinate is less than the lane, and this wraps.
                together &= places[ahead][0].coordinate - lane <= batch.width - WARP * COLUMNS;
            }
            if (together) {
#pragma unroll
                for (u32 ahead = 0; ahead < AHEAD; ++ahead)
#pragma unroll
                    for (u32 i = 1; i < COLUMNS; ++i) {
                        places[ahead][i] = places[ahead][0];
                        places[ahead][i].number += static_cast<int>(WARP * i);
                        places[ahead][i].word += static_cast<int>(i);
                    }
                add<true>(batch, places, sums);
                continue;
            }
        }
#pragma unroll
        for (u32 ahead = 0; ahead < AHEAD; ++ahead) {
            const u32 wanted = page + ahead * step, at = min(wanted, batch.pages - 1);
            const u32 length = wanted != at ? 0 : at < batch.full_pages ? batch.width : batch.last_length;
#pragma unroll
            for (u32 i = 0; i < COLUMNS; ++i) {
                places[ahead][i] = place(batch, at, min(own + WARP * i, last_column));
                if (places[ahead][i].coordinate >= length) places[ahead][i].number = -1;
            }
        }
        add<false>(batch, places, sums);
    }
}

// Adds the sums of teams 1, 2, ... to those of team 0, through shared memory that all are done with.
__device__ __forceinline__ void add_teams(float (&sums)[ROWS][COLUMNS]) {
    float* shared = reinterpret_cast<float*>(shared_memory) + threadIdx.x;
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < ROWS * COLUMNS; ++i)
        shared[(threadIdx.y * ROWS * COLUMNS + i) * blockDim.x] = sums[i / COLUMNS][i % COLUMNS];
    __syncthreads();
    if (threadIdx.y != 0) return;
    for (u32 team = 1; team < blockDim.y; ++team)
#pragma unroll
        for (u32 i = 0; i < ROWS * COLUMNS; ++i)
            sums[i / COLUMNS][i % COLUMNS] += shared[(team * ROWS * COLUMNS + i) * blockDim.x];
}

// Four blocks on a multiprocessor. A gather reads a sector of 32 bytes a value: two have enough under way.
extern "C" __global__ void __launch_bounds__(256, GATHER ? 2 : 4)
cyclic(const Scalar* __restrict__ x, i64 x_stride, u32 n, const Index* __restrict__ indices, i64 p, u32 width,
       u64 seed, u32 draws, float scale, float* __restrict__ out, u32 slices, u32 sign_blocks, u32 batch_pages,
       u32 group_pages) {
    const u32 slice = blockIdx.x % slices, draw = blockIdx.x / slices % draws;
    const u32 first_row = blockIdx.x / slices / draws * ROWS;
    // The columns of a warp are neighbours: 32 of them, then the next 32.
    const u32 own = threadIdx.x / WARP * WARP * COLUMNS + threadIdx.x % WARP;
    const u32 slice_begin = slice * blockDim.x * COLUMNS;

    const u64 full_pages = p / width, pages = (p + width - 1) / width;
    const u64 first_page = static_cast<u64>(blockIdx.y) * group_pages;
    const u32 count = min(static_cast<u64>(group_pages), pages - first_page);
    const u32 full_count = min(static_cast<u64>(count), full_pages - first_page);
    const i64 begin = static_cast<i64>(first_page) * width;

    Batch batch;
    batch.indices = indices + (GATHER ? begin : 0);
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r)
        batch.rows[r] = x + min(first_row + r, n - 1) * x_stride + (GATHER ? 0 : begin);
    batch.width = width;
    batch.padding = (SIGN_BLOCK - width % SIGN_BLOCK) % SIGN_BLOCK;
    batch.last_length = p - full_pages * width;
    batch.words = sign_blocks * 4;
    batch.signs = reinterpret_cast<u32*>(shared_memory);
    batch.starts = batch.signs + batch_pages * batch.words;

    float sums[ROWS][COLUMNS] = {};
    for (u32 done = 0; done < count; done += batch_pages) {
        batch.pages = min(batch_pages, count - done);
        batch.full_pages = min(batch_pages, full_count - done);
        __syncthreads();
        draw_pages(batch, seed, draw * pages + first_page + done, slice_begin);
        add_pages(batch, own, width - 1 - slice_begin, sums);
        batch.indices += GATHER ? batch_pages * width : 0;
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) batch.rows[r] += GATHER ? 0 : batch_pages * width;
    }
    if (blockDim.y > 1) add_teams(sums);
    if (threadIdx.y != 0) return;

    const u64 k = static_cast<u64>(draws) * width;
    out += static_cast<u64>(blockIdx.y) * n * k + draw * width + slice_begin;
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r)
#pragma unroll
        for (u32 i = 0; i < COLUMNS; ++i) {
            const u32 row = first_row + r, column = own + WARP * i;
            if (row < n && column < width - slice_begin) out[row * k + column] = scale * sums[r][i];
        }
}
