"""Mask and RandomMask: which coordinates, in which order, at what scale."""

from __future__ import annotations

import json
import math
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import grass_rs as grass
import reference
import specs

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Backend

GOLDEN = json.loads((Path(__file__).parent / "golden" / "masks.json").read_text(encoding="ascii"))


@pytest.mark.parametrize("answer", GOLDEN, ids=lambda answer: str(answer["spec"]["input_dim"]))
def test_random_mask_keeps_the_golden_coordinates(answer: dict[str, Any]) -> None:
    mask = specs.build(answer["spec"])
    assert list(mask.indices) == answer["indices"]
    assert (mask.input_dim, mask.output_dim) == (
        answer["spec"]["input_dim"],
        answer["spec"]["output_dim"],
    )


@given(spec=specs.random_masks() | specs.masks())
def test_mask_equals_twin(backend: Backend, spec: dict[str, Any]) -> None:
    mask = specs.build(spec)
    matrix = reference.dense(spec)
    (x,) = specs.inputs(spec, n=3)
    np.testing.assert_allclose(mask.to_dense(), matrix, rtol=1e-6, atol=0)
    assert list(mask.indices) == reference.mask_indices(spec)
    specs.assert_compressed(backend.numpy(mask(backend.array(x))), matrix, x)


@given(spec=specs.masks())
def test_explicit_mask_copies_values_exactly(spec: dict[str, Any]) -> None:
    (x,) = specs.inputs(spec, n=2)
    np.testing.assert_array_equal(specs.build(spec)(x), x[:, spec["indices"]])


@given(p=st.integers(1, 300), seed=specs.seeds)
def test_random_mask_of_everything_is_the_identity(p: int, seed: int) -> None:
    x = np.random.default_rng(0).standard_normal((2, p), dtype=np.float32)
    np.testing.assert_array_equal(grass.RandomMask(p, p, seed=seed)(x), x)


@given(spec=specs.random_masks())
def test_indices_are_sorted_unique_runs(spec: dict[str, Any]) -> None:
    indices = np.asarray(specs.build(spec).indices, dtype=np.int64)
    assert len(indices) == spec["output_dim"]
    runs = indices.reshape(-1, spec["block"])
    assert np.all(runs[:, 0] % spec["block"] == 0)
    assert np.all(np.diff(runs, axis=1) == 1)
    assert np.all(np.diff(indices) > 0)


@pytest.mark.parametrize("block", [1, 4])
@given(first=st.integers(0, 2**64 - 2000))
@example(first=0)
def test_random_mask_is_unbiased(block: int, first: int) -> None:
    p, k, trials = 40, 12, 2000
    kept = np.zeros(p)
    for seed in range(first, first + trials):
        kept[np.asarray(grass.RandomMask(p, k, seed=seed, block=block).indices)] += 1
    # The mean of S^T S is diagonal with entries kept / trials * p / k; kept is binomial(k / p).
    deviation = math.sqrt((1 - k / p) * p / k / trials)
    assert np.all(np.abs(kept / trials * p / k - 1) < 5.5 * deviation)


HUGE = """
import resource, sys, tracemalloc
import numpy as np
import grass_rs as grass
tracemalloc.start()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
p, k, block = 2**40, 200_000, int(sys.argv[1])
mask = grass.RandomMask(p, k, seed=1, block=block)
copy = grass.compressor_from_bytes(mask.to_bytes())
assert copy == mask
indices = np.asarray(mask.indices)
assert indices.shape == (k,) and int(indices[-1]) > p // 2 and np.all(np.diff(indices.astype(np.int64)) > 0)
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(grown * 1024, tracemalloc.get_traced_memory()[1])
"""


@pytest.mark.parametrize("block", [1, 16])
def test_memory_of_a_mask_of_billions_grows_with_what_it_keeps(
    run_script: Callable[..., str], block: int
) -> None:
    resident, traced = map(int, run_script(HUGE, str(block)).split())
    # Two masks of 200,000 numbers of 8 bytes, a set to draw them, and the copies made by the test.
    assert max(resident, traced) < 64 * 2**20


def test_mask_of_billions_is_a_small_pickle() -> None:
    mask = grass.RandomMask(10**12, 1000, seed=3)
    data = pickle.dumps(mask)
    assert len(data) < 1000
    assert list(pickle.loads(data).indices) == list(mask.indices)  # noqa: S301 - our own bytes


def test_huge_mask_refuses_dense_and_wrong_rows() -> None:
    mask = grass.RandomMask(10**12, 10, seed=3)
    with pytest.raises(grass.SpecError, match="max_bytes"):
        mask.to_dense()
    with pytest.raises(grass.ShapeError, match="1000000000000"):
        mask(np.zeros((2, 100), dtype=np.float32))


@pytest.mark.parametrize(
    ("indices", "input_dim", "message"),
    [
        ([], 5, "indices"),
        ([1, 0], 5, "indices"),
        ([1, 1], 5, "indices"),
        ([0, 5], 5, "indices"),
        ([-1, 2], 5, "indices"),
        ([0], 0, "input_dim"),
        ([2**64], 5, "indices"),
    ],
)
def test_mask_refuses_bad_indices(indices: list[int], input_dim: int, message: str) -> None:
    with pytest.raises(grass.SpecError, match=message):
        grass.Mask(indices, input_dim)


@pytest.mark.parametrize(
    "indices",
    [
        np.array([0, 3, 7], dtype=np.int64),
        np.array([0, 3, 7], dtype=np.uint32),
        np.array([7, 3, 0], dtype=np.uint64)[::-1],
        (0, 3, 7),
    ],
)
def test_mask_takes_integer_sequences(indices: Any) -> None:
    assert grass.Mask(indices, 8) == grass.Mask([0, 3, 7], 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_dim": 10, "output_dim": 11}, "output_dim"),
        ({"input_dim": 10, "output_dim": 0}, "output_dim"),
        ({"input_dim": 0, "output_dim": 0}, "input_dim"),
        ({"input_dim": 10, "output_dim": 4, "block": 0}, "block"),
        ({"input_dim": 10, "output_dim": 4, "block": 4}, "block"),
        ({"input_dim": 12, "output_dim": 6, "block": 4}, "block"),
        ({"input_dim": -1, "output_dim": 4}, "input_dim"),
        ({"input_dim": 10, "output_dim": 4, "seed": -1}, "seed"),
        ({"input_dim": 10, "output_dim": 4, "seed": 2**64}, "seed"),
    ],
)
def test_random_mask_refuses_bad_arguments(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(grass.SpecError, match=message):
        grass.RandomMask(**({"seed": 0} | arguments))
