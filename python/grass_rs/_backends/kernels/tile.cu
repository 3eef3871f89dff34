// The tile sketch by multiply-adds in float: every dtype and every shape of a tile, best for few tokens.
//
// With the factors of every tile turned and signed first, the sketch of an example is one product of matrices,
//   out[r, c] = sum over tiles and tokens of (alpha g)[turned to r] (beta a)[turned to c],
// whose sums stay in registers from the first tile to the last. A block computes a window of an example's sketch over
// some tiles and some tokens. Its groups of threads each hold the whole window and take tiles of their own; in the end
// their sums are added in order.
//
// Macros: Scalar; WINDOW, the window's rows and columns, 16, 32 or 64; TOKENS, a tile's tokens that are staged at a
// time, 1 or 4.

#include "tile.cuh"

constexpr u32 THREADS = 128;

// A thread holds rows and columns in fours, so that it reads 16 bytes at a time.
constexpr u32 FOURS = WINDOW == 64 ? 2 : 1, HELD = 4 * FOURS;
constexpr u32 SIDE_THREADS = WINDOW / HELD, GROUP_THREADS = SIDE_THREADS * SIDE_THREADS;
constexpr u32 GROUPS = THREADS / GROUP_THREADS;

// Pairs of a tile and a token that a group, and that all groups multiply between two barriers.
constexpr u32 PAIRS = 4, ALL_PAIRS = GROUPS * PAIRS;
static_assert(PAIRS % TOKENS == 0);

// A pair's line in shared memory: the window's rows of g, then its columns of a. A thread stages one place of lines
// that are LINES apart, of which TOGETHER in turn are of one tile.
constexpr u32 LINE = 2 * WINDOW, LINES = THREADS / LINE, STAGE = ALL_PAIRS * LINE, STAGED = STAGE / THREADS;
constexpr u32 TOGETHER = TOKENS > LINES ? TOKENS / LINES : 1;
static_assert(STAGED <= 32, "a register has their signs");

// Two stages, and in the end a window's sums.
constexpr u32 FLOATS = 2 * STAGE > WINDOW * WINDOW ? 2 * STAGE : WINDOW * WINDOW;

// Tiles drawn at a time: a thread draws a word of 32 signs.
constexpr u32 WORDS = (WINDOW + 31) / 32, DRAWN = THREADS / (2 * WORDS);

struct __align__(16) Four {
    float values[4];
};

// What a window needs of a tile; of each pair the rows' is first, then the columns'.
struct Tile {
    u32 first[2], shift[2], signs[2][WORDS];
};

// A window of a sketch (height, width).
struct Window {
    u32 height, width, first_row, first_column;
};

// Draws `count` tiles from number `first` on.
__device__ __forceinline__ void draw(Tile* tiles, u64 seed, u64 first, u32 count, u32 tiles_across,
                                     const Window& window) {
    if (threadIdx.x >= count * 2 * WORDS) return;
    const u64 number = first + threadIdx.x / (2 * WORDS);
    const u32 axis = threadIdx.x / WORDS % 2, word = threadIdx.x % WORDS;
    const u32 side = axis == 0 ? window.height : window.width;
    const u32 begin = axis == 0 ? window.first_row : window.first_column;
    const Shift shifts = tile_shift(seed, number, window.height, window.width);
    const u32 shift = axis == 0 ? shifts.rows : shifts.columns;
    Tile& tile = tiles[threadIdx.x / (2 * WORDS)];
    if (word == 0) {
        tile.first[axis] = static_cast<u32>(axis == 0 ? number / tiles_across : number % tiles_across) * side;
        tile.shift[axis] = shift;
    }
    tile.signs[axis][word] =
        turned_signs(seed, axis == 0 ? TILE_ROW_SIGN : TILE_COLUMN_SIGN, number, side, shift, begin + 32 * word);
}

