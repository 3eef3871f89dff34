"""FactGraSS: GraSS on the factors of a linear layer's gradient."""

from __future__ import annotations

import math

from grass_rs import _native
from grass_rs.compress.compressor import Compressor, FactorCompressor
from grass_rs.compress.mask import Mask, RandomMask
from grass_rs.errors import SpecError


class FactGraSS(FactorCompressor):
    """Mask both factors, sum their product over tokens, then SJLT (arXiv 2505.18976).

    The gradient itself is never built: the cost grows with the kept coordinates.

    Parameters
    ----------
    in_features, out_features
        Widths of the layer; `in_features` counts the bias column.
    output_dim
        Coordinates of the output, k.
    seed
        Unsigned 64-bit seed; the masks' are `derive(seed, "in")` and `derive(seed, "out")`, the
        SJLT's `derive(seed, "sjlt")`.
    mask_in, mask_out
        A mask of each factor, or how many features a random one keeps; ceil(sqrt(4 k)), at most
        the width, if not given.
    kind
        Kind of the SJLT, "cyclic" or "iid".

    Raises
    ------
    SpecError
        If a dimension is zero, a mask has another width, or the kind is unknown.

    """

    type_name = "factgrass"
    kinds = ("cyclic", "iid")

    def __init__(
        self,
        in_features: int,
        out_features: int,
        output_dim: int,
        *,
        seed: int,
        mask_in: int | Mask | RandomMask | None = None,
        mask_out: int | Mask | RandomMask | None = None,
        kind: str = "cyclic",
    ) -> None:
        self._build(
            in_features=in_features,
            out_features=out_features,
            output_dim=output_dim,
            seed=seed,
            mask_in=self._mask("in", mask_in, in_features, output_dim, seed),
            mask_out=self._mask("out", mask_out, out_features, output_dim, seed),
            kind=kind,
        )

    def _mask(
        self,
        side: str,
        mask: int | Mask | RandomMask | None,
        features: int,
        output_dim: int,
        seed: int,
    ) -> Mask | RandomMask:
        if isinstance(mask, Mask | RandomMask):
            return mask
        if isinstance(mask, Compressor):
            raise SpecError(
                f"FactGraSS: mask_{side} must be a count, Mask or RandomMask, got {mask!r}"
            )
        width = self._whole_number(f"{side}_features", features, least=1)
        if mask is None:
            k = self._whole_number("output_dim", output_dim, least=1)
            mask = min(math.isqrt(4 * k - 1) + 1, width)
        count = self._whole_number(f"mask_{side}", mask, 1, width)
        return RandomMask(width, count, seed=_native.derive(self._whole_number("seed", seed), side))
