"""The check, on ever rarer batches, that each layer sees the examples in the order of the batch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from grass_rs.errors import UnsupportedLayerError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from grass_rs.capture.linear import Call, Layout

__all__ = ["OrderCheck"]

_TOLERANCE = 0.1
"""Weights are powers of two, so that nothing but rounding of tiny numbers differs."""
_COMPARED = 2**14
"""Most numbers a row that are kept from one backward pass to the next."""


class OrderCheck:
    """Whether a weight on an example's loss scales that example's rows, and no others.

    A backward pass of the weighted losses is compared with that of the losses themselves.

    Parameters
    ----------
    layouts
        Where each layer has its examples; layers that are not there are not checked.

    """

    def __init__(self, layouts: Mapping[nn.Linear, Layout]) -> None:
        self._layouts = layouts
        self._batches = 0
        self._weights: Tensor | None = None
        self._weighted: dict[Call, Tensor] = {}

    def weights(self, losses: Tensor) -> Tensor | None:
        """Return powers of two, one an example, for the batches 1, 2, 4, 8 and so on, else None.

        Batches of one example do not count.
        """
        self._weights = None
        self._weighted.clear()
        n = len(losses)
        self._batches += n > 1
        if n > 1 and not self._batches & (self._batches - 1):
            generator = torch.Generator("cpu").manual_seed(self._batches)
            # No fractions: in half precision they would round to nothing.
            powers = torch.randint(0, 11, (n,), generator=generator, device="cpu")
            self._weights = torch.exp2(powers.to(losses))
        return self._weights

    def keep(self, call: Call, gradient: Tensor) -> None:
        """Keep a part of a call's gradient of the weighted losses."""
        if self._weights is not None:
            rows = self._rows(call, gradient, len(self._weights))
            if rows is not None:
                self._weighted[call] = rows

    def check(self, call: Call, gradient: Tensor) -> None:
        """Compare a call's gradient with that of the weighted losses, if it was kept.

        Raises
        ------
        UnsupportedLayerError
            If a row is not scaled by its example's weight.

        """
        weighted = self._weighted.pop(call, None)
        if self._weights is None or weighted is None:
            return
        rows = self._rows(call, gradient, len(self._weights))
        if rows is None:
            return
        expected = rows.float() * self._weights.to(rows.device, torch.float32)[:, None]
        difference = weighted.float() - expected
        wrong = difference.norm(dim=1) > _TOLERANCE * expected.norm(dim=1)
        wrong &= difference.isfinite().all(dim=1)
        if wrong.any():
            msg = (
                f"layer {call.site.name!r} expects the examples in the order of the batch, but row "
                f"{int(wrong.nonzero()[0])} of its output is another example's or several's: do "
                f"not sort, permute or mix examples in the model, or leave the layer out with layers="
            )
            raise UnsupportedLayerError(msg)

    def _rows(self, call: Call, gradient: Tensor, n: int) -> Tensor | None:
        """Return numbers (n, m) spread over an example's tokens and features alike."""
        layout = self._layouts.get(call.site.module)
        if layout is None or not layout.fits(call.shape, n):
            return None  # refused with its reason when the factors are made
        rows = layout.to_examples(gradient, n)
        features = rows.shape[2]
        rows = rows.flatten(1)
        step = math.ceil(rows.shape[1] / _COMPARED) or 1
        while math.gcd(step, features) > 1 and step > 1:
            step += 1
        # A copy, that does not keep the whole gradient.
        return rows[:, ::step].clone()
