"""Compressors for tests: hypothesis strategies of specs, the constructor call of each, its inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

import grass_rs as grass
import reference

if TYPE_CHECKING:
    from numpy.typing import NDArray

seeds = st.integers(0, 2**64 - 1)
kinds = st.sampled_from(["cyclic", "iid"])
dims = st.integers(1, 300) | st.sampled_from([127, 128, 129, 255, 256, 257])


def build(spec: dict[str, Any]) -> Any:
    """Call the public constructor that a spec describes."""
    arguments = {
        name: build(value) if isinstance(value, dict) else value
        for name, value in spec.items()
        if name != "type"
    }
    return _CONSTRUCTORS[spec["type"]](**arguments)


_CONSTRUCTORS = {
    "mask": grass.Mask,
    "random_mask": grass.RandomMask,
    "sjlt": grass.SJLT,
    "gaussian": grass.Gaussian,
    "grass": grass.GraSS,
    "logra": grass.LoGra,
    "factgrass": grass.FactGraSS,
    "tile": grass.TileSketch,
}


# Strategies


@st.composite
def masks(draw: st.DrawFn, input_dim: int | None = None) -> dict[str, Any]:
    p = draw(dims) if input_dim is None else input_dim
    indices = draw(st.sets(st.integers(0, p - 1), min_size=1, max_size=min(p, 40)))
    return reference.mask(sorted(indices), p)


@st.composite
def random_masks(draw: st.DrawFn, input_dim: int | None = None) -> dict[str, Any]:
    if input_dim is None:
        block = draw(st.sampled_from([1, 1, 2, 3, 16]))
        p = block * draw(st.integers(1, 40))
    else:
        p = input_dim
        block = draw(st.sampled_from([b for b in (1, 2, 3, 16) if p % b == 0]))
    k = block * draw(st.integers(1, p // block))
    return reference.random_mask(p, k, draw(seeds), block)


@st.composite
def sjlts(draw: st.DrawFn) -> dict[str, Any]:
    nnz = draw(st.sampled_from([1, 1, 2, 3, 7]))
    k = nnz * draw(st.integers(1, 40) | st.sampled_from([128, 129]))
    return reference.sjlt(draw(dims), k, draw(seeds), nnz, draw(kinds))


@st.composite
def gaussians(draw: st.DrawFn) -> dict[str, Any]:
    kind = draw(st.sampled_from(["normal", "rademacher"]))
    p, k = draw(st.integers(1, 140)), draw(st.integers(1, 20))
    return reference.gaussian(p, k, draw(seeds), kind)


@st.composite
def grasses(draw: st.DrawFn) -> dict[str, Any]:
    p, k = draw(dims), draw(st.integers(1, 40))
    mask = draw(st.none() | masks(p) | random_masks(p))
    return reference.grass(p, k, draw(seeds), mask=mask, kind=draw(kinds))


@st.composite
def logras(draw: st.DrawFn) -> dict[str, Any]:
    width, rank = st.integers(1, 33), st.integers(1, 6)
    return reference.logra(draw(width), draw(width), draw(rank), draw(rank), draw(seeds))


@st.composite
def factgrasses(draw: st.DrawFn) -> dict[str, Any]:
    d_in, d_out, k = draw(st.integers(1, 20)), draw(st.integers(1, 20)), draw(st.integers(1, 30))
    side_in = draw(st.none() | st.integers(1, d_in) | masks(d_in) | random_masks(d_in))
    side_out = draw(st.none() | st.integers(1, d_out) | masks(d_out) | random_masks(d_out))
    return reference.factgrass(
        d_in, d_out, k, draw(seeds), mask_in=side_in, mask_out=side_out, kind=draw(kinds)
    )


@st.composite
def tiles(draw: st.DrawFn) -> dict[str, Any]:
    width = st.integers(1, 20) | st.sampled_from([31, 32, 33, 65])
    k = draw(st.integers(1, 60) | st.sampled_from([64, 97, 128, 300, 1024]))
    return reference.tile(draw(width), draw(width), k, draw(seeds))


any_spec = st.one_of(
    masks(), random_masks(), sjlts(), gaussians(), grasses(), logras(), factgrasses(), tiles()
)

EXAMPLES = {
    "mask": reference.mask([0, 2, 3, 50, 99], 100),
    "random_mask": reference.random_mask(96, 32, 1, block=16),
    "sjlt": reference.sjlt(100, 12, 2, nnz=3),
    "sjlt_iid": reference.sjlt(100, 12, 3, nnz=3, kind="iid"),
    "gaussian": reference.gaussian(50, 6, 4),
    "rademacher": reference.gaussian(50, 6, 5, kind="rademacher"),
    "grass": reference.grass(100, 6, 6),
    "logra": reference.logra(9, 7, 3, 2, 7),
    "factgrass": reference.factgrass(20, 10, 9, 8),
    "tile": reference.tile(20, 10, 12, 9),
}
"""One small compressor of every type and kind."""


# Inputs


def is_factorised(spec: dict[str, Any]) -> bool:
    return "in_features" in spec


def width(spec: dict[str, Any]) -> int:
    """Return the input dimension p."""
    if is_factorised(spec):
        return spec["out_features"] * spec["in_features"]
    return spec["input_dim"]


def inputs(
    spec: dict[str, Any], n: int, seed: int = 0, tokens: int = 3
) -> tuple[NDArray[np.float32], ...]:
    """Return the arguments of one call: random rows, or inputs and output gradients of tokens."""
    rng = np.random.default_rng(seed)
    if is_factorised(spec):
        shapes = [(n, tokens, spec["in_features"]), (n, tokens, spec["out_features"])]
    else:
        shapes = [(n, spec["input_dim"])]
    return tuple(rng.standard_normal(shape, dtype=np.float32) for shape in shapes)


def gradients(*arguments: NDArray[Any]) -> NDArray[np.float64]:
    """Return the (n, p) rows that the arguments of a call stand for, in float64."""
    exact = [np.asarray(argument, dtype=np.float64) for argument in arguments]
    if len(exact) == 1:
        return np.atleast_2d(exact[0])
    a, g = (x[:, None, :] if x.ndim == 2 else x for x in exact)
    outer = np.einsum("nto,nti->noi", g, a)
    return outer.reshape(len(outer), g.shape[2] * a.shape[2])


def magnitudes(*arguments: NDArray[Any]) -> NDArray[np.float64]:
    """Return the (n, p) sums of absolute values, the unit of rounding errors."""
    return gradients(*(np.abs(np.asarray(argument, dtype=np.float64)) for argument in arguments))


def assert_compressed(
    result: NDArray[np.float32], matrix: NDArray[Any], *arguments: NDArray[Any]
) -> None:
    """Check that `result` is `matrix` times the rows, to rounding in float32.

    Parameters
    ----------
    result
        (n, k), or (k,) for one row, in float32.
    matrix
        (k, p), what the compressor stands for.
    arguments
        The arguments of the call.

    """
    expected = gradients(*arguments) @ matrix.T.astype(np.float64)
    unit = magnitudes(*arguments) @ np.abs(matrix.T.astype(np.float64))
    assert result.dtype == np.float32
    assert np.atleast_2d(result).shape == expected.shape
    # 2e-6: the entries' own rounding and the normal numbers' (1e-6), then some tens of additions.
    error = np.abs(np.atleast_2d(result) - expected)
    assert np.all(error <= 2e-6 * unit + 1e-37), np.max(error - 2e-6 * unit)
