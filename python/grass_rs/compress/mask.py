"""Masks: k' of p coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs.compress.compressor import RowCompressor
from grass_rs.errors import MASKED, SpecError, is_masked

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _MaskBase(RowCompressor):
    @property
    def indices(self) -> NDArray[np.uint64]:
        """The coordinates kept, sorted: (k',) uint64."""
        return self._native.indices()


class Mask(_MaskBase):
    """Keep the given coordinates, unscaled (arXiv 2505.18976).

    Parameters
    ----------
    indices
        Coordinates to keep, strictly increasing whole numbers below `input_dim`.
    input_dim
        Coordinates of the input, p.

    Raises
    ------
    SpecError
        If the indices are empty, not whole, not increasing, or out of range.

    """

    type_name = "mask"

    def __init__(self, indices: Any, input_dim: int) -> None:
        if is_masked(indices):
            msg = f"Mask: indices must be one axis of whole numbers from 0, got {MASKED}"
            raise SpecError(msg)
        kept = np.asarray(indices)
        if kept.ndim != 1 or kept.dtype.kind not in "iu" or (kept.size and kept.min() < 0):
            msg = (
                f"Mask: indices must be one axis of whole numbers from 0, got shape {kept.shape} of "
                f"{kept.dtype}: pass numpy.flatnonzero of a boolean mask"
            )
            raise SpecError(msg)
        self._build(indices=kept.tolist(), input_dim=input_dim)


class RandomMask(_MaskBase):
    """Keep a uniform choice of coordinates, scaled by sqrt(p / k') (arXiv 2505.18976).

    Time and memory grow with `output_dim`, not with `input_dim`.

    Parameters
    ----------
    input_dim
        Coordinates of the input, p.
    output_dim
        Coordinates kept, k', at most p.
    seed
        Unsigned 64-bit seed.
    block
        Length of the runs of coordinates that are chosen together; divides both dimensions.

    Raises
    ------
    SpecError
        If a dimension is zero, k' > p, or `block` does not divide both.

    """

    type_name = "random_mask"

    def __init__(self, input_dim: int, output_dim: int, *, seed: int, block: int = 1) -> None:
        self._build(input_dim=input_dim, output_dim=output_dim, seed=seed, block=block)
