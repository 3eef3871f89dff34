"""Both kinds of SJLT, as tables of the coordinates that each output is the signed sum of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from grass_rs._backends.pure_torch import philox
from grass_rs._backends.pure_torch.sums import PIECE, row_blocks, sum_in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    Columns = Callable[[int, int, int, int], Tensor]
    """(first, last, start, stop) to coordinates start..stop of rows first..last, float32."""

_SIGN_BLOCK = 128
"""Signs of a page (cyclic) or of a draw (iid) begin at a multiple of this many bits."""


@dataclass(frozen=True)
class SJLT:
    """An SJLT of `nnz` draws of width k / nnz."""

    input_dim: int
    output_dim: int
    seed: int
    nnz: int
    kind: str

    @property
    def scale(self) -> float:
        """What makes it unbiased."""
        return 1 / math.sqrt(self.nnz)

    def __call__(self, x: Tensor) -> Tensor:
        """Compress rows (n, p) to (n, k)."""

        def columns(first: int, last: int, start: int, stop: int) -> Tensor:
            return x[first:last, start:stop].to(torch.float32)

        return self.sums(columns, len(x), 0, x.device).mul_(self.scale)

    def sums(self, columns: Columns, n: int, row_bytes: int, device: torch.device) -> Tensor:
        """Return the unscaled sketch (n, k) of n rows, float32.

        Parameters
        ----------
        columns
            Gives a piece of the rows.
        n
            Number of rows.
        row_bytes
            Memory that `columns` takes for a row of a piece.
        device
            Where they are.

        """
        out = torch.zeros((n, self.output_dim), dtype=torch.float32, device=device)
        for table in {"cyclic": self._cyclic, "iid": self._iid}[self.kind](device):
            for first, last in row_blocks(n, 12 * table.source.numel() + row_bytes):
                values = columns(first, last, table.start, table.stop)
                zero = values.new_zeros((last - first, 1))
                picked = torch.cat([values, zero], dim=1).index_select(1, table.source.view(-1))
                parts = picked.view(last - first, *table.source.shape).mul_(table.signs)
                out[first:last, table.outputs] += sum_in_order(parts)
        return out

    def _cyclic(self, device: torch.device) -> Iterator[_Table]:
        rotation, sign = self._stream(philox.ROTATION, device), self._stream(philox.SIGN, device)
        width = self.output_dim // self.nnz
        pages = -(-self.input_dim // width)
        padded = -(-width // _SIGN_BLOCK) * _SIGN_BLOCK
        step = max(1, PIECE // padded)
        column = torch.arange(width, device=device)
        for first in range(0, pages, step):
            last = min(pages, first + step)
            start, stop = first * width, min(self.input_dim, last * width)
            page = torch.arange(last - first, device=device)[:, None]
            for d in range(self.nnz):
                begin, end = d * pages + first, d * pages + last
                turned = (column - rotation.draws(width, begin, end)[:, None]) % width
                signs = sign.signs(begin * padded, end * padded).view(-1, padded)
                source = (page * width + turned).clamp_(max=stop - start)
                outputs = slice(d * width, (d + 1) * width)
                yield _Table(start, stop, source, signs.gather(1, turned), outputs)

    def _iid(self, device: torch.device) -> Iterator[_Table]:
        bucket, sign = self._stream(philox.BUCKET, device), self._stream(philox.SIGN, device)
        width = self.output_dim // self.nnz
        padded = -(-self.input_dim // _SIGN_BLOCK) * _SIGN_BLOCK
        for start in range(0, self.input_dim, PIECE):
            stop = min(self.input_dim, start + PIECE)
            for d in range(self.nnz):
                begin, end = d * padded + start, d * padded + stop
                buckets, order = torch.sort(bucket.draws(width, begin, end), stable=True)
                output, count = torch.unique_consecutive(buckets, return_counts=True)
                place = torch.arange(int(count.max()), device=device)[:, None]
                in_order = (torch.cumsum(count, 0) - count + place).clamp_(max=stop - start - 1)
                source = order[in_order]
                signs = sign.signs(begin, end)[source]
                source = source.masked_fill_(place >= count, stop - start)
                yield _Table(start, stop, source, signs, d * width + output)

    def _stream(self, number: int, device: torch.device) -> philox.Stream:
        return philox.Stream(self.seed, number, device)


@dataclass(frozen=True)
class _Table:
    """Where a piece of the coordinates goes: outputs, each the sum of a column of `signs * values[source]`."""

    start: int
    stop: int
    source: Tensor
    """(m, h): coordinates counted from `start`, or stop - start for none."""
    signs: Tensor
    outputs: slice | Tensor
    """h outputs, each once."""
