// The tile sketch of half-precision factors on tensor cores; from sm_80 on.
//
// A block takes patches of an example's gradient, a few whole tiles each, one after another. A patch is the product of
// its rows of g and its columns of a over the block's tokens, complete in the registers of the block's warps, 64 x 64
// a warp, before it is folded: the warps write it to shared memory with its signs, the rows of each tile turned, and
// every thread adds from there what belongs to the outputs that it owns. So no two threads add to one output, and the
// order is always the same. The factors of the next patch are on their way to shared memory meanwhile.
//
// Macros: Scalar, Half or BFloat16; ALIGNED, whether the features in memory of every token begin and end at multiples
// of 16 bytes; HEIGHT and WIDTH of a tile; WARP_ROWS and WARP_COLUMNS of a patch; TILES_DOWN and TILES_ACROSS, a
// patch's tiles; TILES_FOLDED, rows of tiles in shared memory at a time; STAGES, at least two.

#include "tensor_core.cuh"
#include "tile.cuh"

constexpr u32 THREADS = 32 * WARP_ROWS * WARP_COLUMNS;
constexpr u32 PATCH_ROWS = 64 * WARP_ROWS, PATCH_COLUMNS = 64 * WARP_COLUMNS;
constexpr u32 TILES = TILES_DOWN * TILES_ACROSS, OUTPUTS = HEIGHT * WIDTH;
constexpr u32 ROW_WORDS = (HEIGHT + 31) / 32, COLUMN_WORDS = (WIDTH + 31) / 32;

// Tokens of a stage. Factors are in shared memory as in device memory, a row a token.
constexpr u32 TOKENS = 32;

// Neighbours that are copied at once.
constexpr u32 PIECE = 8;
static_assert(HEIGHT % PIECE == 0 && TILES_DOWN * HEIGHT <= PATCH_ROWS && TILES_DOWN % TILES_FOLDED == 0);
static_assert(WIDTH % PIECE == 0 && TILES_ACROSS * WIDTH <= PATCH_COLUMNS);

// Floats from a row of the product in shared memory to the next: what a warp writes at once is in different banks.
constexpr u32 PITCH = PATCH_COLUMNS + 8;

// Outputs that a thread collects at a time. Where there are fewer than threads, each has SHARES owners, which take
// turns at the tiles and have parts of their own.
constexpr u32 OWNED = OUTPUTS >= 16 * THREADS ? 16 : (OUTPUTS + THREADS - 1) / THREADS;
constexpr u32 SHARES = OUTPUTS < THREADS ? THREADS / OUTPUTS : 1;

struct __align__(16) Piece {
    Scalar values[PIECE];
};

struct __align__(8) Pair {
    float values[2];
};

// What is drawn for a patch's tiles.
struct Tiles {
    Shift shifts[TILES];
    u32 row_signs[TILES][ROW_WORDS], column_signs[TILES][COLUMN_WORDS];
};

struct Shared {
    Piece grad_outputs[STAGES][TOKENS * PATCH_ROWS / PIECE];
    Piece inputs[STAGES][TOKENS * PATCH_COLUMNS / PIECE];
    float product[TILES_FOLDED * HEIGHT * PITCH];
    Tiles tiles;
};

// What a warp holds of a product: 4 x 8 results of multiply_add.
using Product = float[4][8][4];

// Where in a stage a piece of a token's FEATURES is: what is read at once, of eight tokens, is in different banks.
template <u32 FEATURES>
__device__ __forceinline__ u32 place_of(u32 token, u32 piece) {
    return token * (FEATURES / PIECE) + (piece ^ token % 8);
}

// What a patch is made of: where its first tile begins in the gradient, and how many of its tiles there are.
struct Patch {
    u32 row, column, down, across;
};

// What a block does: patches of a gradient, and tokens.
struct Work {
    u32 first_patch, last_patch, first_token, last_token;
    // Of the gradient.
    u32 tiles_down, tiles_across;