// What a thread stages: a row of g (axis 0) or a column of a (axis 1). Loaded values wait in registers, their signs
// apart, so that no load waits for another.
struct Stager {
    u32 axis, side;
    // Of the sketch.
    u32 place;
    const Scalar* factor;
    i64 token_stride;
    // How many features are in memory, and the one that is not and is one, if any.
    u32 features, one;

    Scalar staged[STAGED];
    u32 minus;

    // Loads the tokens from `token` on, before `last_token`, of tiles from index `first` on, of `count`; else zeros.
    __device__ __forceinline__ void load(const Tile* tiles, u32 count, u32 first, u32 token, u32 last_token) {
        minus = 0;
#pragma unroll
        for (u32 i = 0; i < STAGED; i += TOGETHER) {
            const u32 pair = threadIdx.x / LINE + i * LINES, index = first + pair / TOKENS;
            const Tile& tile = tiles[min(index, count - 1)];
            const u32 feature = tile.first[axis] + turned_back(place, tile.shift[axis], side);
            minus |= (tile.signs[axis][threadIdx.x % WINDOW / 32] >> threadIdx.x % WINDOW % 32 & 1) << i;

            const u32 its_token = token + pair % TOKENS;
            const Scalar* from = factor + (its_token * token_stride + feature);
            const u32 left = place < side && index < count && its_token < last_token ? last_token - its_token : 0;
#pragma unroll
            for (u32 j = 0; j < TOGETHER; ++j, from += LINES * token_stride) {
                const bool here = j * LINES < left;
                staged[i + j] = here && feature == one ? Number<Scalar>::one() : Number<Scalar>::zero();
                if (here && feature < features) staged[i + j] = *from;
            }
        }
    }

    __device__ __forceinline__ void store(float* stage) const {
#pragma unroll
        for (u32 i = 0; i < STAGED; ++i)
            stage[threadIdx.x + i * THREADS] = with_sign(to_float(staged[i]), minus << (31 - i / TOGETHER * TOGETHER));
    }
};

// Where a thread's sums are in the window: in fours that are as far apart as the threads of a side have together.
struct Member {
    u32 group, row, column;

    __device__ __forceinline__ static Member of(u32 thread) {
        const u32 member = thread % GROUP_THREADS;
        return {thread / GROUP_THREADS, member / SIDE_THREADS, member % SIDE_THREADS};
    }
};

using Sums = float[HELD][HELD];

__device__ __forceinline__ void multiply(Sums& sums, const Member& member, const float* stage) {
    const Four* const lines = reinterpret_cast<const Four*>(stage + member.group * PAIRS * LINE);
#pragma unroll
    for (u32 pair = 0; pair < PAIRS; ++pair) {
        Four rows[FOURS], columns[FOURS];
#pragma unroll
        for (u32 i = 0; i < FOURS; ++i) {
            rows[i] = lines[pair * LINE / 4 + i * SIDE_THREADS + member.row];
            columns[i] = lines[pair * LINE / 4 + WINDOW / 4 + i * SIDE_THREADS + member.column];
        }
#pragma unroll
        for (u32 i = 0; i < HELD; ++i) {
#pragma unroll
            for (u32 j = 0; j < HELD; ++j) sums[i][j] += rows[i / 4].values[i % 4] * columns[j / 4].values[j % 4];
        }
    }
}

