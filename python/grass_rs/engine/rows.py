"""Rows of compressed gradients, made on the devices of the layers and put side by side on the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from grass_rs.capture import Factors
from grass_rs.compress import RowCompressor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from grass_rs.capture import Block
    from grass_rs.engine.plan import Plan

__all__ = ["DeviceRows", "RowLayout"]

_GRADIENT_BYTES = 64 * 2**20
"""Most bytes of whole gradients of a linear layer held at a time, beyond the first example's."""


class RowLayout:
    """Which device holds which columns of a row: those of its own layers.

    Parameters
    ----------
    model
        The model.
    plan
        The plan, made for the model.

    """

    def __init__(self, model: torch.nn.Module, plan: Plan) -> None:
        self.plan = plan
        self.widths: dict[torch.device, int] = {}
        """Columns of each device."""
        self.places: dict[str, tuple[torch.device, slice]] = {}
        """Of each block, its device and columns there."""
        for block, column in zip(plan.blocks, plan.columns, strict=True):
            device = model.get_parameter(block.parameters[0]).device
            if device.type != "cuda":
                device = torch.device("cpu")  # compressors have kernels on no other
            offset = self.widths.get(device, 0)
            self.widths[device] = offset + column.width
            self.places[block.name] = device, slice(offset, self.widths[device])

    def side_by_side(self, parts: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return rows (n, plan.width) from the parts of the devices, the only part as it is."""
        if len(parts) == 1:
            return parts[0]
        by_device = dict(zip(self.widths, parts, strict=True))
        rows = np.empty((len(parts[0]), self.plan.width), dtype=np.float32)
        for column in self.plan.columns:
            device, place = self.places[column.name]
            rows[:, column.offset : column.offset + column.width] = by_device[device][:, place]
        return rows


class DeviceRows:
    """The rows of one batch, zeros to begin with.

    Parameters
    ----------
    layout
        Which device holds which columns.
    n
        Number of examples.

    """

    def __init__(self, layout: RowLayout, n: int) -> None:
        self._layout = layout
        self._parts = {
            device: torch.zeros(n, width, dtype=torch.float32, device=device)
            for device, width in layout.widths.items()
        }

    @property
    def parts(self) -> list[Tensor]:
        """Of each device, its columns (n, width) float32."""
        return list(self._parts.values())

    def add(self, block: Block, examples: slice, gradient: Factors | Tensor) -> None:
        """Add compressed gradients, on the block's device: a sink of `Capture.run`."""
        device, columns = self._layout.places[block.name]
        target = self._parts[device][examples, columns]
        compressor = self._layout.plan[block.name]
        if isinstance(compressor, RowCompressor):
            for part, whole in _whole_gradients(gradient):
                target[part].add_(compressor(whole.to(device)))
        elif isinstance(gradient, Factors):
            inputs, grad_outputs = gradient.inputs.to(device), gradient.grad_outputs.to(device)
            target.add_(compressor(inputs, grad_outputs, bias=gradient.bias))


def _whole_gradients(gradient: Factors | Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield gradients (m, p) and which examples they are of, those of factors in bounded chunks."""
    if isinstance(gradient, Tensor):
        yield slice(None), gradient
        return
    dtype = gradient.inputs.dtype
    if dtype in {torch.float16, torch.bfloat16}:
        dtype = torch.float32
    n, width = len(gradient.inputs), gradient.inputs.shape[2] + gradient.bias
    step = max(1, _GRADIENT_BYTES // (gradient.grad_outputs.shape[2] * width * dtype.itemsize))
    for start in range(0, n, step):
        part = slice(start, min(n, start + step))
        yield part, gradient.gradients(part, dtype)