    __device__ __forceinline__ Patch patch(u32 index) const {
        const u32 patches_across = (tiles_across + TILES_ACROSS - 1) / TILES_ACROSS;
        const u32 down = index / patches_across * TILES_DOWN, across = index % patches_across * TILES_ACROSS;
        return {down * HEIGHT, across * WIDTH, min(u32{TILES_DOWN}, tiles_down - down),
                min(u32{TILES_ACROSS}, tiles_across - across)};
    }
};

// A factor of an example.
struct Factor {
    const Scalar* values;
    i64 token_stride;
    // How many features are in memory, and the one that is not and is one, if any.
    u32 features, one;
};

// The copies of a patch's FEATURES to stages. A thread copies the same piece of COUNT tokens, which are APART.
template <u32 FEATURES>
struct Copies {
    static constexpr u32 APART = THREADS * PIECE / FEATURES, COUNT = TOKENS / APART;
    static_assert(APART % 8 == 0, "a thread's pieces are equally far apart in a stage");

    Factor factor;
    // The thread's piece of its next first token.
    u32 feature = 0;
    const Scalar* from = nullptr;

    __device__ __forceinline__ void begin(u32 first_feature, u32 first_token) {
        feature = first_feature + threadIdx.x % (FEATURES / PIECE) * PIECE;
        from = factor.values + ((first_token + threadIdx.x / (FEATURES / PIECE)) * factor.token_stride + feature);
    }

    // Starts to copy piece i to a stage, of whose tokens `left` are there; the others become zeros.
    __device__ __forceinline__ void copy(Piece* stage, u32 i, u32 left) const {
        if (i >= COUNT) return;
        const u32 token = threadIdx.x / (FEATURES / PIECE) + i * APART;
        Piece* const to = stage + place_of<FEATURES>(token, threadIdx.x % (FEATURES / PIECE));
        const Scalar* const its = from + i * APART * factor.token_stride;
#if ALIGNED
        if (feature != factor.one) {
            copy_async<16>(to, its, token < left && feature < factor.features ? 16 : 0);
            return;
        }
#endif
        Piece piece;
#pragma unroll
        for (u32 j = 0; j < PIECE; ++j) {
            piece.values[j] = feature + j == factor.one ? Number<Scalar>::one() : Number<Scalar>::zero();
            if (!ALIGNED && token < left && feature + j < factor.features) piece.values[j] = its[j];
        }
        *to = piece;
    }

    __device__ __forceinline__ void advance() { from += TOKENS * factor.token_stride; }
};

// Brings the factors of a block's work to stages, in the order in which they are multiplied; past the end, zeros.
struct Supply {
    const Work work;
    Copies<PATCH_ROWS> g;
    Copies<PATCH_COLUMNS> a;
    u32 patch = work.first_patch, token = work.first_token, stage = 0;

    __device__ __forceinline__ void begin_stage() {
        if (token != work.first_token || patch >= work.last_patch) return;
        const Patch next = work.patch(patch);
        g.begin(next.row, token);
        a.begin(next.column, token);
    }

    // Each thread's quarter of a stage, i of 0 to 3.
    __device__ __forceinline__ void copy(Shared& shared, u32 i) const {
        const u32 left = patch < work.last_patch ? work.last_token - token : 0;
        g.copy(shared.grad_outputs[stage], i, left);
        a.copy(shared.inputs[stage], i, left);
    }

    __device__ __forceinline__ void end_stage() {
        commit_copies();
        g.advance();
        a.advance();
        stage = (stage + 1) % STAGES;
        token += TOKENS;
        if (token >= work.last_token) {
            token = work.first_token;
            ++patch;
        }
    }
};

