// What runs a kernel on the CPU: a block's threads as fibers, one block after another, and memory that ends where it
// says.
//
// A fiber runs until it waits (barrier, warp exchange) or ends; then the next one runs, in the order of the schedule.
// Shared memory is poisoned with NaN before every block, so that what nobody wrote is seen.

#pragma once

#include <cstdint>
#include <string>

struct Index3 {
    unsigned x, y, z;
};

namespace emulator {

// A place in a source.
struct Site {
    const char* file;
    int line;
};

// As a default argument: where the function is called.
constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }

// These do not change while a fiber runs.
__attribute__((const)) Index3 thread_index();
__attribute__((const)) Index3 block_index();
__attribute__((const)) Index3 block_shape();
__attribute__((const)) Index3 grid_shape();
__attribute__((const)) unsigned lane();
__attribute__((const)) unsigned char* shared_memory();

// Ends the launch with an error of the running thread.
void fail(const std::string& message);

void wait_for_block(Site site);

constexpr unsigned warp_size = 32;

struct Value {
    std::uint64_t words[4];
};

// What the lanes of a warp gave; the values of lanes that gave nothing are poison.
struct Gathered {
    const Value* values;
    unsigned lanes;
};

// Waits for the lanes of `mask` that have not ended; valid until the lane waits again.
Gathered gather(unsigned mask, const Value& value, bool orders_memory, Site site);

// A thread's copies from global to shared memory: what one writes is poison until a wait covers it.
void start_copy(void* shared, const void* global, unsigned size, unsigned bytes);
void commit_copies();
void wait_for_copies(unsigned pending);

// Runs `call(args)` as every thread of a grid; returns what went wrong, or null. `shape` is the grid, then the block.
const char* launch(void (*call)(void**), const std::string& types, const unsigned* shape, unsigned shared_bytes,
                   unsigned schedule, void** args, const char* given_types);

}  // namespace emulator