// Adds the groups' sums in the order of the groups.
__device__ __forceinline__ void add_groups(float* totals, const Sums& sums, const Member& member) {
    for (u32 turn = 0; turn < GROUPS; ++turn) {
        if (member.group == turn) {
#pragma unroll
            for (u32 i = 0; i < HELD; ++i) {
                const u32 row = (i / 4 * SIDE_THREADS + member.row) * 4 + i % 4;
#pragma unroll
                for (u32 j = 0; j < HELD; ++j) {
                    const u32 column = (j / 4 * SIDE_THREADS + member.column) * 4 + j % 4;
                    float& total = totals[row * WINDOW + column];
                    total = turn == 0 ? sums[i][j] : total + sums[i][j];
                }
            }
        }
        __syncthreads();
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 3)
tile(const Scalar* __restrict__ inputs, i64 inputs_example, i64 inputs_token, const Scalar* __restrict__ grad_outputs,
     i64 grad_outputs_example, i64 grad_outputs_token, float* __restrict__ parts, u64 seed, u32 examples, u32 tokens,
     u32 in_features, u32 out_features, u32 bias, u32 height, u32 width, u32 tile_parts, u64 tiles_a_part,
     u32 token_parts, u32 tokens_a_part) {
    float* const floats = reinterpret_cast<float*>(shared_memory);
    Tile* const tiles = reinterpret_cast<Tile*>(floats + FLOATS);

    const u32 windows_across = (width + WINDOW - 1) / WINDOW;
    const u32 windows = windows_across * ((height + WINDOW - 1) / WINDOW);
    const u32 number = blockIdx.x % windows, part = blockIdx.x / windows % (tile_parts * token_parts);
    const u32 example = blockIdx.x / windows / (tile_parts * token_parts);
    const Window window = {height, width, number / windows_across * WINDOW, number % windows_across * WINDOW};

    const u32 tiles_across = (in_features + width - 1) / width;
    const u64 all_tiles = static_cast<u64>(tiles_across) * ((out_features + height - 1) / height);
    const u64 first_tile = part % tile_parts * tiles_a_part, last_tile = min(all_tiles, first_tile + tiles_a_part);
    const u32 first_token = part / tile_parts * tokens_a_part, last_token = min(tokens, first_token + tokens_a_part);
    const u32 token_steps = (last_token - first_token + TOKENS - 1) / TOKENS;

    Stager stager;
    stager.axis = threadIdx.x / WINDOW % 2;
    if (stager.axis == 0) {
        stager.side = height;
        stager.place = window.first_row + threadIdx.x % WINDOW;
        stager.factor = grad_outputs + example * grad_outputs_example;
        stager.token_stride = grad_outputs_token;
        stager.features = out_features;
        stager.one = ~0u;
    } else {
        stager.side = width;
        stager.place = window.first_column + threadIdx.x % WINDOW;
        stager.factor = inputs + example * inputs_example;
        stager.token_stride = inputs_token;
        stager.features = in_features - bias;
        stager.one = bias ? in_features - 1 : ~0u;
    }

    const Member member = Member::of(threadIdx.x);
    Sums sums = {};
    for (u64 next_tile = first_tile; next_tile < last_tile; next_tile += DRAWN) {
        const u32 count = static_cast<u32>(min(static_cast<u64>(DRAWN), last_tile - next_tile));
        draw(tiles, seed, next_tile, count, tiles_across, window);
        __syncthreads();

        // A step multiplies TOKENS tokens of ALL_PAIRS / TOKENS tiles, while the next ones are on their way.
        const u32 steps = (count * TOKENS + ALL_PAIRS - 1) / ALL_PAIRS * token_steps;
        u32 index = 0, token = first_token;
        stager.load(tiles, count, index, token, last_token);
        stager.store(floats);
        __syncthreads();
        for (u32 step = 0; step < steps; ++step) {
            token += TOKENS;
            if (token >= last_token) {
                token = first_token;
                index += ALL_PAIRS / TOKENS;
            }
            stager.load(tiles, count, index, token, last_token);
            multiply(sums, member, floats + step % 2 * STAGE);
            stager.store(floats + (step + 1) % 2 * STAGE);
            __syncthreads();
        }
    }
    add_groups(floats, sums, member);

    float* const out = parts + (static_cast<u64>(part) * examples + example) * height * width;
    for (u32 i = threadIdx.x; i < WINDOW * WINDOW; i += THREADS) {
        const u32 row = window.first_row + i / WINDOW, column = window.first_column + i % WINDOW;
        if (row < height && column < width) out[static_cast<u64>(row) * width + column] = floats[i];
    }
}
