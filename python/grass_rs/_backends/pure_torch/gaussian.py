"""Dense random projections, their matrices drawn by pieces.

Products are summed in float64: what no flag of torch (TF32, autocast) makes narrower, and no order of the sums changes
beyond the last bits of float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from grass_rs._backends.pure_torch import philox
from grass_rs._backends.pure_torch.sums import PIECE, row_blocks

if TYPE_CHECKING:
    from torch import Tensor

    from grass_rs._backends.pure_torch.sjlt import Columns


@dataclass(frozen=True)
class Gaussian:
    """A projection on k random directions."""

    input_dim: int
    output_dim: int
    seed: int
    kind: str

    @property
    def scale(self) -> float:
        """What makes it unbiased."""
        return 1 / math.sqrt(self.output_dim)

    def __call__(self, x: Tensor) -> Tensor:
        """Compress rows (n, p) to (n, k)."""

        def columns(first: int, last: int, start: int, stop: int) -> Tensor:
            return x[first:last, start:stop].to(torch.float32)

        return self.sums(columns, x.shape[:1], x.device).to(torch.float32).mul_(self.scale)

    def sums(self, columns: Columns, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Return the unscaled projection (*shape, k) in float64 of rows (*shape, p), shape being (n,) or (n, t)."""
        out = torch.zeros((*shape, self.output_dim), dtype=torch.float64, device=device)
        step = max(1, PIECE // self.output_dim)
        for start in range(0, self.input_dim, step):
            stop = min(self.input_dim, start + step)
            entries = self._entries(start, stop, device)
            for first, last in row_blocks(shape[0], 12 * (stop - start) * math.prod(shape[1:])):
                out[first:last] += columns(first, last, start, stop).double() @ entries
        return out

    def _entries(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Return the entries (stop - start, k) of some coordinates."""
        first, last = start * self.output_dim, stop * self.output_dim
        if self.kind == "rademacher":
            entries = philox.Stream(self.seed, philox.RADEMACHER, device).signs(first, last)
        else:
            # Rounded as the native core rounds them.
            words = philox.Stream(self.seed, philox.GAUSSIAN, device)
            entries = _normal(words, first, last).to(torch.float32)
        return entries.double().view(-1, self.output_dim)


def _normal(stream: philox.Stream, start: int, stop: int) -> Tensor:
    """Return standard normal numbers start..stop (Box-Muller): of two words the cosine, then the sine."""
    first = start // 2
    u, v = stream.words(2 * first, 2 * -(-stop // 2)).double().view(-1, 2).unbind(1)
    radius = torch.sqrt(-2 * torch.log((u + 1) / 2**32))
    angle = 2 * math.pi / 2**32 * v
    pairs = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return pairs.view(-1)[start - 2 * first : stop - 2 * first]
