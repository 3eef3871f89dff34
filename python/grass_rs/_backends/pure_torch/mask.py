"""Masks, and GraSS, which sketches what a mask keeps."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from grass_rs import _native
from grass_rs._backends.pure_torch.sjlt import SJLT

if TYPE_CHECKING:
    from torch import Tensor


class Mask:
    """The coordinates that a mask keeps, moved once to each device that asks for them."""

    def __init__(self, **spec: Any) -> None:
        native = _native.Compressor.from_spec(json.dumps(spec))
        self.input_dim, self.output_dim = native.input_dim, native.output_dim
        self.scale = 1.0 if "indices" in spec else math.sqrt(self.input_dim / self.output_dim)
        self._indices = torch.from_numpy(native.indices().astype(np.int64))
        self._moved: dict[torch.device, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        """Compress rows (n, p) to (n, k)."""
        kept = x.index_select(1, self.indices(x.device))
        return kept.to(torch.float32).mul_(self.scale)

    def indices(self, device: torch.device) -> Tensor:
        """Return the coordinates kept, sorted: (k,) int64."""
        if device not in self._moved:
            self._moved[device] = self._indices.to(device)
        return self._moved[device]


class GraSS:
    """Mask, then SJLT."""

    def __init__(
        self, *, mask: dict[str, Any], output_dim: int, seed: int, kind: str, **_: Any
    ) -> None:
        self._mask = Mask(**mask)
        self._sjlt = SJLT(self._mask.output_dim, output_dim, _native.derive(seed, "sjlt"), 1, kind)

    def __call__(self, x: Tensor) -> Tensor:
        """Compress rows (n, p) to (n, k)."""
        indices = self._mask.indices(x.device)

        def columns(first: int, last: int, start: int, stop: int) -> Tensor:
            return x[first:last].index_select(1, indices[start:stop]).to(torch.float32)

        return self._sjlt.sums(columns, len(x), 0, x.device).mul_(self._mask.scale)
