"""LoGra: dense projections of both factors."""

from __future__ import annotations

from grass_rs.compress.compressor import FactorCompressor


class LoGra(FactorCompressor):
    """Project both factors of a linear layer's gradient densely: the baseline of arXiv 2505.18976.

    `out[o, i] = sum_t (P_out grad_outputs[t])[o] (P_in inputs[t])[i]`, row-major.

    Parameters
    ----------
    in_features, out_features
        Widths of the layer; `in_features` counts the bias column.
    rank_in, rank_out
        Widths of the projected factors; k = rank_out * rank_in.
    seed
        Unsigned 64-bit seed; the projections' are `derive(seed, "in")` and `derive(seed, "out")`.

    Raises
    ------
    SpecError
        If a dimension is zero.

    """

    type_name = "logra"

    def __init__(
        self, in_features: int, out_features: int, rank_in: int, rank_out: int, *, seed: int
    ) -> None:
        self._build(
            in_features=in_features,
            out_features=out_features,
            rank_in=rank_in,
            rank_out=rank_out,
            seed=seed,
        )
