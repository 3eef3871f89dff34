// The SJLT of a slab of the masked product that lies in shared memory. A thread owns outputs, and adds what each of
// them takes from the slab in the order of the coordinates: nothing collides, and nothing is added by atomics.

#pragma once

#include "slab_product.cuh"

// The masked product (k_out, k_in); its coordinates are row-major.
struct ProductShape {
    u32 k_in, k_out;
    // floor((2^32 - 1) / k_in), see row_of.
    u32 reciprocal;

    __device__ __forceinline__ u32 size() const { return k_in * k_out; }

    // offset / k_in, exactly where offset * k_in < 2^32 or offset < k_in: in every slab. Elsewhere it is one too
    // small at most (Robison, N-bit unsigned division via N-bit multiply-add, ARITH 2005).
    __device__ __forceinline__ u32 row_of(u32 offset) const { return __umulhi(offset + 1, reciprocal); }
};

// Rows and columns of the product that are in a slab.
struct SlabRange {
    u32 first_row, rows, first_column, columns;

    // Slab `number` of those of most_rows x most_columns, row-major.
    __device__ __forceinline__ SlabRange(const ProductShape& shape, u32 number, u32 slabs_a_row, u32 most_rows,
                                         u32 most_columns) {
        first_row = number / slabs_a_row * most_rows;
        rows = min(most_rows, shape.k_out - first_row);
        first_column = number % slabs_a_row * most_columns;
        columns = min(most_columns, shape.k_in - first_column);
    }

    // Coordinate of a row and a column of the slab.
    __device__ __forceinline__ u32 coordinate(const ProductShape& shape, u32 row, u32 column) const {
        return (first_row + row) * shape.k_in + first_column + column;
    }
};

// Signs of 32 coordinates from `first` on, lowest bit first. The stream is cut into pages of `width` coordinates,
// which begin at multiples of 128 bits.
__device__ __forceinline__ u32 sign_word(u64 seed, u32 first, u32 width) {
    const u64 words_a_page = (width + 127) / 128 * 4;
    u32 bits = 0;
    for (u32 done = 0; done < 32;) {
        const u32 page = (first + done) / width, bit = first + done - page * width;
        const u32 count = min(min(32 - done, 32 - bit % 32), width - bit);
        const u32 piece = word(seed, SIGN, page * words_a_page + bit / 32) >> bit % 32;
        bits |= (piece & 0xFFFFFFFFu >> (32 - count)) << done;
        done += count;
    }
    return bits;
}

// Draws the signs of a slab's values. The cyclic kind has pages of `width` = k coordinates, the iid kind one of all.
__device__ __forceinline__ void draw_signs(u64 seed, const ProductShape& shape, const SlabRange& range, u32 width,
                                           SlabSigns& signs) {
    constexpr u32 WORDS = SLAB_IN / 32;
    for (u32 i = threadIdx.x; i < range.rows * WORDS; i += THREADS) {
        const u32 row = i / WORDS, column = i % WORDS * 32;
        if (column < range.columns)
            signs[row][column / 32] = sign_word(seed, range.coordinate(shape, row, column), width);
    }
}

// The outputs of a block: sums over its slabs, in device memory.
struct Outputs {
    float* values;
    u32 count;
    float scale;
    bool begun = false;

    // Calls add(c, sum) for each output c of the thread, the same ones every time; the last time multiplies by scale.
    template <class Add>
    __device__ __forceinline__ void update(bool last, const Add& add) {
        for (u32 c = threadIdx.x; c < count; c += THREADS) {
            float sum = begun ? values[c] : 0.0f;
            add(c, sum);
            values[c] = last ? scale * sum : sum;
        }
        begun = true;
    }
};

// Page b of the cyclic kind: output c takes coordinate b * k + (c - rotation) mod k.
struct Page {
    u32 rotation;
    // b * k - rotation less the slab's first coordinate, modulo 2^32.
    u32 origin;
};

// Pages whose rotations are there at once.
constexpr u32 PAGES = THREADS;

// Adds a slab, whose values have their signs, to the outputs. It begins with the barrier that shows the slab to all
// threads and ends with one after which nobody reads it.
__device__ __forceinline__ void add_cyclic(u64 seed, const ProductShape& shape, const SlabRange& range,
                                           const Slab& slab, Page (&pages)[PAGES], Outputs& outputs, bool last) {
    const u32 k = outputs.count, first = range.coordinate(shape, 0, 0);
    const u32 end_page = range.coordinate(shape, range.rows - 1, range.columns - 1) / k + 1;
    for (u32 begin = first / k; begin < end_page; begin += PAGES) {
        const u32 count = min(PAGES, end_page - begin);
        if (threadIdx.x < count) {
            const u32 page = begin + threadIdx.x, rotation = below(k, word(seed, ROTATION, page));
            pages[threadIdx.x] = {rotation, page * k - rotation - first};
        }
        __syncthreads();
        outputs.update(last && begin + count == end_page, [&](u32 c, float& sum) {
#pragma unroll 4
            for (u32 i = 0; i < count; ++i) {
                const Page page = pages[i];
                const u32 offset = page.origin + c + (c < page.rotation ? k : 0);
                const u32 row = shape.row_of(offset), column = offset - row * shape.k_in;
                // A coordinate outside of the slab is past its rows or columns, even where row_of is one too small.
                if (row < range.rows && column < range.columns) sum += slab[row][column];
            }
        });
        __syncthreads();
    }
}

// The same for the iid kind. With i = number * k + c, output c takes the values of slab `number` that
// places[places[i]] to places[places[i + 1] - 1] name, each by row * 256 + column.
__device__ __forceinline__ void add_iid(const u32* places, u32 number, const Slab& slab, Outputs& outputs, bool last) {
    const u32* ends = places + static_cast<u64>(number) * outputs.count;
    __syncthreads();
    outputs.update(last, [&](u32 c, float& sum) {
        for (u32 i = ends[c]; i < ends[c + 1]; ++i) sum += slab[places[i] / 256][places[i] % 256];
    });
    __syncthreads();
}
