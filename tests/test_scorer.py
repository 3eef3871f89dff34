"""Dot products, cosines and the best k of a store, in bounded memory, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import grass_rs as grass
from stores import DTYPES, INTERRUPTED, columns, numbers, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WIDTHS = (30, 41)
METHODS = ("influence", "graddot", "gradcos")


@pytest.fixture
def store(tmp_path: Path) -> grass.Store:
    return write(tmp_path / "s", numbers(90, 71), WIDTHS)


QUERIES = numbers(6, 71, seed=1)


def test_dot_products_and_cosines_equal_the_plain_ones(tmp_path: Path) -> None:
    rows = numbers(90, 71)
    rows[13] = 0
    store = write(tmp_path / "s", rows, WIDTHS)
    dots = QUERIES.astype(np.float64) @ rows.T.astype(np.float64)
    lengths = np.linalg.norm(QUERIES, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    scores = store.score(QUERIES, "graddot")
    np.testing.assert_allclose(scores.values, dots, rtol=1e-5, atol=1e-5)
    cosines = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)
    np.testing.assert_allclose(store.score(QUERIES, "gradcos").values, cosines, atol=1e-6)
    np.testing.assert_array_equal(scores.ids, store.ids)
    assert scores.values.flags.c_contiguous
    assert (scores.method, scores.damping) == ("graddot", None)
    assert store.score(QUERIES, damping=1).damping == 1.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_are_of_the_rows_as_stored(tmp_path: Path, dtype: str) -> None:
    store = write(tmp_path / "s", numbers(90, 71), WIDTHS, dtype)
    exact = QUERIES.astype(np.float64) @ store[:].T.astype(np.float64)
    np.testing.assert_allclose(store.score(QUERIES, "graddot").values, exact, rtol=1e-5, atol=1e-5)


def test_influence_of_int8_rows_where_the_query_has_what_the_rows_hardly_have(
    tmp_path: Path,
) -> None:
    # The inverse makes those directions of the query the largest by far: no step of int8 would hold the others.
    generator = np.random.default_rng(0)
    sizes = np.where(np.arange(256) < 50, 1, 1e-3)
    rows = (generator.standard_normal((2000, 256)) * sizes).astype(np.float32)
    queries = (generator.standard_normal((3, 256)) * np.where(sizes == 1, 1, 0.3)).astype("f4")
    store = write(tmp_path / "s", rows, (256,), "int8")
    stored = store[:].astype(np.float64)
    fisher = stored.T @ stored / len(stored)
    damped = fisher + 0.4 * np.trace(fisher) / len(stored) * np.eye(256)
    exact = queries @ np.linalg.solve(damped, stored.T)
    found = store.score(queries, damping=0.4).values
    np.testing.assert_allclose(found, exact, atol=1e-3 * np.abs(exact).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [1, 7, 90])
def test_the_best_k_are_the_top_of_all(store: grass.Store, method: str, k: int) -> None:
    ids, values = store.score(QUERIES, method).top(k)
    best = store.score(QUERIES, method, top_k=k)
    np.testing.assert_array_equal(best.ids, ids)
    np.testing.assert_array_equal(best.values, values)
    numpy_numbers = store.score(QUERIES, method, damping=np.float64(0.4), top_k=np.int8(k))
    np.testing.assert_array_equal(numpy_numbers.values, values)


def test_equal_scores_are_ranked_by_smaller_id(tmp_path: Path) -> None:
    store = write(tmp_path / "s", np.ones((5, 3), np.float32), (3,), ids=[4, 2, 9, 1, 7])
    assert store.score(np.ones((1, 3)), "graddot", top_k=3).ids.tolist() == [[1, 2, 4]]


@pytest.mark.parametrize("method", METHODS)
def test_any_floats_and_another_store_are_queries(
    tmp_path: Path, store: grass.Store, method: str
) -> None:
    expected = store.score(QUERIES, method).values
    wide = np.repeat(QUERIES, 2, axis=1)
    for queries in (
        QUERIES.astype(np.float64),
        wide[:, ::2],
        np.asfortranarray(QUERIES),
        torch.from_numpy(QUERIES),
        torch.nn.Parameter(torch.from_numpy(QUERIES)),
        write(tmp_path / "q", QUERIES, WIDTHS),
    ):
        np.testing.assert_array_equal(store.score(queries, method).values, expected)


def test_a_store_of_another_plan_or_model_is_no_query(tmp_path: Path, store: grass.Store) -> None:
    other = write(tmp_path / "o", QUERIES, (31, 40))
    with pytest.raises(grass.StoreMismatchError, match='"layer0": width 30 in the store, 31 given'):
        store.score(other)
    other = write(tmp_path / "m", QUERIES, WIDTHS, fingerprints={"model": "x"})
    with pytest.raises(grass.StoreMismatchError, match='"model": none in the store, x given'):
        store.score(other)


@given(
    rows=st.integers(1, 60),
    widths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    count=st.integers(1, 20),
    method=st.sampled_from(METHODS),
    seed=st.integers(0, 9),
)
def test_bits_depend_on_neither_threads_nor_commits_nor_other_queries(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    rows: int,
    widths: list[int],
    count: int,
    method: str,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("bits")
    given_rows, queries = numbers(rows, sum(widths), seed), numbers(count, sum(widths), seed + 1)
    whole = write(folder / "a", given_rows, widths)
    with grass.create_store(folder / "b", columns(*widths), commit_seconds=0.0) as writer:
        for row in range(rows):
            writer.append(given_rows[row : row + 1], [100 + row])
        pieces = writer.finish()
    before = grass.num_threads()
    try:
        grass.set_num_threads(1)
        expected = whole.score(queries, method).values
        grass.set_num_threads(3)
        np.testing.assert_array_equal(pieces.score(queries, method).values, expected)
        alone = [whole.score(queries[i : i + 1], method).values[0] for i in range(count)]
        np.testing.assert_array_equal(alone, expected)
    finally:
        grass.set_num_threads(before)


@pytest.mark.parametrize(
    ("queries", "options", "error", "words"),
    [
        (QUERIES[:, :70], {}, grass.ShapeError, r"\(n, 71\) with n of at least 1, got \(6, 70\)"),
        (QUERIES[0], {}, grass.ShapeError, r"got \(71,\)"),
        (QUERIES[:0], {}, grass.ShapeError, r"got \(0, 71\): give at least one query"),
        (QUERIES > 0, {}, grass.UnsupportedArrayError, "float numbers, got bool"),
        (QUERIES, {"method": "gradot"}, grass.SpecError, "did you mean 'graddot'"),
        (QUERIES, {"method": None}, grass.SpecError, "method must be one of"),
        (QUERIES, {"damping": -0.1}, grass.SpecError, "of at least 0, got -0.1"),
        (QUERIES, {"damping": np.nan}, grass.SpecError, "damping must be a finite number"),
        (QUERIES, {"damping": np.inf}, grass.SpecError, "damping must be a finite number"),
        (QUERIES, {"damping": 1e308}, grass.SpecError, "damping must be .* too large"),
        (QUERIES, {"top_k": 0}, grass.ShapeError, "top_k must be a whole number from 1 to 90"),
        (QUERIES, {"top_k": 91}, grass.ShapeError, "the rows of the store, got 91"),
        (QUERIES, {"top_k": -1}, grass.ShapeError, "the rows of the store, got -1"),
        (QUERIES, {"top_k": 2**70}, grass.ShapeError, f"the rows of the store, got {2**70}"),
        (QUERIES, {"top_k": 1.5}, grass.ShapeError, "the rows of the store, got 1.5"),
        (QUERIES, {"top_k": "2"}, grass.ShapeError, "the rows of the store, got '2'"),
        (QUERIES, {"damping": "0.4"}, grass.SpecError, "of at least 0, got '0.4'"),
        (QUERIES, {"damping": 1j}, grass.SpecError, "of at least 0, got 1j"),
        (QUERIES, {"damping": 10**400}, grass.SpecError, "of at least 0, got 1000"),
        ([[1.0], [1.0, 2.0]], {}, grass.ShapeError, "got a list of no one shape"),
    ],
)
def test_bad_arguments_are_refused(
    store: grass.Store, queries: Any, options: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        store.score(queries, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_query_that_is_not_finite_is_named(store: grass.Store, bad: float) -> None:
    queries = QUERIES.astype(np.float64)
    queries[4, 35] = bad
    with pytest.raises(grass.NonFiniteError, match=r'query 4 has .* in column "layer1"'):
        store.score(queries, "graddot")


def test_unfinished_and_empty_stores_are_not_scored(tmp_path: Path, store: grass.Store) -> None:
    with grass.create_store(tmp_path / "u", columns(*WIDTHS)) as writer:
        writer.append(QUERIES, range(6))
    unfinished = grass.open_store(tmp_path / "u")
    empty = grass.create_store(tmp_path / "e", columns(*WIDTHS)).finish()
    for other, words in [(unfinished, "is unfinished"), (empty, "has no rows")]:
        with pytest.raises(grass.StoreError, match=words):
            other.score(QUERIES)
        with pytest.raises(grass.StoreError, match=words):
            store.score(other)


def test_damage_is_found_in_the_chunk_that_is_read(tmp_path: Path) -> None:
    # 64 KiB a row: 16 rows a chunk.
    store = write(tmp_path / "s", numbers(150, 16_384), (16_384,))
    with (tmp_path / "s/shard-00000.rows").open("r+b") as file:
        file.seek(4096 + 100 * 65_536)
        file.write(b"\x55")
    queries = numbers(1, 16_384)
    for method in METHODS:
        with pytest.raises(grass.CorruptStoreError, match="chunk 6 rows 96:112"):
            store.score(queries, method)
    with pytest.raises(grass.CorruptStoreError, match="chunk 6 rows 96:112"):
        write(tmp_path / "t", queries, (16_384,)).score(store)


LIMITED = """
import resource, sys
import numpy as np
import grass_rs as grass

