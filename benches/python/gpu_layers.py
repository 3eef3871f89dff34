"""FactGraSS, LoGra and the tile sketch on a GPU, on the layers of Llama-3.1-8B with 8 x 1024 tokens."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

import gpu_goals as goals
import grass_rs as grass
from rows import Row

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gpu_timing import Timer

N, TOKENS, K, KEPT, RANK = 8, 1024, 4096, 128, 64
_CALLS = {(4096, 4096): 2, (4096, 1024): 2, (4096, 14336): 2, (14336, 4096): 1}
"""How many layers of one block have the shape."""


def measure(timer: Timer, scale: int = 1) -> Iterator[Row]:
    """Measure all of them, on layers and tokens `scale` times smaller than named."""
    block_ours, block_logra, block_our_logra = 0.0, 0.0, 0.0
    for d_in, d_out in goals.LLAMA_LAYERS:
        shape = N, TOKENS // scale
        inputs = torch.randn(*shape, d_in // scale, device=timer.device, dtype=torch.bfloat16)
        grad_outputs = torch.randn(
            *shape, d_out // scale, device=timer.device, dtype=torch.bfloat16
        )
        ours, eager, compiled, logra, our_logra = timer.kernels(
            *_factgrass(inputs, grad_outputs), *_logra(inputs, grad_outputs)
        )
        name = goals.layer("FactGraSS", d_in, d_out)
        read = inputs.nbytes + grad_outputs.nbytes
        yield Row(name, ours, goals.EAGER, eager, bytes=read)
        yield Row(name, ours, goals.COMPILED, compiled, bytes=read)
        yield Row(goals.layer("LoGra", d_in, d_out), our_logra, goals.LOGRA, logra, bytes=read)
        count = _CALLS[d_in, d_out]
        block_ours += count * ours
        block_logra += count * logra
        block_our_logra += count * our_logra
        yield from _tile(timer, inputs, grad_outputs, goals.layer("tile", d_in, d_out))
    what = "all layers of a block"
    yield Row(f"FactGraSS, {what}", block_ours, goals.LOGRA, block_logra)
    yield Row(f"LoGra, {what}", block_our_logra, goals.LOGRA, block_logra)


def _factgrass(
    inputs: torch.Tensor, grad_outputs: torch.Tensor
) -> list[Callable[[], torch.Tensor]]:
    """Return FactGraSS, and its steps in torch, eager and compiled."""
    d_in, d_out, device = inputs.shape[2], grad_outputs.shape[2], inputs.device
    kept_in, kept_out = (
        torch.randperm(d, device=device)[:KEPT].sort().values for d in (d_in, d_out)
    )
    product = len(kept_in) * len(kept_out)
    buckets = torch.randint(0, K, (product,), device=device)
    signs = torch.randint(0, 2, (product,), device=device) * 2.0 - 1
    ours = grass.FactGraSS(d_in, d_out, K, seed=0, mask_in=len(kept_in), mask_out=len(kept_out))

    def steps(inputs: torch.Tensor, grad_outputs: torch.Tensor) -> torch.Tensor:
        masked = torch.bmm(
            grad_outputs.index_select(2, kept_out).mT, inputs.index_select(2, kept_in)
        )
        signed = masked.flatten(1) * signs
        return signed.new_zeros(len(inputs), K).index_add_(1, buckets, signed)

    # For the sizes of this layer: they change from layer to layer, and torch would take them for dynamic.
    compiled = torch.compile(steps, dynamic=False)
    return [partial(call, inputs, grad_outputs) for call in (ours, steps, compiled)]


def _logra(inputs: torch.Tensor, grad_outputs: torch.Tensor) -> list[Callable[[], torch.Tensor]]:
    """Return LoGra in torch, all in the inputs' dtype, and ours."""
    d_in, d_out = inputs.shape[2], grad_outputs.shape[2]
    left, right = inputs.new_empty(d_in, RANK).normal_(), inputs.new_empty(d_out, RANK).normal_()
    ours = grass.LoGra(d_in, d_out, RANK, RANK, seed=0)
    return [
        lambda: torch.bmm((grad_outputs @ right).mT, inputs @ left),
        partial(ours, inputs, grad_outputs),
    ]


def _tile(
    timer: Timer, inputs: torch.Tensor, grad_outputs: torch.Tensor, name: str
) -> Iterator[Row]:
    d_in, d_out = inputs.shape[2], grad_outputs.shape[2]
    tile = grass.TileSketch(d_in, d_out, K, seed=0)
    flat_in, flat_out = inputs.flatten(0, 1), grad_outputs.flatten(0, 1)
    gradient = inputs.new_empty(d_out, d_in)
    ours, product = timer.kernels(
        partial(tile, inputs, grad_outputs),
        partial(torch.mm, flat_out.mT, flat_in, out=gradient),
    )
    operations = 2 * len(flat_in) * d_in * d_out
    yield Row(name, ours, goals.WEIGHT_GRADIENT, product, operations=operations)
