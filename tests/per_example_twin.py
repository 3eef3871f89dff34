"""The plain twin of capture: one example at a time, all parameters, by autograd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from grass_rs.capture import Capture, Factors, find_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import nn

    from grass_rs.capture import Block, CapturedBatch

    Loss = Callable[[nn.Module, Any], Tensor]


def example(batch: Any, i: int) -> Any:
    """Return example i as a batch of one."""
    if isinstance(batch, Tensor):
        return batch[i : i + 1].clone()
    if isinstance(batch, dict):
        return {key: example(value, i) for key, value in batch.items()}
    values = [example(value, i) for value in batch]
    return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)


def twin_rows(
    model: nn.Module, loss: Loss, batch: Any, n: int, blocks: Iterable[Block]
) -> dict[str, Tensor]:
    """Return each block's gradients (n, p) in evaluation mode, by a loop over the examples."""
    training = [module.training for module in model.modules()]
    model.eval()
    rows: dict[str, list[Tensor]] = {block.name: [] for block in blocks}
    for i in range(n):
        (value,) = loss(model, example(batch, i))
        for block in blocks:
            parameters = [model.get_parameter(name) for name in block.parameters]
            found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            dense = [
                torch.zeros_like(p) if g is None else g.to_dense()
                for g, p in zip(found, parameters, strict=True)
            ]
            if block.factors is not None and block.factors.bias:
                weight, bias = dense
                dense = [torch.cat([weight, bias[:, None]], dim=1)]
            rows[block.name].append(torch.cat([part.flatten() for part in dense]))
    for module, flag in zip(model.modules(), training, strict=True):
        module.training = flag
    return {name: torch.stack(found) for name, found in rows.items()}


class RowSink:
    """A sink that adds up whole rows, and checks the shapes it gets."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.rows: dict[str, Tensor] = {}

    def __call__(self, block: Block, examples: slice, gradient: Factors | Tensor) -> None:
        assert not torch.is_grad_enabled()
        m = len(range(self.n)[examples])
        if isinstance(gradient, Factors):
            assert block.factors is not None
            inputs, outputs = gradient.inputs, gradient.grad_outputs
            assert inputs.dtype == outputs.dtype
            assert not inputs.requires_grad
            assert not outputs.requires_grad
            assert inputs.shape[:2] == outputs.shape[:2]
            if gradient.bias:
                assert block.factors.bias
                inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:2], 1)], dim=2)
            assert inputs.shape[2] == block.factors.in_features
            assert outputs.shape[2] == block.factors.out_features
            found = torch.einsum("nto,nti->noi", outputs, inputs).flatten(1)
        else:
            assert block.factors is None
            assert not gradient.requires_grad
            found = gradient
        assert found.shape == (m, block.size)
        total = self.rows.setdefault(block.name, found.new_zeros(self.n, block.size))
        total[examples] += found


def captured_rows(
    capture: Capture, batch: Any, n: int, blocks: Iterable[Block]
) -> tuple[dict[str, Tensor], CapturedBatch]:
    """Return each block's rows (n, p) as captured; zeros for a block that got nothing."""
    sink = RowSink(n)
    with capture:
        found = capture.run(batch, sink)
    return {b.name: sink.rows.get(b.name, torch.zeros(n, b.size)) for b in blocks}, found


def assert_captured_rightly(
    model: nn.Module, loss: Loss, batch: Any, n: int, tolerance: float
) -> list[Block]:
    """Capture a batch, compare every row with the twin's, relative to the block's largest entry."""
    blocks = find_blocks(model)
    rows, found = captured_rows(Capture(model, loss, blocks), batch, n, blocks)
    twin = twin_rows(model, loss, batch, n, blocks)
    for block in blocks:
        error = (rows[block.name] - twin[block.name]).abs().max()
        assert error <= tolerance * twin[block.name].abs().max().clamp_min(1e-3), block.name
    assert found.losses.shape == (n,)
    assert found.finite.tolist() == [True] * n
    return blocks
