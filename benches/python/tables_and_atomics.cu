// The rival of the cyclic SJLT: 8 bytes of bucket and 1 of sign a coordinate, read from tables, and atomic additions in
// global memory.

extern "C" __global__ void tables_and_atomics(const float* x, const long long* buckets, const signed char* signs,
                                              float* out, long long p, int n, int k) {
    const long long step = static_cast<long long>(gridDim.x) * blockDim.x;
    for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < p; i += step) {
        const long long bucket = buckets[i];
        const float sign = signs[i];
        for (int row = 0; row < n; ++row) {
            atomicAdd(&out[static_cast<long long>(row) * k + bucket], sign * x[row * p + i]);
        }
    }
}
