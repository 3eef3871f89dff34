"""Gaussian and Rademacher: the dense projections, generated as they are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import grass_rs as grass
import moments
import reference
import specs

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Backend

KINDS = ["normal", "rademacher"]


@given(spec=specs.gaussians(), n=st.integers(0, 9))
def test_gaussian_equals_twin(backend: Backend, spec: dict[str, Any], n: int) -> None:
    projection = specs.build(spec)
    matrix = reference.dense(spec)
    (x,) = specs.inputs(spec, n)
    np.testing.assert_allclose(projection.to_dense(), matrix, rtol=1e-6, atol=1e-6)
    specs.assert_compressed(backend.numpy(projection(backend.array(x))), matrix, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("n", "p", "k"),
    [
        (3, 700, 130),
        (130, 260, 33),
        (1, 129, 257),
        (7, 127, 31),
        (8, 128, 32),
        (9, 255, 1),
        (64, 257, 1023),
        (65, 1025, 65),
        (2, 1024, 129),
        (5, 130, 1025),
        (17, 2049, 63),
    ],
)
def test_tiles_equal_twin(kind: str, n: int, p: int, k: int) -> None:
    spec = reference.gaussian(p, k, 9, kind)
    (x,) = specs.inputs(spec, n)
    specs.assert_compressed(specs.build(spec)(x), reference.dense(spec), x)


def test_rademacher_entries_are_signs() -> None:
    matrix = grass.Gaussian(65, 16, seed=1, kind="rademacher").to_dense()
    np.testing.assert_array_equal(np.abs(matrix), np.full((16, 65), 0.25, dtype=np.float32))


def test_normal_numbers_have_a_normal_distribution() -> None:
    numbers = np.sort(grass.Gaussian(400, 100, seed=2).to_dense().ravel() * 10)
    from statistics import NormalDist

    cdf = np.array([NormalDist().cdf(float(number)) for number in numbers])
    steps = np.arange(len(cdf)) / len(cdf)
    # Kolmogorov-Smirnov: sqrt(n) D exceeds 2.2 with probability 1.2e-4.
    assert np.sqrt(len(cdf)) * np.max(np.abs(cdf - steps)) < 2.2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("p", "k"), [(20, 6), (7, 16)])
@given(first=st.integers(0, 2**64 - 1500))
@example(first=0)
def test_gaussian_is_unbiased(kind: str, p: int, k: int, first: int) -> None:
    by_formula = moments.normal if kind == "normal" else moments.rademacher
    moments.assert_unbiased(
        lambda seed: grass.Gaussian(p, k, seed=seed, kind=kind),
        by_formula(p, k),
        range(first, first + 1500),
    )


MEMORY = """
import resource, sys
import numpy as np
import grass_rs as grass
x = np.ones((1, 2_000_000), dtype=np.float32)
projection = grass.Gaussian(x.shape[1], 64, seed=0, kind=sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert projection(x).shape == (1, 64)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_matrix_is_never_in_memory(run_script: Callable[..., str], kind: str) -> None:
    # The matrix is 512 MB.
    assert int(run_script(MEMORY, kind)) < 64 * 2**20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_dim": 0}, "input_dim"),
        ({"output_dim": 0}, "output_dim"),
        ({"kind": "norml"}, "normal"),
        ({"kind": "rademachr"}, "rademacher"),
        ({"kind": "cyclic"}, "kind"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_gaussian_refuses_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    good = {"input_dim": 20, "output_dim": 4, "seed": 0}
    with pytest.raises(grass.SpecError, match=message):
        grass.Gaussian(**(good | arguments))