store = grass.open_store(sys.argv[1])
queries = np.ones((3, store.width), np.float32)
grass.set_num_threads(2)
pages = int(open("/proc/self/statm").read().split()[0])
allowed = int(sys.argv[2]) + pages * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
for method in ("influence", "graddot", "gradcos"):
    scores = store.score(queries, method, top_k=2)
    print(method, np.isfinite(scores.values).all())
store.verify()
"""


def test_a_store_ten_times_larger_than_the_memory_is_scored(
    tmp_path: Path, run_script: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Address space that the C library sets aside for each thread is no memory that is used.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    widths = [64] * 64
    block = numbers(4000, 4096)
    with grass.create_store(tmp_path / "s", columns(*widths)) as writer:
        for start in range(0, 48_000, 4000):
            writer.append(block, np.arange(start, start + 4000))
        store = writer.finish()
    size = (store.path / "shard-00000.rows").stat().st_size
    printed = run_script(LIMITED, str(store.path), str(size // 10))
    assert printed.split() == ["influence", "True", "graddot", "True", "gradcos", "True"]


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int, int], grass.Store]:
    """Return a function that gives a store of a shape whose Fisher matrix takes minutes."""
    folder = tmp_path_factory.mktemp("endless")

    def of_shape(rows: int, width: int) -> grass.Store:
        path = folder / f"{rows}-{width}"
        if path.exists():
            return grass.open_store(path)
        return write(path, np.ones((rows, width), np.float32), (width,), "int8")

    return of_shape


@pytest.mark.parametrize(
    ("rows", "width", "call"),
    [
        (12_000, 12_000, "score(query)"),  # the Fisher matrix itself
        (12_000, 12_000, "score(query, progress=True)"),
        (12_000, 12_000, "score(query, out=out)"),
        (12_000, 12_000, "self_influence([0.4, 1.0])"),
        (4000, 60_000, "score(query)"),  # the rows' inner products
    ],
)
def test_ctrl_c_stops_a_call(
    endless: Callable[[int, int], grass.Store],
    run_script: Callable[..., str],
    rows: int,
    width: int,
    call: str,
) -> None:
    store = endless(rows, width)
    before = "query = np.ones((1, store.width), np.float32); out = sys.argv[1] + '.npy'"
    script = INTERRUPTED.format(before=before, call=f"store.{call}")
    printed = run_script(script, str(store.path))
    assert printed == f"interrupted (1, {width}) [100]\n"
    # No score was there yet, so no file is.
    assert all(path.is_dir() for path in store.path.parent.iterdir())
