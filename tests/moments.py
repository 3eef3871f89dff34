"""Second moments of the entries of S^T S, by formula: what unbiasedness is judged by.

For every compressor here E[S^T S] = I. Entry (i, j) of the mean over N seeds is off by about
sqrt((E[(S^T S)_ij^2] - I_ij) / N).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from numpy.typing import NDArray

    Moments = NDArray[np.float64]


def pairs(p: int, same: float, different: float) -> Moments:
    """Return a (p, p) matrix with `same` on the diagonal and `different` elsewhere."""
    return np.where(np.eye(p, dtype=bool), same, different)


def mask(p: int, k: int) -> Moments:
    """k of p coordinates, scaled by sqrt(p / k); two are both kept with probability k(k-1)/p(p-1).

    The entries off the diagonal of S^T S are zero; this is the moment of the product of the two
    scaled indicators, which composites multiply by the chance that the two then collide.
    """
    both = k * (k - 1) / (p * (p - 1)) if p > 1 else 0.0
    return pairs(p, p / k, (p / k) ** 2 * both)


def sketch(p: int, k: int) -> Moments:
    """SJLT, of any nnz: unit columns, and two collide in each of s sketches with chance s/k.

    A cyclic SJLT has less off the diagonal, where two coordinates share a page.
    """
    return pairs(p, 1, 1 / k)


def normal(p: int, k: int) -> Moments:
    """k x p normal numbers of variance 1/k."""
    return pairs(p, 1 + 2 / k, 1 / k)


def rademacher(p: int, k: int) -> Moments:
    """k x p signs over sqrt(k)."""
    return pairs(p, 1, 1 / k)


def assert_unbiased(
    make: Callable[[int], Any], moments: Moments, seeds: Iterable[int] = range(1500)
) -> None:
    """Check that the mean of S^T S over seeds is I, within 5.5 standard deviations an entry."""
    seeds = list(seeds)
    matrices = (make(seed).to_dense().astype(np.float64) for seed in seeds)
    mean = sum(matrix.T @ matrix for matrix in matrices) / len(seeds)
    identity = np.eye(len(mean))
    deviation = np.sqrt((moments - identity) / len(seeds))
    excess = np.abs(mean - identity) - 5.5 * deviation - 1e-5
    assert np.all(excess <= 0), (
        f"off by {np.max(np.abs(mean - identity)):.3g}, beyond the bound by {excess.max():.3g}"
    )
