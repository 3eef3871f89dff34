"""GraSS: a mask, then an SJLT."""

from __future__ import annotations

import pickle
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


@given(spec=specs.grasses(), n=st.integers(0, 4))
def test_grass_equals_twin(backend: Backend, spec: dict[str, Any], n: int) -> None:
    compressor = specs.build(spec)
    matrix = reference.dense(spec)
    (x,) = specs.inputs(spec, n)
    np.testing.assert_allclose(compressor.to_dense(), matrix, rtol=1e-6, atol=0)
    specs.assert_compressed(backend.numpy(compressor(backend.array(x))), matrix, x)


@given(
    p=specs.dims,
    k=st.integers(1, 60),
    seed=specs.seeds,
    kind=specs.kinds,
    given_dim=st.none() | st.integers(1, 300),
)
def test_default_mask_is_a_random_mask_of_four_times_the_output(
    p: int, k: int, seed: int, kind: str, given_dim: int | None
) -> None:
    mask_dim = None if given_dim is None else min(given_dim, p)
    compressor = grass.GraSS(p, k, seed=seed, mask_dim=mask_dim, kind=kind)
    expected = reference.grass(p, k, seed, mask_dim=mask_dim, kind=kind)
    assert compressor.spec == expected
    kept = min(4 * k, p) if mask_dim is None else mask_dim
    mask = grass.RandomMask(p, kept, seed=reference.derive(seed, "mask"))
    second = grass.SJLT(kept, k, seed=reference.derive(seed, "sjlt"), kind=kind)
    (x,) = specs.inputs(expected, n=2)
    np.testing.assert_allclose(compressor(x), second(mask(x)), rtol=1e-5, atol=1e-5)


def test_mask_given_as_itself_is_the_same_compressor() -> None:
    mask = grass.RandomMask(100, 24, seed=reference.derive(5, "mask"))
    implied = grass.GraSS(100, 6, seed=5)
    assert grass.GraSS(100, 6, seed=5, mask=mask) == implied
    assert grass.GraSS(100, 6, seed=5, mask_dim=24) == implied
    assert grass.GraSS(100, 6, seed=5, mask_dim=24, mask=mask) == implied


@pytest.mark.parametrize("kind", ["cyclic", "iid"])
@given(first=st.integers(0, 2**64 - 3000))
@example(first=0)
def test_grass_is_unbiased(kind: str, first: int) -> None:
    p, k, kept = 20, 5, 12
    moments.assert_unbiased(
        lambda seed: grass.GraSS(p, k, seed=seed, mask_dim=kept, kind=kind),
        moments.mask(p, kept) * moments.sketch(p, k),
        range(first, first + 3000),
    )


def test_explicit_mask_does_not_scale() -> None:
    mask = grass.Mask([1, 4, 6], 8)
    matrix = grass.GraSS(8, 3, seed=0, mask=mask).to_dense()
    np.testing.assert_array_equal(matrix.T @ matrix, np.diag([0, 1, 0, 0, 1, 0, 1, 0]))


HUGE = """
import resource
import numpy as np
import grass_rs as grass
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
compressor = grass.GraSS(7_000_000_000, 4096, seed=1)
assert grass.compressor_from_bytes(compressor.to_bytes()) == compressor
assert compressor.spec["mask_dim"] == 16384
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024, len(compressor.to_bytes()))
"""


def test_memory_of_billions_grows_with_what_is_kept(run_script: Callable[..., str]) -> None:
    resident, serialised = map(int, run_script(HUGE).split())
    assert resident < 32 * 2**20
    assert serialised < 1000


def test_grass_of_billions_is_a_small_pickle() -> None:
    compressor = grass.GraSS(10**12, 64, seed=1)
    data = pickle.dumps(compressor)
    assert len(data) < 2000
    assert pickle.loads(data) == compressor  # noqa: S301 - our own bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_dim": 0}, "input_dim"),
        ({"output_dim": 0}, "output_dim"),
        ({"mask_dim": 0}, "mask_dim"),
        ({"mask_dim": 21}, "mask_dim"),
        ({"mask": grass.Mask([0, 1], 19)}, "mask"),
        ({"mask": grass.Mask([0, 1], 20), "mask_dim": 3}, "mask_dim"),
        ({"mask": grass.SJLT(20, 4, seed=0)}, "mask"),
        ({"kind": "cylic"}, "cyclic"),
        ({"seed": -1}, "seed"),
    ],
)
def test_grass_refuses_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    good = {"input_dim": 20, "output_dim": 4, "seed": 0}
    with pytest.raises(grass.SpecError, match=message):
        grass.GraSS(**(good | arguments))
