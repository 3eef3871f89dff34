"""Scores: the best of each query, and files."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
