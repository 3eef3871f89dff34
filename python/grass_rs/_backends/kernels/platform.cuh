// What differs between CUDA and a CPU that runs the same sources in tests: everything else is plain C++.

#pragma once

// The block's shared memory, all of it dynamic: the launch says how many bytes.
extern __shared__ __align__(16) unsigned char shared_memory[];

__device__ __forceinline__ float half_bits_to_float(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
