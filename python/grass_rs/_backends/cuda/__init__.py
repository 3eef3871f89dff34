"""Compressors on CUDA arrays: kernels compiled at first use, on torch tensors and CuPy arrays."""
