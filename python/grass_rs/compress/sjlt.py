"""SJLT: a sparse Johnson-Lindenstrauss transform."""

from __future__ import annotations

from grass_rs.compress.compressor import RowCompressor


class SJLT(RowCompressor):
    """Add each coordinate, with a random sign, to `nnz` of the k outputs (arXiv 2505.18976).

    The cyclic kind cuts the coordinates into pages of k / nnz and turns each page by one random
    rotation: no two coordinates of a page collide, so it is unbiased with a variance at most that
    of the iid kind, where each coordinate draws its output. An input no longer than k / nnz is
    kept without loss.

    Parameters
    ----------
    input_dim
        Coordinates of the input, p.
    output_dim
        Coordinates of the output, k.
    seed
        Unsigned 64-bit seed.
    nnz
        Outputs a coordinate is added to; divides k. The result is scaled by 1 / sqrt(nnz).
    kind
        "cyclic" or "iid".

    Raises
    ------
    SpecError
        If a dimension is zero, `nnz` does not divide k, or the kind is unknown.

    """

    type_name = "sjlt"
    kinds = ("cyclic", "iid")

    def __init__(
        self, input_dim: int, output_dim: int, *, seed: int, nnz: int = 1, kind: str = "cyclic"
    ) -> None:
        self._build(input_dim=input_dim, output_dim=output_dim, seed=seed, nnz=nnz, kind=kind)
