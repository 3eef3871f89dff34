"""Tile sketch: all of a linear layer's gradient, sketched while it is computed."""

from __future__ import annotations

from grass_rs.compress.compressor import FactorCompressor


class TileSketch(FactorCompressor):
    """Sketch the whole gradient of a linear layer, tile by tile, without ever writing it.

    The gradient G = sum_t g_t a_t^T, (out_features, in_features), is cut into tiles of h x w, where
    h * w = output_dim is the most square factorisation with h <= w. Tile T (row-major) is turned by
    one toroidal shift (r, c) and signed by its rows and columns, all drawn afresh for the tile:
    `out[(i + r) mod h, (j + c) mod w] += alpha_i beta_j G_T[i, j]`, row-major. Coordinates of one
    tile never collide, those of two tiles collide with probability 1 / output_dim; so the sketch is
    unbiased, and the variance of every inner product at most that of an iid SJLT.

    It costs what computing the gradients costs: slower than FactGraSS, but nothing is left out.

    Parameters
    ----------
    in_features, out_features
        Widths of the layer; `in_features` counts the bias column.
    output_dim
        Coordinates of the output, k, at most 2^32. Best a square such as 1024 or 4096: the flatter
        the tiles, the slower, and a prime k makes tiles of one row. More than out_features *
        in_features are allowed, but only a layer that fits into one tile is surely kept without
        loss.
    seed
        Unsigned 64-bit seed.

    Raises
    ------
    SpecError
        If a dimension is zero or out of range.

    """

    type_name = "tile"

    def __init__(self, in_features: int, out_features: int, output_dim: int, *, seed: int) -> None:
        self._build(
            in_features=in_features, out_features=out_features, output_dim=output_dim, seed=seed
        )
