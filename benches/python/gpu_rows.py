"""SJLT and GraSS on a GPU: beside the time of moving the bytes, and beside what else computes them."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import gpu_goals as goals
import grass_rs as grass
from rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpu_timing import Timer

K = 4096


def measure(timer: Timer, scale: int = 1) -> Iterator[Row]:
    """Measure all of them, on inputs `scale` times shorter than named."""
    for p in goals.DIMS:
        for n in goals.BATCHES:
            yield from _beside_copy(timer, n, p, torch.float32, scale)
    for dtype in (torch.bfloat16, torch.float16):
        yield from _beside_copy(timer, 8, 2**26, dtype, scale)
    for n, p in goals.RIVAL_SIZES:
        yield from _beside_rivals(timer, n, p, scale)
    yield from _other_kinds(timer, scale)
    yield from _grass(timer, scale)


def _beside_copy(timer: Timer, n: int, p: int, dtype: torch.dtype, scale: int) -> Iterator[Row]:
    x = torch.randn(n, p // scale, device=timer.device, dtype=dtype)
    sjlt = grass.SJLT(p // scale, K, seed=0)
    # A copy reads and writes: half of the bytes are as many moved.
    half = x.view(-1)[: x.numel() // 2]
    target = torch.empty_like(half)
    ours, copy = timer.kernels(partial(sjlt, x), partial(target.copy_, half))
    name = goals.sjlt(n, p, str(dtype).removeprefix("torch."))
    yield Row(name, ours, goals.COPY, copy, bytes=x.nbytes)


def _beside_rivals(timer: Timer, n: int, p: int, scale: int) -> Iterator[Row]:
    p_here, device = p // scale, timer.device
    x = torch.randn(n, p_here, device=device)
    buckets = torch.randint(0, K, (p_here,), device=device)
    signs = torch.randint(0, 2, (p_here,), device=device) * 2.0 - 1
    out, signed = torch.zeros(n, K, device=device), torch.empty_like(x)
    product = _sparse_product(buckets, signs, x)
    rivals: dict[str, Callable[[], Any]] = {
        goals.INDEX_ADD: lambda: out.zero_().index_add_(
            1, buckets, torch.mul(x, signs, out=signed)
        ),
        goals.SPARSE: product,
    }
    if device.type == "cuda":
        rivals[goals.TABLES] = _tables_and_atomics(buckets, signs, x, out)
    ours, *theirs = timer.kernels(partial(grass.SJLT(p_here, K, seed=0), x), *rivals.values())
    for against, seconds in zip(rivals, theirs, strict=True):
        yield Row(goals.sjlt(n, p), ours, against, seconds, bytes=x.nbytes)


def _sparse_product(
    buckets: torch.Tensor, signs: torch.Tensor, x: torch.Tensor
) -> Callable[[], torch.Tensor]:
    """Return `torch.sparse.mm` of the SJLT's matrix (k, p) and the rows as columns."""
    order = torch.argsort(buckets, stable=True)
    starts = torch.zeros(K + 1, dtype=torch.int64, device=x.device)
    starts[1:] = torch.bincount(buckets, minlength=K).cumsum(0)
    with warnings.catch_warnings():
        # torch calls its CSR layout a beta once a process.
        warnings.simplefilter("ignore", UserWarning)
        matrix = torch.sparse_csr_tensor(starts, order, signs[order], (K, len(buckets)))
    columns = x.T.contiguous()
    return lambda: torch.sparse.mm(matrix, columns)


def _tables_and_atomics(
    buckets: torch.Tensor, signs: torch.Tensor, x: torch.Tensor, out: torch.Tensor
) -> Callable[[], None]:
    """Return the scheme of the method's first CUDA kernel: a bucket and a sign from tables, an atomic add."""
    import cupy  # noqa: PLC0415 - only a machine with a GPU has it
    import numpy as np  # noqa: PLC0415

    source = Path(__file__).with_name("tables_and_atomics.cu").read_text(encoding="utf-8")
    kernel = cupy.RawKernel(source, "tables_and_atomics", ("-std=c++17",))
    tensors = x, buckets, signs.to(torch.int8), out
    sizes = np.int64(x.shape[1]), np.int32(x.shape[0]), np.int32(out.shape[1])
    blocks = min(-(-x.shape[1] // 256), 132 * 16)

    def run() -> None:
        out.zero_()
        # The addresses of tensors that this function keeps.
        pointers = [np.uint64(tensor.data_ptr()) for tensor in tensors]
        stream = cupy.cuda.ExternalStream(torch.cuda.current_stream().cuda_stream)
        with warnings.catch_warnings(), stream:
            warnings.simplefilter("ignore", DeprecationWarning)
            kernel((blocks,), (256,), (*pointers, *sizes))

    return run


def _other_kinds(timer: Timer, scale: int) -> Iterator[Row]:
    n, p = 8, 2**24
    x = torch.randn(n, p // scale, device=timer.device)
    cyclic = partial(grass.SJLT(p // scale, K, seed=0), x)
    iid = partial(grass.SJLT(p // scale, K, seed=0, kind="iid"), x)
    thrice = partial(grass.SJLT(p // scale, 3 * 1365, seed=0, nnz=3), x)
    mask = partial(grass.RandomMask(p // scale, 4 * K, seed=0), x)
    runs = partial(grass.RandomMask(p // scale, 4 * K, seed=0, block=16), x)
    kept = torch.randperm(p // scale, device=timer.device)[: 4 * K].sort().values
    once, *seconds, select = timer.kernels(
        cyclic, iid, thrice, mask, runs, partial(torch.index_select, x, 1, kept)
    )
    for what, taken in zip(("iid", "cyclic nnz=3"), seconds[:2], strict=True):
        yield Row(f"{what} n=8, p=2^24", taken, "cyclic", once, bytes=x.nbytes)
    for what, taken in zip(("mask", "mask of runs of 16"), seconds[2:], strict=True):
        yield Row(f"{what} n=8, 2^24 to 16384", taken, "torch index_select", select)


def _grass(timer: Timer, scale: int) -> Iterator[Row]:
    n, p = 8, 2**24
    device = timer.device
    x = torch.randn(n, p // scale, device=device)
    kept = torch.randperm(p // scale, device=device)[: 4 * K].sort().values
    buckets = torch.randint(0, K, (len(kept),), device=device)
    signs = torch.randint(0, 2, (len(kept),), device=device) * 2.0 - 1

    def steps(x: torch.Tensor) -> torch.Tensor:
        masked = x.index_select(1, kept) * signs
        return x.new_zeros(n, K).index_add_(1, buckets, masked)

    ours, eager, compiled = timer.kernels(
        partial(grass.GraSS(p // scale, K, seed=0), x),
        partial(steps, x),
        partial(torch.compile(steps), x),
    )
    yield Row("GraSS n=8, p=2^24", ours, goals.EAGER, eager)
    yield Row("GraSS n=8, p=2^24", ours, goals.COMPILED, compiled)