// Draws the shifts and the signs of a patch's tiles.
__device__ __forceinline__ void draw(Tiles& tiles, u64 seed, const Patch& patch, u32 tiles_across) {
    constexpr u32 DRAWS = 1 + ROW_WORDS + COLUMN_WORDS;
    for (u32 i = threadIdx.x; i < TILES * DRAWS; i += THREADS) {
        const u32 index = i / DRAWS, word = i % DRAWS - 1;
        const u32 down = patch.row / HEIGHT + index / TILES_ACROSS;
        const u32 across = patch.column / WIDTH + index % TILES_ACROSS;
        const u64 tile = static_cast<u64>(down) * tiles_across + across;
        if (i % DRAWS == 0)
            tiles.shifts[index] = tile_shift(seed, tile, HEIGHT, WIDTH);
        else if (word < ROW_WORDS)
            tiles.row_signs[index][word] = bits_from(seed, TILE_ROW_SIGN, tile * HEIGHT + 32 * word);
        else
            tiles.column_signs[index][word - ROW_WORDS] =
                bits_from(seed, TILE_COLUMN_SIGN, tile * WIDTH + 32 * (word - ROW_WORDS));
    }
}

// A warp's 64 columns of 16 tokens' inputs, and 16 rows of their output gradients.
using Columns = u32[4][4];
using Rows = u32[4];

__device__ __forceinline__ void load_columns(Columns& columns, const Piece* inputs, u32 token) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 place = place_of<PATCH_COLUMNS>(token + lane % 16, warp % WARP_COLUMNS * 8 + lane / 16);
#pragma unroll
    for (u32 j = 0; j < 4; ++j) load_matrices<true>(columns[j], inputs + (place ^ 2 * j));
}

__device__ __forceinline__ void load_rows(Rows& rows, const Piece* grad_outputs, u32 token, u32 i) {
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const u32 piece = warp / WARP_COLUMNS * 8 + lane / 8 % 2;
    load_matrices<true>(rows, grad_outputs + (place_of<PATCH_ROWS>(token + lane % 8 + lane / 16 * 8, piece) ^ 2 * i));
}

// Adds to 16 rows of the product.
__device__ __forceinline__ void multiply(float (&product)[8][4], const Rows& rows, const Columns& columns) {
#pragma unroll
    for (u32 j = 0; j < 8; ++j) {
        const u32 pair[2] = {columns[j / 2][j % 2 * 2], columns[j / 2][j % 2 * 2 + 1]};
        multiply_add<Scalar>(product[j], rows, pair);
    }
}

// The thread's number, of which the compiler computes nothing ahead: where a product goes would be in registers all the
// while that it is summed.
__device__ __forceinline__ u32 thread_now() {
    u32 thread = threadIdx.x;
    asm volatile("" : "+r"(thread));
    return thread;
}

