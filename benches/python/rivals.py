"""Compressors called from Python beside what else computes the same kind of sketch; one thread each.

Rivals get everything that can be prepared: tables, transposes and memory for the result.
"""

from __future__ import annotations

import warnings
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from sklearn.random_projection import SparseRandomProjection

import grass_rs as grass
from rows import Row, medians, threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def measure() -> Iterator[Row]:
    """Measure all of them."""
    with threads(1):
        yield from _sjlt()
        yield from _factgrass()
        yield from _tile()


def _sparse_products(
    buckets: torch.Tensor, signs: torch.Tensor, k: int, x: torch.Tensor
) -> list[Callable[[], torch.Tensor]]:
    """Return `torch.sparse.mm` with the SJLT's matrix (k, p) in each of torch's two layouts."""
    p = len(buckets)
    order = torch.argsort(buckets, stable=True)
    starts = torch.zeros(k + 1, dtype=torch.int64)
    starts[1:] = torch.bincount(buckets, minlength=k).cumsum(0)
    with warnings.catch_warnings():
        # torch calls its CSR layout a beta once a process.
        warnings.simplefilter("ignore", UserWarning)
        csr = torch.sparse_csr_tensor(starts, order, signs[order], (k, p))
    indices = torch.stack([buckets[order], order])
    coo = torch.sparse_coo_tensor(indices, signs[order], (k, p), is_coalesced=True)
    column = x.reshape(p, 1)
    return [lambda: torch.sparse.mm(csr, column), lambda: torch.sparse.mm(coo, column)]


def _sjlt() -> Iterator[Row]:
    p, k = 2**24, 4096
    x = np.random.default_rng(0).standard_normal((1, p), dtype=np.float32)
    tensor = torch.from_numpy(x)
    buckets, signs = torch.randint(0, k, (p,)), torch.randint(0, 2, (p,)) * 2.0 - 1
    out, signed, result = torch.zeros(1, k), torch.empty_like(tensor), np.empty((1, k), np.float32)
    cyclic, iid = (grass.SJLT(p, k, seed=0, kind=kind) for kind in ("cyclic", "iid"))
    # Its default density is 1 / sqrt(p) = 1 / k here: one non-zero a column on average, as ours.
    projection = SparseRandomProjection(k, random_state=0).fit(x)
    ours, textbook, read, scatter, csr, coo, sklearn = medians(
        lambda: cyclic(x, out=result),
        lambda: iid(x, out=result),
        tensor.sum,
        lambda: out.zero_().index_add_(1, buckets, torch.mul(tensor, signs, out=signed)),
        *_sparse_products(buckets, signs, k, tensor),
        lambda: projection.transform(x),
        seconds=4,
    )
    for what, seconds in (
        ("cyclic, call, 2^24 to 4096", ours),
        ("iid, call, 2^24 to 4096", textbook),
    ):
        for against, its in (
            ("torch sum", read),
            ("torch index_add_", scatter),
            ("torch.sparse.mm", min(csr, coo)),
            ("scikit-learn SparseRandomProjection", sklearn),
        ):
            yield Row(what, seconds, against, its, bytes=x.nbytes)


def _factgrass() -> Iterator[Row]:
    n, t, d, kept, k, rank = 8, 512, 2048, 128, 4096, 64
    inputs, grad_outputs = torch.randn(n, t, d), torch.randn(n, t, d)
    ours = grass.FactGraSS(d, d, k, seed=0, mask_in=kept, mask_out=kept)
    logra = grass.LoGra(d, d, rank, rank, seed=0)
    kept_in, kept_out = (torch.randperm(d)[:kept].sort().values for _ in range(2))
    buckets, signs = torch.randint(0, k, (kept**2,)), torch.randint(0, 2, (kept**2,)) * 2.0 - 1
    left, right = torch.randn(rank, d), torch.randn(rank, d)
    out, ranks = torch.empty(n, k), torch.empty(n, rank**2)

    def by_torch() -> torch.Tensor:
        masked = torch.bmm(
            grad_outputs.index_select(2, kept_out).mT, inputs.index_select(2, kept_in)
        )
        return out.zero_().index_add_(1, buckets, masked.reshape(n, -1).mul_(signs))

    def logra_by_torch() -> torch.Tensor:
        return torch.einsum("nto,nti->noi", grad_outputs @ left.T, inputs @ right.T)

    result = torch.empty(n, k)
    seconds, twin, torch_logra, our_logra = medians(
        lambda: ours(inputs, grad_outputs, out=result),
        by_torch,
        logra_by_torch,
        lambda: logra(inputs, grad_outputs, out=ranks),
        seconds=4,
    )
    what = "FactGraSS, call, 8 x 512 x 2048"
    read = 2 * inputs.nbytes
    yield Row(what, seconds, "torch index_select, bmm, index_add_", twin, bytes=read)
    yield Row(what, seconds, "torch LoGra 64 x 64", torch_logra, bytes=read)
    yield Row("LoGra, call, 8 x 512 x 2048", our_logra, "torch LoGra 64 x 64", torch_logra)


def _tile() -> Iterator[Row]:
    for n, t, d in ((4, 512, 1024), (2, 128, 2048)):
        inputs, grad_outputs = torch.randn(n, t, d), torch.randn(n, t, d)
        tile = grass.TileSketch(d, d, 4096, seed=0)
        out, gradient = torch.empty(n, 4096), torch.empty(n, d, d)
        ours, bmm = medians(
            partial(tile, inputs, grad_outputs, out=out),
            partial(torch.bmm, grad_outputs.mT, inputs, out=gradient),
        )
        what = f"tile, call, {n} x {t} x {d}"
        yield Row(what, ours, "torch.bmm, full gradient", bmm, operations=2 * n * t * d * d)
