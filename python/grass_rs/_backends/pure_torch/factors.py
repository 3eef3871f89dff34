"""Compressors of a linear layer's gradients, from its factors. Products are summed in float64, as in gaussian.py."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from grass_rs import _native
from grass_rs._backends.pure_torch import philox
from grass_rs._backends.pure_torch.gaussian import Gaussian
from grass_rs._backends.pure_torch.mask import Mask
from grass_rs._backends.pure_torch.sjlt import SJLT
from grass_rs._backends.pure_torch.sums import PIECE, row_blocks

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Factor:
    """One factor of a layer's gradients."""

    values: Tensor
    """(n, t, features)."""
    ones: bool = False
    """Whether one more feature follows that is one everywhere."""

    def columns(self, first: int, last: int, start: int, stop: int) -> Tensor:
        """Return features start..stop of examples first..last, float32."""
        part = self.values[first:last, :, start:stop].to(torch.float32)
        if part.shape[2] == stop - start:
            return part
        return torch.cat([part, part.new_ones((*part.shape[:2], 1))], dim=2)

    def gather(self, first: int, last: int, index: Tensor) -> Tensor:
        """Return some features of examples first..last, rounded to float32, in float64; zeros past the last."""
        values, width = self.values[first:last], self.values.shape[2]
        if width == 0:  # all is the column of ones
            values, width = values.new_ones((*values.shape[:2], 1)), 1
        picked = values.index_select(2, index.clamp(max=width - 1)).to(torch.float32).double()
        past = (index == self.values.shape[2]) if self.ones else torch.zeros_like(index)
        return torch.where(index < self.values.shape[2], picked, past.double())


class FactGraSS:
    """Mask both factors, then SJLT of their product, row-major over (out, in)."""

    def __init__(
        self,
        *,
        mask_in: dict[str, Any],
        mask_out: dict[str, Any],
        output_dim: int,
        seed: int,
        kind: str,
        **_: Any,
    ) -> None:
        self._mask_in, self._mask_out = Mask(**mask_in), Mask(**mask_out)
        product = self._mask_in.output_dim * self._mask_out.output_dim
        self._sjlt = SJLT(product, output_dim, _native.derive(seed, "sjlt"), 1, kind)

    def __call__(self, inputs: Factor, grad_outputs: Factor) -> Tensor:
        """Compress factors (n, t, in), (n, t, out) to (n, k)."""
        (n, tokens), device = inputs.values.shape[:2], inputs.values.device
        kept_in, kept_out = self._mask_in.indices(device), self._mask_out.indices(device)
        width, height = len(kept_in), len(kept_out)

        def product(first: int, last: int, start: int, stop: int) -> Tensor:
            top = start // width
            grads = grad_outputs.gather(first, last, kept_out[top : -(-stop // width)])
            values = grads.transpose(1, 2) @ inputs.gather(first, last, kept_in)
            return values.flatten(1)[:, start - top * width : stop - top * width].to(torch.float32)

        values = min(width * height, PIECE + 2 * width)
        row_bytes = 12 * values + 24 * tokens * (width + height)
        scale = self._mask_in.scale * self._mask_out.scale
        return self._sjlt.sums(product, n, row_bytes, device).mul_(scale)


class LoGra:
    """Dense projections of both factors, their product summed over tokens."""

    def __init__(
        self, *, in_features: int, out_features: int, rank_in: int, rank_out: int, seed: int
    ) -> None:
        self._in = Gaussian(in_features, rank_in, _native.derive(seed, "in"), "normal")
        self._out = Gaussian(out_features, rank_out, _native.derive(seed, "out"), "normal")

    def __call__(self, inputs: Factor, grad_outputs: Factor) -> Tensor:
        """Compress factors (n, t, in), (n, t, out) to (n, k)."""
        shape, device = inputs.values.shape[:2], inputs.values.device
        left = self._in.sums(inputs.columns, shape, device)
        right = self._out.sums(grad_outputs.columns, shape, device)
        product = (right.transpose(1, 2) @ left).mul_(self._in.scale * self._out.scale)
        return product.flatten(1).to(torch.float32)


class Tile:
    """All of the gradient, sketched by tiles of height * width = k."""

    def __init__(self, *, in_features: int, out_features: int, output_dim: int, seed: int) -> None:
        self._features, self._seed = (in_features, out_features), seed
        self._height = next(h for h in range(math.isqrt(output_dim), 0, -1) if output_dim % h == 0)
        self._width = output_dim // self._height

    def __call__(self, inputs: Factor, grad_outputs: Factor) -> Tensor:
        """Compress factors (n, t, in), (n, t, out) to (n, k).

        A tile's shift turns its columns and rows, so it turns those of the factors. Then all tiles sum to one product
        of matrices: tile after tile along the axis of the tokens.
        """
        (n, tokens), device = inputs.values.shape[:2], inputs.values.device
        sides = self._height + self._width
        across = -(-self._features[0] // self._width)
        tiles = across * -(-self._features[1] // self._height)
        out = torch.zeros((n, self._height, self._width), dtype=torch.float64, device=device)
        step = max(1, PIECE // (max(1, tokens) * sides))
        for start in range(0, tiles, step):
            stop = min(tiles, start + step)
            number = torch.arange(start, stop, device=device)
            (row, row_sign), (column, column_sign) = (
                self._turned(start, stop, number // across, 0),
                self._turned(start, stop, number % across, 1),
            )
            for first, last in row_blocks(n, 48 * (stop - start) * tokens * sides):
                grads = grad_outputs.gather(first, last, row).mul_(row_sign)
                values = inputs.gather(first, last, column).mul_(column_sign)
                shape = last - first, tokens * (stop - start)
                grads = grads.view(*shape, self._height).transpose(1, 2)
                out[first:last] += grads @ values.view(*shape, self._width)
        return out.flatten(1).to(torch.float32)

    def _turned(self, start: int, stop: int, place: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Return the features that tiles start..stop take along an axis, turned, and the sign of each.

        `place` is each tile's along the axis: 0 for rows, 1 for columns.
        """
        side = (self._height, self._width)[axis]
        seed, device = self._seed, place.device
        shift = philox.Stream(seed, philox.TILE_SHIFT, device)
        sign = philox.Stream(seed, (philox.TILE_ROW_SIGN, philox.TILE_COLUMN_SIGN)[axis], device)
        turn = shift.draws(side, 2 * start, 2 * stop)[axis::2]
        source = (torch.arange(side, device=device) - turn[:, None]) % side
        signs = sign.signs(start * side, stop * side).view(-1, side).gather(1, source)
        return (place[:, None] * side + source).view(-1), signs.view(-1).double()