// Writes the product of TILES_FOLDED rows of tiles from row `first` on to shared memory: signed, each tile's rows
// turned.
__device__ __forceinline__ void write_product(const Product& product, const Tiles& tiles, float* to, u32 first) {
    const u32 thread = thread_now(), lane = thread % 32, warp = thread / 32;
    const u32 first_row = warp / WARP_COLUMNS * 64 - first * HEIGHT, lane_row = lane / 4;
    const u32 first_column = warp % WARP_COLUMNS * 64, lane_column = lane % 4 * 2;

    // The rows of tiles of the lane's 8 rows, and what is known of the rows while its columns are of one tile.
    u32 downs[8], places[8] = {}, minus[8] = {}, current = ~0u;
#pragma unroll
    for (u32 i = 0; i < 8; ++i) downs[i] = (first_row + (HEIGHT % 64 == 0 ? 0 : 8 * i)) / HEIGHT;
#pragma unroll
    for (u32 j = 0; j < 8; ++j) {
        const u32 across = (first_column + (WIDTH % 64 == 0 ? 0 : 8 * j)) / WIDTH;
        if (across >= TILES_ACROSS) continue;
        if (across != current) {
            current = across;
#pragma unroll
            for (u32 i = 0; i < 8; ++i) {
                if (downs[i] >= TILES_FOLDED) continue;
                const u32 tile = (first + downs[i]) * TILES_ACROSS + across;
                const u32 row = first_row + 8 * i + lane_row - downs[i] * HEIGHT;
                places[i] = (downs[i] * HEIGHT + (row + tiles.shifts[tile].rows) % HEIGHT) * PITCH;
                minus[i] = tiles.row_signs[tile][row / 32] << (31 - row % 32) & 0x80000000u;
            }
        }
        const u32 x = first_column + 8 * j + lane_column, column = x - across * WIDTH;
        u32 signs = 0;
#pragma unroll
        for (u32 i = 0; i < 8; ++i) {
            if (downs[i] >= TILES_FOLDED) continue;
            if (i == 0 || downs[i] != downs[i - 1])
                signs = tiles.column_signs[(first + downs[i]) * TILES_ACROSS + across][column / 32] >> column % 32;
            Pair pair;
#pragma unroll
            for (u32 c = 0; c < 2; ++c) {
                const u32 bits = __float_as_uint(product[i / 2][j][i % 2 * 2 + c]);
                pair.values[c] = __uint_as_float(bits ^ minus[i] ^ (signs << (31 - c) & 0x80000000u));
            }
            *reinterpret_cast<Pair*>(to + places[i] + x) = pair;
        }
    }
}

