// CUDA on the CPU: what the kernels' sources take from CUDA, so that they run unchanged.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <utility>

#include "machine.h"

#define __global__
#define __device__
#define __constant__ static
#define __forceinline__ inline
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_shape())
#define gridDim (emulator::grid_shape())
#define shared_memory (emulator::shared_memory())

namespace emulator {

// What the lanes of a warp gave, by lane.
template <class T>
struct Lanes {
    static_assert(sizeof(T) <= sizeof(Value) && std::is_trivially_copyable_v<T>);

    Lanes(unsigned mask, const T& own, Site site) {
        Value value = {};
        std::memcpy(&value, &own, sizeof(T));
        const Gathered all = gather(mask, value, false, site);
        given = all.lanes;
        // Lanes that gave nothing are poison.
        std::memset(values, 0xFF, sizeof values);
        for (unsigned lane = 0; lane < warp_size; ++lane)
            if (given >> lane & 1) std::memcpy(&values[lane], &all.values[lane], sizeof(T));
    }

    T values[warp_size];
    unsigned given;
};

constexpr unsigned all_lanes = 0xFFFFFFFFu;

}  // namespace emulator

using emulator::Site;

inline void __syncthreads(Site site = emulator::here()) { emulator::wait_for_block(site); }

inline void __syncwarp(unsigned mask = emulator::all_lanes, Site site = emulator::here()) {
    emulator::gather(mask, {}, true, site);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, Site site = emulator::here()) {
    return emulator::Lanes<T>(mask, value, site).values[lane & 31];
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, Site site = emulator::here()) {
    const unsigned lane = emulator::lane() ^ lanes;
    const emulator::Lanes<T> all(mask, value, site);
    return lane < 32 ? all.values[lane] : value;
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, Site site = emulator::here()) {
    const unsigned lane = emulator::lane() + lanes;
    const emulator::Lanes<T> all(mask, value, site);
    return lane < 32 ? all.values[lane] : value;
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, Site site = emulator::here()) {
    const unsigned lane = emulator::lane() - lanes;
    const emulator::Lanes<T> all(mask, value, site);
    return lane < 32 ? all.values[lane] : value;
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, Site site = emulator::here()) {
    const emulator::Lanes<T> all(mask, value, site);
    unsigned peers = 0;
    for (unsigned lane = 0; lane < 32; ++lane) peers |= unsigned(all.values[lane] == value) << lane;
    return peers & all.given;
}

inline unsigned __ballot_sync(unsigned mask, int predicate, Site site = emulator::here()) {
    const emulator::Lanes<int> all(mask, predicate, site);
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < 32; ++lane) ballot |= unsigned(all.values[lane] != 0) << lane;
    return ballot & all.given;
}

inline int __any_sync(unsigned mask, int predicate, Site site = emulator::here()) {
    return __ballot_sync(mask, predicate, site) != 0;
}

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
    return (std::uint64_t(high) << 32 | low) >> (shift & 31);
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

// The bodies of tensor_core.cuh's functions.

namespace emulator {

struct Operands {
    unsigned a[4], b[2];
};

template <class ToFloat>
void multiply_add(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], ToFloat to_float, Site site) {
    const Lanes<Operands> all(all_lanes, {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, site);
    for (unsigned i = 0; i < 4; ++i) {
        const unsigned row = lane() / 4 + i / 2 * 8, column = 2 * (lane() % 4) + i % 2;
        // Products of 16-bit numbers are exact; the tensor core's order of additions is not known.
        double sum = sums[i];
        for (unsigned k = 0; k < 16; ++k) {
            const unsigned left = all.values[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2] >> k % 2 * 16;
            const unsigned right = all.values[column * 4 + k % 8 / 2].b[k / 8] >> k % 2 * 16;
            sum += double(to_float(left & 0xFFFF)) * to_float(right & 0xFFFF);
        }
        sums[i] = float(sum);
    }
}

}  // namespace emulator

inline void mma_f16(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], Site site = emulator::here()) {
    emulator::multiply_add(sums, a, b, [](unsigned bits) { return half_bits_to_float(bits); }, site);
}

inline void mma_bf16(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2], Site site = emulator::here()) {
    emulator::multiply_add(sums, a, b, [](unsigned bits) { return __uint_as_float(bits << 16); }, site);
}

template <bool Transposed, int Count>
void load_matrices(unsigned (&out)[Count], const void* shared, Site site = emulator::here()) {
    static_assert(Count == 2 || Count == 4);
    const emulator::Lanes<const void*> rows(emulator::all_lanes, shared, site);
    const unsigned q = emulator::lane() / 4, r = 2 * (emulator::lane() % 4);
    for (unsigned m = 0; m < Count; ++m) {
        unsigned short pair[2];
        for (unsigned i = 0; i < 2; ++i) {
            const void* row = rows.values[8 * m + (Transposed ? r + i : q)];
            if (reinterpret_cast<std::uintptr_t>(row) % 16)
                emulator::fail("loads a row of a matrix that does not begin at a multiple of 16 bytes");
            pair[i] = static_cast<const unsigned short*>(row)[Transposed ? q : r + i];
        }
        std::memcpy(&out[m], pair, 4);
    }
}

template <int Size>
void copy_async(void* shared, const void* global, unsigned bytes) {
    static_assert(Size == 4 || Size == 8 || Size == 16);
    emulator::start_copy(shared, global, Size, bytes);
}

inline void commit_copies() { emulator::commit_copies(); }

template <int Pending>
void wait_for_copies() {
    emulator::wait_for_copies(Pending);
}

// At the end of a source: what the tests call to run its kernel.

namespace emulator {

// The types of a kernel's arguments, as NumPy writes them: "u8 f4".
template <class T>
std::string type_name() {
    if constexpr (std::is_pointer_v<T>) return "u8";
    else if constexpr (std::is_enum_v<T>) return type_name<std::underlying_type_t<T>>();
    else return (std::is_floating_point_v<T> ? "f" : std::is_signed_v<T> ? "i" : "u") + std::to_string(sizeof(T));
}

template <class... Args>
std::string type_names(void (*)(Args...)) {
    std::string names;
    ((names += (names.empty() ? "" : " ") + type_name<std::remove_cv_t<Args>>()), ...);
    return names;
}

template <class... Args, std::size_t... I>
void call(void (*kernel)(Args...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<std::remove_cv_t<Args>*>(args[I])...);
}

template <class... Args>
void call(void (*kernel)(Args...), void** args) {
    call(kernel, args, std::index_sequence_for<Args...>());
}

}  // namespace emulator

#define EMULATE(kernel)                                                                                              \
    extern "C" const char* launch(const unsigned* shape, unsigned shared_bytes, unsigned schedule, void** args,      \
                                  const char* types) {                                                               \
        return emulator::launch([](void** values) { emulator::call(kernel, values); }, emulator::type_names(kernel), \
                                shape, shared_bytes, schedule, args, types);                                         \
    }
