"""What `Store.score` and its neighbours refuse: no numbers, lost masks, other people's files, odd names."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import grass_rs as grass
from grass_rs.store import as_ids, repair_store, verify_store
from stores import columns, numbers, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

WIDTHS = (3, 4)
ROWS = numbers(9, 7)
QUERIES = numbers(2, 7, seed=1)


@pytest.fixture
def store(tmp_path: Path) -> grass.Store:
    return write(tmp_path / "s", ROWS, WIDTHS)


def one_line(error: type[Exception], words: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=words) as caught:
        call()
    assert isinstance(caught.value, grass.GrassError)
    assert "\n" not in str(caught.value)


# Masks


def masked_calls(store: grass.Store, values: Any, whole: Any) -> list[Callable[[], object]]:
    """Return calls with a masked (2, 7) matrix and a masked (2,) array of whole numbers."""
    fresh = grass.create_store(store.path.with_name("fresh"), columns(*WIDTHS), resume=True)
    scores, subsets, outcomes = np.ones((2, 7)), np.ones((2, 7), bool), np.ones((2, 2))
    return [
        lambda: fresh.append(values, [1, 2]),
        lambda: fresh.append(QUERIES, whole),
        lambda: fresh.finish(skipped_ids=whole),
        lambda: store.score(values),
        lambda: store.find(whole),
        lambda: store[whole],
        lambda: as_ids(whole),
        lambda: grass.lds(values, subsets, outcomes),
        lambda: grass.lds(scores, np.ma.array(subsets), outcomes),
        lambda: grass.lds(scores, subsets, values[:, :2]),
        lambda: grass.SJLT(7, 2, seed=0)(values),
        lambda: grass.LoGra(7, 7, 1, 1, seed=0)(values[:, None], QUERIES[:, None]),
        lambda: grass.Mask(whole, 7),
    ]


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("call", range(13))
def test_masked_arrays_are_refused_whatever_their_mask(
    store: grass.Store, call: int, *, mask: bool
) -> None:
    values = np.ma.array(QUERIES, mask=mask)
    whole = np.ma.array([0, 1], mask=mask)
    one_line(grass.GrassError, "got a masked array", masked_calls(store, values, whole)[call])


def test_lists_of_masked_arrays_are_refused(store: grass.Store) -> None:
    row = np.ma.array(QUERIES[0], mask=[1, 0, 0, 0, 0, 0, 0])
    one_line(grass.UnsupportedArrayError, "masked array", lambda: store.score([row, QUERIES[1]]))
    one_line(grass.DataError, "masked array", lambda: as_ids([1, np.ma.masked]))


# Numbers


@pytest.mark.parametrize("top_k", [True, np.True_, np.ones((), bool), np.array([2]), 2.0], ids=repr)
def test_top_k_is_a_whole_number(store: grass.Store, top_k: Any) -> None:
    one_line(
        grass.ShapeError, "top_k must be a whole number", lambda: store.score(QUERIES, top_k=top_k)
    )


def test_numbers_of_any_length_are_refused(store: grass.Store) -> None:
    # Python refuses to write it in decimal.
    long = 10**5000
    one_line(grass.ShapeError, "got a int", lambda: store.score(QUERIES, top_k=long))
    one_line(grass.SpecError, "got a int", lambda: store.score(QUERIES, damping=long))


@pytest.mark.parametrize("top_k", [2, np.int8(2), np.uint64(2), np.array(2)])
def test_whole_numbers_of_any_type_are_top_k(store: grass.Store, top_k: Any) -> None:
    assert store.score(QUERIES, top_k=top_k).values.shape == (2, 2)


@pytest.mark.parametrize(
    "damping",
    [
        True,
        np.True_,
        np.ones((), bool),
        [0.1, True],
        np.array([True]),
        np.array([[0.1]]),
        [np.array([0.1])],
        [[0.1]],
        np.ma.array([0.1], mask=True),
    ],
)
def test_a_damping_is_a_number(store: grass.Store, damping: Any) -> None:
    words = "damping must be a finite number of at least 0"
    with warnings.catch_warnings():
        # As outside of tests: NumPy would take what it warns of.
        warnings.simplefilter("ignore")
        one_line(grass.SpecError, words, lambda: store.score(QUERIES, damping=damping))
        one_line(grass.SpecError, words, lambda: store.self_influence(damping))
        if not isinstance(damping, (list, np.ndarray)):
            out = store.path.with_name("a.npy")
            one_line(grass.SpecError, words, lambda: store.score(QUERIES, damping=damping, out=out))


@pytest.mark.parametrize("damping", [1, np.float32(0.5), np.int8(1), np.array(0.5)])
def test_numbers_of_any_type_are_dampings(store: grass.Store, damping: Any) -> None:
    expected = store.score(QUERIES, damping=float(damping)).values
    np.testing.assert_array_equal(store.score(QUERIES, damping=damping).values, expected)


@pytest.mark.parametrize("k", [True, 1.0, "1"])
def test_the_k_of_top_is_a_whole_number(store: grass.Store, k: Any) -> None:
    scores = store.score(QUERIES)
    one_line(grass.ShapeError, "top expects k from 1 to 9", lambda: scores.top(k))


@pytest.mark.parametrize("options", [{}, {"top_k": 1}])
def test_a_score_that_float32_cannot_hold_is_the_querys(
    store: grass.Store, options: dict[str, Any]
) -> None:
    queries = np.concatenate([QUERIES, np.full((1, 7), 3e38, np.float32)])
    rows = write(store.path.with_name("large"), np.abs(ROWS) + 1, WIDTHS)
    one_line(
        grass.NonFiniteError,
        r"id 100 for query 2 is inf: query and row are finite, but it or a number on its way exceeds",
        lambda: rows.score(queries, "graddot", **options),
    )


SMALLEST_STEP = {"float32": 0.0, "float16": 2.0**-24, "bfloat16": 2.0**-133, "int8": 2.0**-126}


@pytest.mark.parametrize("dtype", SMALLEST_STEP)
@pytest.mark.parametrize("size", [1e-6, 1e-38, 1e-40, 1e-42])
def test_subnormal_numbers_are_kept_and_scored_as_the_page_says(
    tmp_path: Path, dtype: str, size: float
) -> None:
    rows = (numbers(50, 300).astype(np.float64) * size).astype(np.float32)
    store = write(tmp_path / "s", rows, (300,), dtype)
    # bfloat16 and int8 are coarse for normal numbers too.
    relative = {"float32": 0.0, "float16": 2.0**-11, "bfloat16": 2.0**-8, "int8": 1 / 254}[dtype]
    largest = np.abs(rows).max(axis=1, keepdims=True)
    error = np.abs(store[:].astype(np.float64) - rows)
    step = SMALLEST_STEP[dtype]
    assert (error <= np.maximum(relative * largest * 1.000001, step / 2)).all()
    if dtype == "int8":
        return
    queries = numbers(3, 300, seed=2)
    exact, stored = queries.astype(np.float64), store[:].astype(np.float64)
    lengths = np.outer(np.linalg.norm(exact, axis=1), np.linalg.norm(stored, axis=1))
    error = np.abs(store.score(queries, "graddot").values - exact @ stored.T)
    assert (error <= 1e-6 * lengths + 300 * 2.0**-149).all()


# Files


def test_a_name_of_ids_is_no_name_of_scores(tmp_path: Path, store: grass.Store) -> None:
    # The scores of one call would be the ids of another.
    store.score(QUERIES, out=tmp_path / "a.npy")
    before = (tmp_path / "a.ids.npy").read_bytes()
    out = tmp_path / "a.ids.npy"
    one_line(
        grass.SpecError, "a name of ids: choose another", lambda: store.score(QUERIES, out=out)
    )
    assert out.read_bytes() == before


def as_text(path: Path) -> None:
    path.write_text("mine")


def as_folder(path: Path) -> None:
    path.mkdir()


def as_numbers(*shape: int, dtype: str = "<f4") -> Callable[[Path], None]:
    return lambda path: np.save(path, np.zeros(shape, dtype))


@pytest.mark.parametrize(
    ("scores", "ids"),
    [
        (as_text, None),
        (None, as_text),
        (as_folder, None),
        (None, as_folder),
        # The queries, and other arrays without ids.
        (as_numbers(2, 7), None),
        (as_numbers(2, 9, dtype="<f8"), as_numbers(9, dtype="<u8")),
        (None, as_numbers(9, dtype="<u8")),
        (as_numbers(2, 9), as_numbers(2, 9)),
        (as_numbers(9), as_numbers(9, dtype="<u8")),
        # An export of two rows.
        (as_numbers(2, 7), as_numbers(2, dtype="<u8")),
    ],
)
def test_what_are_no_scores_is_not_replaced(
    tmp_path: Path,
    store: grass.Store,
    scores: Callable[[Path], None] | None,
    ids: Callable[[Path], None] | None,
) -> None:
    for make, name in ((scores, "a.npy"), (ids, "a.ids.npy")):
        if make is not None:
            make(tmp_path / name)

    def held() -> dict[str, bytes | None]:
        there = sorted(tmp_path.glob("a.*"))
        return {path.name: None if path.is_dir() else path.read_bytes() for path in there}

    before = held()
    one_line(
        grass.ScoresFileError,
        r"out expects nothing, or scores and their ids, .*(choose another name|name a file in it)",
        lambda: store.score(QUERIES, out=tmp_path / "a.npy"),
    )
    assert held() == before


def test_a_call_that_was_killed_while_it_renamed_is_ended(
    tmp_path: Path, store: grass.Store
) -> None:
    out = tmp_path / "a.npy"
    expected = store.score(QUERIES, out=out).values.copy()
    out.rename(tmp_path / "a.npy.part")
    one_line(grass.ScoresFileError, "got nothing and", lambda: store.score(QUERIES, out=out))
    (tmp_path / "a.npy.progress").touch()
    np.testing.assert_array_equal(store.score(QUERIES, out=out).values, expected)
    assert sorted(file.name for file in tmp_path.glob("a.*")) == ["a.ids.npy", "a.npy"]


@pytest.mark.parametrize("out", ["", ".", "a", "a.npz", ".npy"])
def test_scores_are_for_files_called_npy(
    store: grass.Store, out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(store.path.parent)
    one_line(
        grass.SpecError, r"out expects a file NAME\.npy", lambda: store.score(QUERIES, out=out)
    )


def test_mapped_queries_are_not_replaced(tmp_path: Path) -> None:
    # As many rows as numbers in a row, so that the two files could be scores and their ids.
    store = write(tmp_path / "s", ROWS[:7], WIDTHS)
    out = tmp_path / "rows.npy"
    grass.export_store(store, out, "npy")
    before = out.read_bytes()
    for queries in (np.load(out, mmap_mode="r"), np.load(out, mmap_mode="r")[2:4]):
        one_line(
            grass.ScoresFileError,
            "out expects a file of its own",
            lambda queries=queries: store.score(queries, out=out),
        )
    assert out.read_bytes() == before


def test_the_store_itself_is_not_replaced(tmp_path: Path) -> None:
    store = write(tmp_path / "s.npy", ROWS, WIDTHS)
    one_line(
        grass.ScoresFileError, "name a file in it", lambda: store.score(QUERIES, out=store.path)
    )
    store.verify()


@pytest.mark.parametrize("text", [str, "{}\0".format, "\0{}".format, "{}\0x.npy".format])
def test_a_nul_in_a_path_is_one_line(
    tmp_path: Path, store: grass.Store, text: Callable[[str], str]
) -> None:
    path = text(str(tmp_path / "none" / "a.npy"))
    calls: list[Callable[[], object]] = [
        lambda: grass.open_store(path),
        lambda: verify_store(path),
        lambda: repair_store(path),
        lambda: grass.merge_stores([path], tmp_path / "out"),
        lambda: grass.merge_stores([store.path], path),
        lambda: grass.create_store(path, columns(3)),
        lambda: grass.create_store(path, columns(3), resume=True),
        lambda: store.score(QUERIES, out=path),
        lambda: grass.export_store(path, tmp_path / "out", "npy"),
        *(
            lambda kind=kind: grass.export_store(store, path, kind)
            for kind in grass.store.EXPORT_FORMATS
        ),
    ]
    for call in calls:
        one_line(grass.GrassError, "none", call)
    assert [file.name for file in tmp_path.iterdir()] == ["s"]
