"""The influence of stored rows on themselves, and several dampings at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import grass_rs as grass
from stores import DTYPES, columns, numbers, write

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS = (5, 90)
"""Fewer and more coordinates than there are rows."""


def plain(rows: np.ndarray, queries: np.ndarray, damping: float) -> np.ndarray:
    """Return (n_query, n) influence scores by the formula, in double precision."""
    scores = np.zeros((len(queries), len(rows)))
    for part in (slice(0, WIDTHS[0]), slice(WIDTHS[0], None)):
        g, q = rows[:, part].astype(np.float64), queries[:, part].astype(np.float64)
        fisher = g.T @ g / len(g)
        fisher += damping * np.trace(fisher) / len(g) * np.eye(len(fisher))
        scores += q @ np.linalg.solve(fisher, g.T)
    return scores


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("damping", [0.01, 0.4, 3])
def test_it_is_the_score_of_a_row_for_itself(tmp_path: Path, dtype: str, damping: float) -> None:
    store = write(tmp_path / "s", numbers(60, 95), WIDTHS, dtype)
    values = store.self_influence(damping)
    assert (values.shape, values.dtype) == ((60,), np.float32)
    expected = np.diag(plain(store[:], store[:], damping))
    np.testing.assert_allclose(values, expected, rtol=1e-4)
    np.testing.assert_allclose(store.self_influence([damping, 7])[0], values, rtol=1e-4)


def test_several_dampings_are_several_scores(tmp_path: Path) -> None:
    store = write(tmp_path / "s", numbers(60, 95), WIDTHS)
    queries = numbers(4, 95, seed=3)
    for dampings in ([0.4], (0.1, 1, 0.1), np.array([2.0, 0.05])):
        swept = store.score(queries, damping=dampings)
        assert [scores.damping for scores in swept] == [float(d) for d in dampings]
        for scores in swept:
            expected = plain(store[:], queries, scores.damping)
            largest = np.abs(expected).max()
            np.testing.assert_allclose(scores.values, expected, atol=1e-4 * largest)
            np.testing.assert_array_equal(scores.ids, store.ids)
    best = store.score(queries, damping=[0.1, 1.0], top_k=3)
    for scores, one in zip(best, store.score(queries, damping=[0.1, 1.0]), strict=True):
        ids, values = one.top(3)
        np.testing.assert_array_equal(scores.ids, ids)
        np.testing.assert_array_equal(scores.values, values)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"damping": []}, "at least one, got none"),
        ({"damping": np.empty(0)}, "at least one, got none"),
        ({"damping": [0.1, -1]}, "of at least 0, got -1"),
        ({"damping": [0.1, "x"]}, "of at least 0, got 'x'"),
        ({"damping": [0.1, np.nan]}, "of at least 0, got "),
        ({"damping": [[0.1]]}, r"of at least 0, got \[0.1\]"),
        ({"damping": "0.1"}, "of at least 0, got '0.1'"),
        (
            {"damping": [0.1], "method": "graddot"},
            "several dampings are for methods 'influence' and 'trak', got",
        ),
    ],
)
def test_bad_dampings_are_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    store = write(tmp_path / "s", numbers(9, 95), WIDTHS)
    with pytest.raises(grass.SpecError, match=words):
        store.score(numbers(1, 95), **options)
    if "method" not in options:
        with pytest.raises(grass.SpecError, match=words):
            store.self_influence(**options)


def test_unfinished_and_empty_stores_are_refused(tmp_path: Path) -> None:
    with grass.create_store(tmp_path / "u", columns(*WIDTHS)) as writer:
        writer.append(numbers(3, 95), range(3))
    for store, words in [
        (grass.open_store(tmp_path / "u"), "is unfinished"),
        (grass.create_store(tmp_path / "e", columns(*WIDTHS)).finish(), "has no rows"),
    ]:
        with pytest.raises(grass.StoreError, match=words):
            store.self_influence()


def test_damage_is_found(tmp_path: Path) -> None:
    store = write(tmp_path / "s", numbers(9, 95), WIDTHS)
    with (store.path / "shard-00000.rows").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    with pytest.raises(grass.CorruptStoreError, match="chunk 0"):
        store.self_influence()
