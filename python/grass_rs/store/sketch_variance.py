"""Variance of the dot products of compressed rows, from the compressors' specs and the rows alone."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from grass_rs import _native
from grass_rs._backends import cpu
from grass_rs.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from grass_rs.types import Column

    Pairs: TypeAlias = "list[tuple[NDArray[np.float64], NDArray[np.float64]]]"
    """(n_query, k) of the queries and (n, k) of the rows, for each column of a compressor."""

_PROBES = 2**20
"""Numbers in the vectors by which the buckets of an SJLT are found, at once."""


@dataclass(frozen=True)
class _Axis:
    """Sets of coordinates that are chosen together: their products may be correlated."""

    buckets: NDArray[np.int64]
    """(n_sets, size): where each coordinate of each set is stored."""
    share: float
    """Factor of the covariance of two coordinates of a set in the variance of a score."""

    def counts(self, width: int) -> NDArray[np.float64]:
        """Return how many coordinates of each set each bucket has: (n_sets, width)."""
        counts = np.zeros((len(self.buckets), width))
        np.add.at(counts, (np.arange(len(self.buckets))[:, None], self.buckets), 1.0)
        return counts


@dataclass(frozen=True)
class _Variance:
    """How the variance of u . g follows from what is stored of u and g."""

    hashed: float = 0.0
    """Factor of (|u|^2 |g|^2 + s^2) / width: the variance of a random projection."""
    sampled: float = 0.0
    """Factor of the sum of squares of the products about their mean: the variance of a sample."""
    n_sampled: int = 0
    """Number of products in that sample."""
    run: int = 1
    """Length of the runs of products that were sampled together."""
    axes: tuple[_Axis, ...] = ()


class Sketch:
    """The columns that one compressor made, whose errors therefore belong together."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._slices = [slice(c.offset, c.offset + c.width) for c in columns]
        self._width = columns[0].width
        self._parts = _variance_of(columns[0])
        counts = [axis.counts(self._width) for axis in self._parts.axes]
        # Of every bucket, how many pairs of one set would be in it, a coordinate with itself included.
        self._own = [(of**2).sum(axis=0) for of in counts]
        # Entry (a, b): the pairs of coordinates in two buckets that are of one set of axis a, times
        # those of axis b, summed over buckets.
        self._design = np.array(
            [
                [
                    ((a @ b.T) ** 2).sum() - own_a @ own_b
                    for b, own_b in zip(counts, self._own, strict=True)
                ]
                for a, own_a in zip(counts, self._own, strict=True)
            ]
        )

    def variance(
        self, queries: NDArray[np.float64], rows: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the variance of each score's part in these columns: (n_query, n)."""
        pairs = [(queries[:, part], rows[:, part]) for part in self._slices]
        parts = self._parts
        total = np.zeros((len(queries), len(rows)))
        products = sum((u @ g.T for u, g in pairs), start=total)
        if parts.hashed:
            total = total + parts.hashed / self._width * _hashed(pairs)
        if parts.sampled:
            n = parts.n_sampled
            if parts.run == 1:
                squares = _squares(pairs)
            else:
                runs = np.arange(self._width).reshape(n, parts.run)
                squares = _set_squares(pairs, runs)
            total = total + parts.sampled * n / (n - 1) * (squares - products**2 / n)
        if parts.axes:
            total = total + self._of_axes(pairs)
        return total

    def _of_axes(self, pairs: Pairs) -> NDArray[np.float64]:
        """Return what covariances within the sets add, by the method of moments.

        Products of different buckets that hold coordinates of one set have these coordinates'
        covariance as their mean, whatever the signs. It is not taken about the mean, whose own error
        is as large: so the estimate is rather too large than too small. Negative ones count as 0.
        """
        moments = np.stack(
            [
                _set_squares(pairs, axis.buckets) - _squares(pairs, own)
                for axis, own in zip(self._parts.axes, self._own, strict=True)
            ]
        )
        flat = moments.reshape(len(moments), -1)
        # Least squares: a few buckets do not tell rows and columns apart.
        covariances = np.maximum(np.linalg.pinv(self._design, hermitian=True) @ flat, 0.0)
        shares = np.array([axis.share for axis in self._parts.axes])
        added: NDArray[np.float64] = (shares @ covariances).reshape(moments.shape[1:])
        return added


def sketches_of(columns: Sequence[Column]) -> list[Sketch]:
    """Return what knows the variance of these columns; those kept whole have none.

    Raises
    ------
    SpecError
        If the error of a column cannot be told from what is stored.

    """
    by_spec: dict[str, list[Column]] = {}
    for column in columns:
        by_spec.setdefault(json.dumps(column.spec, sort_keys=True), []).append(column)
    return [Sketch(alike) for alike in by_spec.values()]


def _hashed(pairs: Pairs) -> NDArray[np.float64]:
    """Return |u|^2 |g|^2 + s^2, and for several columns the covariances between them too."""
    total = np.zeros((len(pairs[0][0]), len(pairs[0][1])))
    for (u, g), (v, h) in combinations_with_replacement(pairs, 2):
        lengths = np.outer((u * v).sum(axis=1), (g * h).sum(axis=1))
        crossed = (u @ h.T) * (v @ g.T)
        total += (1.0 if u is v else 2.0) * (lengths + crossed)
    return total


def _squares(pairs: Pairs, weights: NDArray[np.float64] | float = 1.0) -> NDArray[np.float64]:
    """Return sum_b weights_b z_b^2 of the products z_b, themselves summed over the columns."""
    total = np.zeros((len(pairs[0][0]), len(pairs[0][1])))
    for (u, g), (v, h) in combinations_with_replacement(pairs, 2):
        total += (1.0 if u is v else 2.0) * ((u * v * weights) @ (g * h).T)
    return total


def _set_squares(pairs: Pairs, sets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sum over sets of the square of the sum of their products."""
    total = np.zeros((len(pairs[0][0]), len(pairs[0][1])))
    # Coordinates as rows, which are taken out of memory whole.
    turned = [(u, np.ascontiguousarray(g.T)) for u, g in pairs]
    for members in sets:
        total += sum(u[:, members] @ g[members] for u, g in turned) ** 2
    return total


def _variance_of(column: Column) -> _Variance:
    spec = column.spec
    try:
        variance = _VARIANCES[spec["type"]](spec, column)
        known = variance.n_sampled > 1 or not variance.sampled
    except (KeyError, TypeError, AttributeError) as error:
        raise _refusal(column, f"its spec {spec} is of no compressor that is known here") from error
    if not known:
        raise _refusal(column, "one coordinate shows no spread")
    return variance


def _refusal(column: Column, why: str) -> SpecError:
    return SpecError(
        f"standard_errors expects columns whose error their rows tell, got {column.name!r}: {why}; leave "
        f"the standard errors out, or choose other columns"
    )


def _kept_share(mask: dict[str, Any], column: Column) -> float:
    """Return the share of the coordinates that a mask keeps."""
    if mask["type"] == "random_mask":
        return float(mask["output_dim"] / mask["input_dim"])
    if len(mask["indices"]) != mask["input_dim"]:
        raise _refusal(
            column, "its mask was chosen, not drawn, so nothing is known of what it leaves out"
        )
    return 1.0


def _kept(mask: dict[str, Any]) -> int:
    return len(mask["indices"]) if mask["type"] == "mask" else int(mask["output_dim"])


def _mask(spec: dict[str, Any], column: Column) -> _Variance:
    share, run = _kept_share(spec, column), spec.get("block", 1)
    return _Variance(sampled=1.0 - share, n_sampled=_kept(spec) // run, run=run)


def _is_lossless(input_dim: int, output_dim: int, kind: str) -> bool:
    """Whether an SJLT only moves coordinates: those of one page never meet."""
    return kind == "cyclic" and input_dim <= output_dim


def _sjlt(spec: dict[str, Any], _: Column) -> _Variance:
    part = spec["output_dim"] // spec["nnz"]
    return _Variance(hashed=float(not _is_lossless(spec["input_dim"], part, spec["kind"])))


def _gaussian(_: dict[str, Any], __: Column) -> _Variance:
    return _Variance(hashed=1.0)


def _tile(spec: dict[str, Any], _: Column) -> _Variance:
    k = spec["output_dim"]
    height = next(h for h in range(math.isqrt(k), 0, -1) if k % h == 0)
    one_tile = spec["out_features"] <= height and spec["in_features"] <= k // height
    return _Variance(hashed=float(not one_tile))


def _grass(spec: dict[str, Any], column: Column) -> _Variance:
    mask, k = spec["mask"], spec["output_dim"]
    left_out, kept, run = 1.0 - _kept_share(mask, column), _kept(mask), mask.get("block", 1)
    axes = []
    if left_out and run > 1:
        buckets = _buckets(kept, k, spec["seed"], spec["kind"])
        axes.append(_Axis(buckets.reshape(-1, run), left_out * kept * (run - 1)))
    return _after_mask(left_out, kept, spec, axes)


def _after_mask(left_out: float, kept: int, spec: dict[str, Any], axes: list[_Axis]) -> _Variance:
    """Return the variance of a mask's with an SJLT's, which the sum over buckets holds already.

    The variance of the SJLT alone has to be added where little is left out and so the mask's is less
    than that of a sample.
    """
    k = spec["output_dim"]
    return _Variance(
        hashed=0.0 if _is_lossless(kept, k, spec["kind"]) else 1.0 - left_out,
        sampled=left_out,
        n_sampled=min(kept, k),
        axes=tuple(axis for axis in axes if axis.share > 0.0),
    )


def _factgrass(spec: dict[str, Any], column: Column) -> _Variance:
    masks = spec["mask_out"], spec["mask_in"]
    shares = [_kept_share(mask, column) for mask in masks]
    if any(mask.get("block", 1) > 1 for mask in masks):
        raise _refusal(column, "its masks keep runs of features, which its rows do not tell apart")
    rows, width = (_kept(mask) for mask in masks)
    # Sampling from finite rows and columns: of each of the three components of the products'
    # variance (a row's, a column's, their interaction's) the share of what was not drawn.
    left_out = 1.0 - shares[0] * shares[1]
    if not left_out:
        return _after_mask(0.0, rows * width, spec, [])
    grid = _buckets(rows * width, spec["output_dim"], spec["seed"], spec["kind"])
    grid = grid.reshape(rows, width)
    of_row = rows * width * ((1.0 - shares[0]) * width - left_out)
    of_column = rows * width * ((1.0 - shares[1]) * rows - left_out)
    return _after_mask(
        left_out, rows * width, spec, [_Axis(grid, of_row), _Axis(grid.T, of_column)]
    )


def _logra(spec: dict[str, Any], _: Column) -> _Variance:
    rows, width = spec["rank_out"], spec["rank_in"]
    k = rows * width
    grid = np.arange(k).reshape(rows, width)
    axes = [_Axis(grid, k * (width - 1.0)), _Axis(grid.T, k * (rows - 1.0))]
    return _Variance(
        sampled=1.0, n_sampled=k, axes=tuple(axis for axis in axes if axis.share > 0.0)
    )


def _kfac_grass(_: dict[str, Any], column: Column) -> _Variance:
    raise _refusal(
        column, "its directions were chosen, not drawn, so nothing is known of what they leave out"
    )


_VARIANCES = {
    "mask": _mask,
    "random_mask": _mask,
    "sjlt": _sjlt,
    "gaussian": _gaussian,
    "tile": _tile,
    "grass": _grass,
    "factgrass": _factgrass,
    "logra": _logra,
    "kfac_grass": _kfac_grass,
}


def _buckets(input_dim: int, output_dim: int, seed: int, kind: str) -> NDArray[np.int64]:
    """Return the bucket of each coordinate in the SJLT of a GraSS or FactGraSS: (input_dim,)."""
    spec = {
        "type": "sjlt",
        "input_dim": input_dim,
        "output_dim": output_dim,
        "seed": _native.derive(seed, "sjlt"),
        "nnz": 1,
        "kind": kind,
    }
    sjlt = _native.Compressor.from_spec(json.dumps(spec))
    # Coordinates that never share a bucket are told apart by their numbers, from 1.
    page = min(output_dim, input_dim) if kind == "cyclic" else 1
    n_pages = -(-input_dim // page)
    buckets = np.empty(input_dim, np.int64)
    at_once = max(1, _PROBES // input_dim)
    for first in range(0, n_pages, at_once):
        places = np.arange(first * page, min((first + at_once) * page, input_dim))
        probes = np.zeros((-(-len(places) // page), input_dim), np.float32)
        probes[places // page - first, places] = places % page + 1
        found = np.abs(cpu.compress_rows(sjlt, "SJLT", probes, None)).astype(np.int64)
        probe, bucket = np.nonzero(found)
        buckets[(probe + first) * page + found[probe, bucket] - 1] = bucket
    return buckets
