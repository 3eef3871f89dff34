"""The mean of a measure over queries, and how far it can be trusted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from grass_rs.errors import DataError, NonFiniteError, ShapeError, UnsupportedArrayError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Estimate", "estimate"]

_RESAMPLES = 2000
_DRAWN_AT_ONCE = 2**20  # values
_INTERVAL = (2.5, 97.5)  # percentiles


@dataclass(frozen=True)
class Estimate:
    """A mean over queries with its uncertainty."""

    mean: float
    """Mean over the queries where the measure is defined."""
    sem: float
    """Standard error of the mean: standard deviation (with n - 1) / sqrt(n)."""
    low: float
    """Lower end of the 95% bootstrap interval of the mean."""
    high: float
    """Upper end."""
    n: int
    """Queries that the mean is over."""

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.sem:.3f}"


def estimate(values: ArrayLike, *, seed: int = 0) -> Estimate:
    """Return the mean of a measure over queries, its standard error and its bootstrap interval.

    The interval is the percentile bootstrap's (Efron and Tibshirani 1993, "An Introduction to the
    Bootstrap", chapter 13), of 2000 resamples of the queries. It tells how the mean varies with the
    queries, not with the models that were retrained.

    Parameters
    ----------
    values
        (n,) measure of each query; NaN = undefined there, left out.
    seed
        Seed of the resamples.

    Raises
    ------
    UnsupportedArrayError
        If `values` are not real numbers.
    ShapeError
        If they have not one axis.
    NonFiniteError
        If one is infinite.
    DataError
        If fewer than two are defined: there is no mean, or nothing is known of its spread.

    """
    given = np.asarray(values)
    if given.dtype.kind not in "fiu":
        msg = f"estimate expects real numbers, got {given.dtype}: convert them to float64"
        raise UnsupportedArrayError(msg)
    if given.ndim != 1:
        msg = f"estimate expects values (n,), one a query, got {given.shape}: give one axis"
        raise ShapeError(msg)
    if np.isinf(given).any():
        at = int(np.isinf(given).argmax())
        msg = f"estimate expects finite values or NaN, got {given[at]} at [{at}]: drop that query"
        raise NonFiniteError(msg)
    defined = given[~np.isnan(given)].astype(np.float64)
    n = len(defined)
    if n < 2:
        msg = (
            f"estimate expects a measure that is defined for at least 2 queries, got {n} of "
            f"{len(given)}: a correlation needs outcomes, and sums of scores, that differ between "
            f"the models"
        )
        raise DataError(msg)
    rng = np.random.default_rng(seed)
    step = max(1, _DRAWN_AT_ONCE // n)
    means = [
        defined[rng.integers(n, size=(min(step, _RESAMPLES - begin), n))].mean(axis=1)
        for begin in range(0, _RESAMPLES, step)
    ]
    low, high = np.percentile(np.concatenate(means), _INTERVAL)
    return Estimate(
        mean=float(defined.mean()),
        sem=float(defined.std(ddof=1) / np.sqrt(n)),
        low=float(low),
        high=float(high),
        n=n,
    )
