// CUDA on the CPU: the kernels' sources run unchanged, threads as fibers, one block after another.
//
// A fiber runs until it waits (barrier, warp exchange) or ends; then the next one runs, in the order of the schedule.
// Shared memory is poisoned with NaN before every block, so that what nobody wrote is seen.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <ucontext.h>

#define __global__
#define __device__
#define __constant__ static
#define __forceinline__ inline
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)

struct Index3 {
    unsigned x, y, z;
};

namespace emulator {

enum class State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };

constexpr std::size_t STACK_BYTES = 64 * 1024;
constexpr unsigned WARP = 32;

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state;
    Index3 index;
    unsigned number;
};

struct Machine {
    std::vector<Fiber> fibers;
    std::vector<std::uint64_t> slots;
    std::vector<unsigned char> shared;
    ucontext_t scheduler;
    Fiber* current;
    Index3 block, block_shape, grid_shape;
    void (*call)(void**);
    void** args;
};

inline Machine machine;

inline void wait(State at) {
    Fiber* self = machine.current;
    self->state = at;
    swapcontext(&self->context, &machine.scheduler);
}

inline void run_fiber() {
    machine.call(machine.args);
    machine.current->state = State::DONE;
    swapcontext(&machine.current->context, &machine.scheduler);
}

inline unsigned warp_begin() { return machine.current->number / WARP * WARP; }

// What every lane of the caller's warp gave, by lane; lanes that do not exist gave nothing.
template <class T>
std::vector<T> exchange(T value) {
    static_assert(sizeof(T) <= 8);
    const unsigned begin = warp_begin(), self = machine.current->number;
    std::memcpy(&machine.slots[self], &value, sizeof(T));
    wait(State::AT_WARP_BARRIER);
    const unsigned end = std::min<std::size_t>(begin + WARP, machine.fibers.size());
    std::vector<T> values(end - begin);
    for (unsigned lane = 0; lane < values.size(); ++lane) std::memcpy(&values[lane], &machine.slots[begin + lane], sizeof(T));
    wait(State::AT_WARP_BARRIER);
    return values;
}

inline void release_warps() {
    const std::size_t threads = machine.fibers.size();
    for (std::size_t begin = 0; begin < threads; begin += WARP) {
        const std::size_t end = std::min<std::size_t>(begin + WARP, threads);
        bool all = true;
        for (std::size_t i = begin; i < end; ++i) all &= machine.fibers[i].state == State::AT_WARP_BARRIER;
        if (!all) continue;
        for (std::size_t i = begin; i < end; ++i) machine.fibers[i].state = State::READY;
    }
}

// Whether any fiber can go on.
inline bool release() {
    release_warps();
    bool ready = false, done = true, barrier = true;
    for (const Fiber& fiber : machine.fibers) {
        ready |= fiber.state == State::READY;
        done &= fiber.state == State::DONE;
        barrier &= fiber.state == State::AT_BLOCK_BARRIER;
    }
    if (ready) return true;
    if (done) return false;
    if (!barrier) throw std::runtime_error("threads wait at a barrier that others of the block or warp do not reach");
    for (Fiber& fiber : machine.fibers) fiber.state = State::READY;
    return true;
}

inline void run_block(const std::vector<unsigned>& order) {
    const Index3 shape = machine.block_shape;
    std::memset(machine.shared.data(), 0xFF, machine.shared.size());
    for (std::size_t i = 0; i < machine.fibers.size(); ++i) {
        Fiber& fiber = machine.fibers[i];
        fiber.number = i;
        fiber.index = {unsigned(i) % shape.x, unsigned(i) / shape.x % shape.y, unsigned(i) / shape.x / shape.y};
        fiber.state = State::READY;
        if (!fiber.stack) fiber.stack.reset(new char[STACK_BYTES]);
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK_BYTES;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_fiber, 0);
    }
    while (release()) {
        for (const unsigned i : order) {
            if (machine.fibers[i].state != State::READY) continue;
            machine.current = &machine.fibers[i];
            swapcontext(&machine.scheduler, &machine.fibers[i].context);
        }
    }
}

// Schedule 0 runs the threads forwards, 1 backwards, others in an order of their own.
inline std::vector<unsigned> order_of(unsigned count, unsigned schedule) {
    std::vector<unsigned> order(count);
    for (unsigned i = 0; i < count; ++i) order[i] = schedule == 1 ? count - 1 - i : i;
    std::uint64_t state = schedule;
    for (unsigned i = count; schedule > 1 && i > 1; --i) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        std::swap(order[i - 1], order[(state >> 33) % i]);
    }
    return order;
}

template <class... Args, std::size_t... I>
void apply(void (*kernel)(Args...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<Args>*>(args[I])...);
}

