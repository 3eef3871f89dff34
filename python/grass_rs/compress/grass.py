"""GraSS: mask, then SJLT."""

from __future__ import annotations

from grass_rs import _native
from grass_rs.compress.compressor import RowCompressor
from grass_rs.compress.mask import Mask, RandomMask
from grass_rs.errors import SpecError


class GraSS(RowCompressor):
    """Keep some coordinates, then sketch them by an SJLT (arXiv 2505.18976).

    Only the kept coordinates are read: the cost grows with their number, not with p.

    Parameters
    ----------
    input_dim
        Coordinates of the input, p.
    output_dim
        Coordinates of the output, k.
    seed
        Unsigned 64-bit seed; the mask's is `derive(seed, "mask")`, the SJLT's `derive(seed, "sjlt")`.
    mask_dim
        Coordinates that a random mask keeps; 4 k, at most p, if not given.
    mask
        A mask to use instead of a random one.
    kind
        Kind of the SJLT, "cyclic" or "iid".

    Raises
    ------
    SpecError
        If a dimension is zero, the mask has another input, or the kind is unknown.

    """

    type_name = "grass"
    kinds = ("cyclic", "iid")

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        seed: int,
        mask_dim: int | None = None,
        mask: Mask | RandomMask | None = None,
        kind: str = "cyclic",
    ) -> None:
        k = self._whole_number("output_dim", output_dim, least=1)
        p = self._whole_number("input_dim", input_dim, least=1)
        if mask is None:
            kept = 4 * k if mask_dim is None else self._whole_number("mask_dim", mask_dim, 1, p)
            mask_seed = _native.derive(self._whole_number("seed", seed), "mask")
            mask = RandomMask(p, min(kept, p), seed=mask_seed)
        elif not isinstance(mask, Mask | RandomMask):
            raise SpecError(f"GraSS: mask must be a Mask or RandomMask, got {mask!r}")
        self._build(
            input_dim=p,
            output_dim=k,
            seed=seed,
            mask_dim=mask.output_dim if mask_dim is None else mask_dim,
            mask=mask,
            kind=kind,
        )
