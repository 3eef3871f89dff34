"""Scores: the best of each query, and files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grass_rs as grass

if TYPE_CHECKING:
    from pathlib import Path


def scores(values: list[list[float]], ids: list[int]) -> grass.Scores:
    return grass.Scores(
        np.array(values, np.float32), np.array(ids, np.uint64), method="influence", damping=0.4
    )


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_top_is_a_sorted_list_with_ties_by_smaller_id(values: list[int], seed: int) -> None:
    ids = np.random.default_rng(seed).permutation(len(values)).tolist()
    pairs = sorted(zip(values, ids, strict=True), key=lambda pair: (-pair[0], pair[1]))
    for k in range(1, len(values) + 1):
        top_ids, top_values = scores([values], ids).top(k)
        assert top_ids.tolist() == [[pair[1] for pair in pairs[:k]]]
        assert top_values.tolist() == [[pair[0] for pair in pairs[:k]]]


def test_top_takes_what_was_kept() -> None:
    kept = grass.Scores(
        np.array([[3, 1], [2, 2]], np.float32),
        np.array([[7, 4], [9, 5]], np.uint64),
        "graddot",
        None,
    )
    ids, values = kept.top(1)
    assert (ids.tolist(), values.tolist()) == ([[7], [5]], [[3], [2]])
    for k in (0, 3, -1):
        with pytest.raises(grass.ShapeError, match=f"k from 1 to 2 .*, got {k}"):
            kept.top(k)


def test_nan_never_wins() -> None:
    ids, values = scores([[np.nan, -5.0, np.nan, -np.inf]], [1, 2, 3, 4]).top(2)
    assert (ids.tolist(), values.tolist()) == ([[2, 4]], [[-5.0, -np.inf]])


def test_every_value_has_an_id() -> None:
    with pytest.raises(grass.ShapeError, match="give one id a column or a value"):
        scores([[1.0, 2.0]], [1, 2, 3])


@pytest.mark.parametrize("damping", [0.25, None])
def test_files_keep_everything(tmp_path: Path, damping: float | None) -> None:
    saved = grass.Scores(
        np.array([[1.5, -2]], np.float32), np.array([3, 2**64 - 1], np.uint64), "influence", damping
    )
    saved.save(tmp_path / "scores")  # the name is taken as it is
    loaded = grass.Scores.load(tmp_path / "scores")
    np.testing.assert_array_equal(loaded.values, saved.values)
    np.testing.assert_array_equal(loaded.ids, saved.ids)
    assert loaded.ids.dtype == np.uint64
    assert (loaded.method, loaded.damping) == (saved.method, saved.damping)


def test_other_files_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", values=np.ones(3))
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "text").write_text("no scores")
    (tmp_path / "empty").touch()
    for name in ("other.npz", "one.npy", "text", "empty"):
        with pytest.raises(grass.DataError, match=r"Scores\.load expects a file"):
            grass.Scores.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        grass.Scores.load(tmp_path / "none")


def with_errors(values: list[list[float]], errors: list[list[float]]) -> grass.Scores:
    ids = np.arange(len(values[0]), dtype=np.uint64)
    return grass.Scores(
        np.array(values, np.float32), ids, "graddot", None, np.array(errors, np.float32)
    )


def test_files_keep_standard_errors(tmp_path: Path) -> None:
    saved = with_errors([[1.5, -2]], [[0.5, 0.25]])
    saved.save(tmp_path / "scores.npz")
    loaded = grass.Scores.load(tmp_path / "scores.npz").standard_errors
    assert loaded is not None
    np.testing.assert_array_equal(loaded, [[0.5, 0.25]])
    assert loaded.dtype == np.float32
    scores([[1.5, -2]], [0, 1]).save(tmp_path / "scores.npz")
    assert grass.Scores.load(tmp_path / "scores.npz").standard_errors is None


def test_every_standard_error_has_a_value() -> None:
    with pytest.raises(grass.ShapeError, match=r"shape of values, \(1, 2\), got \(1, 3\)"):
        with_errors([[1.0, 2.0]], [[1.0, 2.0, 3.0]])


def test_ranks_are_separated_by_two_standard_errors_of_their_difference() -> None:
    # In order: 20, 10, 5, 4; differences 10, 5, 1; two standard errors of them 2 sqrt(a^2 + b^2).
    made = with_errors([[5, 20, 4, 10], [1, 1, 0, 0]], [[0.3, 4, 0.3, 3], [0, 0, 0, 0]])
    assert made.separated(4).tolist() == [
        [False, False, True, False],  # 10 is not more than 10; 5 is less than 6.03; 1 more than .85
        [False, True, False, False],  # ties are not separated
    ]
    assert made.separated(1).tolist() == [[False], [False]]
    assert with_errors([[5, 20.01, 4, 10]], [[0.3, 4, 0.3, 3]]).separated(1).tolist() == [[True]]


def test_the_last_rank_that_was_kept_is_not_separated() -> None:
    kept = grass.Scores(
        np.array([[3, 1]], np.float32),
        np.array([[7, 4]], np.uint64),
        "graddot",
        None,
        np.zeros((1, 2), np.float32),
    )
    assert kept.separated(2).tolist() == [[True, False]]
    with pytest.raises(grass.ShapeError, match=r"separated expects k from 1 to 2 .*, got 3"):
        kept.separated(3)


def test_what_is_no_number_separates_nothing() -> None:
    assert not with_errors([[np.nan, 5, 1]], [[0, np.nan, 0]]).separated(3).any()


def test_separated_needs_standard_errors() -> None:
    with pytest.raises(grass.DataError, match="score with standard_errors=True"):
        scores([[1.0, 2.0]], [1, 2]).separated(1)


@pytest.mark.parametrize(
    ("groups", "names"),
    [
        (["b", "a", "b", "c", "a"], ["b", "a", "c"]),
        (np.array(["b", "a", "b", "c", "a"]), ["b", "a", "c"]),
        (np.array([2, -1, 2, 7, -1], np.int8), [2, -1, 7]),
        (np.array([True, False, True, None, False], object), [True, False, None]),
        ([("x", 1), ("y", 1), ("x", 1), None, ("y", 1)], [("x", 1), ("y", 1), None]),
        (
            np.array(
                ["2020-01-02", "2020-01-01", "2020-01-02", "2021-01-01", "2020-01-01"], "M8[ns]"
            ),
            [np.datetime64("2020-01-02"), np.datetime64("2020-01-01"), np.datetime64("2021-01-01")],
        ),
        (iter("babca"), ["b", "a", "c"]),
    ],
    ids=["list", "text", "numbers", "objects", "tuples", "dates", "iterator"],
)
def test_grouped_sums_by_label(groups: Any, names: list[Any]) -> None:
    made = scores([[1, 2, 3, 4, 5], [0, 0, 1, 0, -1]], [9, 8, 7, 6, 5])
    found, values = made.grouped(groups)
    assert found == names
    assert values.tolist() == [[4, 7, 4], [1, -1, 0]]
    assert values.dtype == np.float32


def test_grouped_takes_tensors() -> None:
    torch = pytest.importorskip("torch")
    names, values = scores([[1, 2, 4]], [0, 1, 2]).grouped(torch.tensor([3, 1, 3]))
    assert (names, values.tolist()) == ([3, 1], [[5, 2]])


def test_grouped_sums_in_double_precision() -> None:
    _, values = scores([[2.0**24, 1, 1, -(2.0**24)]], [0, 1, 2, 3]).grouped([0, 0, 0, 0])
    assert values.tolist() == [[2]]


def test_groups_that_do_not_fit_are_refused() -> None:
    made = scores([[1, 2, 3]], [0, 1, 2])
    for groups in ([1, 2], np.zeros(4)):
        with pytest.raises(
            grass.ShapeError, match=r"grouped expects 3 labels, .* got [24]: give one"
        ):
            made.grouped(groups)
    with pytest.raises(grass.ShapeError, match=r"shape \(n_train,\), got \(3, 1\)"):
        made.grouped(np.zeros((3, 1)))
    with pytest.raises(grass.ShapeError, match=r"shape \(n_train,\), got \(\)"):
        made.grouped(np.array("abc"))
    with pytest.raises(grass.DataError, match="hashable labels, got a list at 1"):
        made.grouped([1, [2], 3])
    for missing in (np.nan, np.datetime64("NaT")):
        with pytest.raises(grass.DataError, match=r"label for each training example, got .* at 2"):
            made.grouped([1, 2, missing])
    with pytest.raises(grass.DataError, match="got a masked array"):
        made.grouped(np.ma.masked_array([1, 2, 3], [0, 1, 0]))
    for single in ("abc", 5):
        with pytest.raises(grass.DataError, match="expects a sequence of labels"):
            made.grouped(single)  # type: ignore[arg-type]
    top = grass.Scores(made.values, made.ids[None].copy(), "graddot", None)
    with pytest.raises(grass.ShapeError, match=r"got the best 3: score without top_k"):
        top.grouped([1, 2, 3])