template <class... Args>
std::vector<std::size_t> sizes_of(void (*)(Args...)) {
    return {sizeof(Args)...};
}

template <class... Args>
void apply(void (*kernel)(Args...), void** args) {
    apply(kernel, args, std::index_sequence_for<Args...>());
}

inline thread_local std::string message;

inline const char* launch(void (*call)(void**), const std::vector<std::size_t>& expected, const unsigned* shape,
                          unsigned shared_bytes, unsigned schedule, void** args, const unsigned* sizes, unsigned count) {
    try {
        if (count != expected.size()) throw std::runtime_error("wrong number of arguments: " + std::to_string(count) + " for " + std::to_string(expected.size()));
        for (unsigned i = 0; i < count; ++i)
            if (sizes[i] != expected[i]) throw std::runtime_error("argument " + std::to_string(i) + " has " + std::to_string(sizes[i]) + " bytes, expected " + std::to_string(expected[i]));
        machine.grid_shape = {shape[0], shape[1], shape[2]};
        machine.block_shape = {shape[3], shape[4], shape[5]};
        machine.call = call;
        machine.args = args;
        machine.shared.resize(shared_bytes);
        const unsigned threads = shape[3] * shape[4] * shape[5], blocks = shape[0] * shape[1] * shape[2];
        machine.fibers.resize(threads);
        machine.slots.resize(threads);
        const std::vector<unsigned> order = order_of(threads, schedule);
        for (const unsigned block : order_of(blocks, schedule)) {
            machine.block = {block % shape[0], block / shape[0] % shape[1], block / shape[0] / shape[1]};
            run_block(order);
        }
        return nullptr;
    } catch (const std::exception& error) {
        message = error.what();
        return message.c_str();
    }
}

}  // namespace emulator

#define threadIdx (emulator::machine.current->index)
#define blockIdx (emulator::machine.block)
#define blockDim (emulator::machine.block_shape)
#define gridDim (emulator::machine.grid_shape)
#define shared_memory (emulator::machine.shared.data())

inline void __syncthreads() { emulator::wait(emulator::State::AT_BLOCK_BARRIER); }

inline void __syncwarp(unsigned = 0xFFFFFFFFu) { emulator::wait(emulator::State::AT_WARP_BARRIER); }

template <class T>
T __shfl_sync(unsigned, T value, int lane) { return emulator::exchange(value)[lane % 32]; }

template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
    return emulator::exchange(value)[(emulator::machine.current->number % 32) ^ lanes];
}

template <class T>
T __shfl_down_sync(unsigned, T value, unsigned lanes) {
    const std::vector<T> values = emulator::exchange(value);
    const unsigned lane = emulator::machine.current->number % 32;
    return lane + lanes < values.size() ? values[lane + lanes] : value;
}

template <class T>
unsigned __match_any_sync(unsigned, T value) {
    const std::vector<T> values = emulator::exchange(value);
    unsigned peers = 0;
    for (unsigned lane = 0; lane < values.size(); ++lane) peers |= unsigned(values[lane] == value) << lane;
    return peers;
}

inline unsigned __ballot_sync(unsigned, int predicate) {
    const std::vector<int> values = emulator::exchange(predicate);
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < values.size(); ++lane) ballot |= unsigned(values[lane] != 0) << lane;
    return ballot;
}

inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

inline unsigned __umulhi(unsigned a, unsigned b) { return (std::uint64_t(a) * b) >> 32; }

inline unsigned __float_as_uint(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline float __uint_as_float(unsigned bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

inline float __fmul_rn(float a, float b) { return a * b; }

inline float __fadd_rn(float a, float b) { return a + b; }

inline float __fsqrt_rn(float value) { return std::sqrt(value); }

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return ((std::uint64_t(high) << 32 | low) >> (shift & 31));
}

using std::max;
using std::min;

inline float half_bits_to_float(unsigned short bits) {
    const unsigned sign = unsigned(bits >> 15) << 31, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 0) {
        const float tiny = std::ldexp(float(fraction), -24);
        return sign ? -tiny : tiny;
    }
    if (exponent == 31) return __uint_as_float(sign | 0x7F800000u | fraction << 13);
    return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

// At the end of a source: what the tests call to run its kernel.
#define EMULATE(kernel)                                                                                                \
    extern "C" const char* launch(const unsigned* shape, unsigned shared_bytes, unsigned schedule, void** args,        \
                                  const unsigned* sizes, unsigned count) {                                             \
        return emulator::launch([](void** values) { emulator::apply(kernel, values); }, emulator::sizes_of(kernel),    \
                                shape, shared_bytes, schedule, args, sizes, count);                                    \
    }