// Adds to the outputs what the written tiles add, those of the patch's rows of tiles from row `first` on, one tile
// after another. Before the first of all, outputs are zero, whatever is in memory.
__device__ __forceinline__ void collect(const float* product, const Tiles& tiles, const Patch& patch, u32 first,
                                        float* outputs, bool are_zero) {
    constexpr bool WHOLE = OUTPUTS % (OWNED * THREADS) == 0;
    const u32 thread = thread_now(), share = thread / OUTPUTS;
    for (u32 begin = thread % OUTPUTS; begin < OUTPUTS && share < SHARES; begin += OWNED * THREADS) {
        float sums[OWNED] = {};
        float* const own = outputs + begin;
#pragma unroll
        for (u32 i = 0; i < OWNED; ++i)
            if (!are_zero && (WHOLE || begin + i * THREADS < OUTPUTS)) sums[i] = own[i * THREADS];
        for (u32 index = share; index < TILES_FOLDED * TILES_ACROSS; index += SHARES) {
            const u32 down = index / TILES_ACROSS, across = index % TILES_ACROSS;
            if (first + down >= patch.down || across >= patch.across) continue;
            const u32 shift = tiles.shifts[first * TILES_ACROSS + index].columns;
            const float* const tile = product + down * HEIGHT * PITCH + across * WIDTH;
#pragma unroll
            for (u32 i = 0; i < OWNED; ++i) {
                const u32 place = WHOLE ? begin + i * THREADS : min(begin + i * THREADS, OUTPUTS - 1);
                const u32 row = WHOLE && THREADS % WIDTH == 0 ? begin / WIDTH + i * (THREADS / WIDTH) : place / WIDTH;
                sums[i] += tile[row * PITCH + (place % WIDTH + WIDTH - shift) % WIDTH];
            }
        }
#pragma unroll
        for (u32 i = 0; i < OWNED; ++i)
            if (WHOLE || begin + i * THREADS < OUTPUTS) own[i * THREADS] = sums[i];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
tile_tensor(const Scalar* __restrict__ inputs, i64 inputs_example, i64 inputs_token,
            const Scalar* __restrict__ grad_outputs, i64 grad_outputs_example, i64 grad_outputs_token, float* parts,
            u64 seed, u32 examples, u32 tokens, u32 in_features, u32 out_features, u32 bias, u32 patch_parts,
            u32 patches_a_part, u32 token_parts, u32 tokens_a_part) {
    Shared& shared = *reinterpret_cast<Shared*>(shared_memory);

    const u32 part = blockIdx.x % (patch_parts * token_parts), example = blockIdx.x / (patch_parts * token_parts);
    const u64 row = static_cast<u64>(part * SHARES + threadIdx.x / OUTPUTS) * examples + example;
    float* const outputs = parts + row * OUTPUTS;

    const u32 tiles_down = (out_features + HEIGHT - 1) / HEIGHT, tiles_across = (in_features + WIDTH - 1) / WIDTH;
    const u32 patches =
        (tiles_down + TILES_DOWN - 1) / TILES_DOWN * ((tiles_across + TILES_ACROSS - 1) / TILES_ACROSS);
    const u32 first_patch = part % patch_parts * patches_a_part, first_token = part / patch_parts * tokens_a_part;
    const u32 last_patch = min(patches, first_patch + patches_a_part);
    const u32 last_token = min(tokens, first_token + tokens_a_part);
    const Work work = {first_patch, last_patch, first_token, last_token, tiles_down, tiles_across};

    const Factor g = {grad_outputs + example * grad_outputs_example, grad_outputs_token, out_features, ~0u};
    const u32 one = bias ? in_features - 1 : ~0u;
    const Factor a = {inputs + example * inputs_example, inputs_token, in_features - bias, one};
    Supply supply = {work, {g}, {a}};
    for (u32 stage = 0; stage + 1 < STAGES; ++stage) {
        supply.begin_stage();
#pragma unroll
        for (u32 i = 0; i < 4; ++i) supply.copy(shared, i);
        supply.end_stage();
    }
    wait_for_copies<STAGES - 2>();
    __syncthreads();

    Product product = {};
    u32 stage = 0;
    for (u32 index = work.first_patch; index < work.last_patch; ++index) {
        const Patch patch = work.patch(index);
        // What is multiplied next is always on its way to registers, from one stage to the next, too.
        Columns columns[2];
        Rows rows[2];
        load_columns(columns[0], shared.inputs[stage], 0);
        load_rows(rows[0], shared.grad_outputs[stage], 0, 0);
        for (u32 token = work.first_token; token < work.last_token; token += TOKENS) {
            // Every warp is done with the stage before: it is the next to be filled.
            supply.begin_stage();
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                load_rows(rows[(i + 1) % 2], shared.grad_outputs[stage], (i + 1) / 4 * 16, (i + 1) % 4);
                if (i == 1) load_columns(columns[1], shared.inputs[stage], 16);
                multiply(product[i], rows[i % 2], columns[0]);
                if (ALIGNED) supply.copy(shared, i);
            }
#pragma unroll 1
            for (u32 i = 0; i < 4; ++i)
                if (!ALIGNED) supply.copy(shared, i);
            supply.end_stage();
#pragma unroll
            for (u32 i = 0; i < 2; ++i) {
                load_rows(rows[1 - i], shared.grad_outputs[stage], 16, i + 1);
                multiply(product[i], rows[i], columns[1]);
            }
            load_rows(rows[1], shared.grad_outputs[stage], 16, 3);
            stage = (stage + 1) % STAGES;
            wait_for_copies<STAGES - 2>();
            __syncthreads();
            if (token == work.first_token) draw(shared.tiles, seed, patch, tiles_across);
            load_columns(columns[0], shared.inputs[stage], 0);
            multiply(product[2], rows[0], columns[1]);
            load_rows(rows[0], shared.grad_outputs[stage], 0, 0);
            multiply(product[3], rows[1], columns[1]);
        }
#pragma unroll 1
        for (u32 first = 0; first < TILES_DOWN; first += TILES_FOLDED) {
            __syncthreads();
            write_product(product, shared.tiles, shared.product, first);
            __syncthreads();
            collect(shared.product, shared.tiles, patch, first, outputs, index == work.first_patch && first == 0);
        }
#pragma unroll
        for (u32 i = 0; i < 4 * 8 * 4; ++i) product[i / 32][i / 4 % 8][i % 4] = 0.0f;
    }
}
