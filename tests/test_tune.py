"""Choosing a method and a damping: by outcomes that are planted, and by the rows alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import grass_rs as grass
from grass_rs.cli.main import main
from grass_rs.evaluate import effective_directions, random_subsets
from stores import columns, numbers, write

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS = (6, 9)
N, QUERIES, MODELS = 60, 8, 40


def rows_of(n: int, seed: int = 0) -> np.ndarray:
    """Return rows (n, 15) whose coordinates have unlike sizes, so that the damping matters."""
    return numbers(n, sum(WIDTHS), seed) * np.geomspace(0.1, 10, sum(WIDTHS), dtype=np.float32)


@pytest.fixture
def store(tmp_path: Path) -> grass.Store:
    return write(tmp_path / "train", rows_of(N), WIDTHS)


SUBSETS = random_subsets(MODELS, N, 0.5, seed=3)


def plain_influence(rows: np.ndarray, queries: np.ndarray, damping: float) -> np.ndarray:
    """Return the influence (n_query, n) in float64, a Fisher a column."""
    scores = np.zeros((len(queries), len(rows)))
    for begin, end in ((0, WIDTHS[0]), (WIDTHS[0], sum(WIDTHS))):
        g, q = (part[:, begin:end].astype(np.float64) for part in (rows, queries))
        fisher = g.T @ g / len(g)
        ridge = damping * np.trace(fisher) / len(g)
        scores += q @ np.linalg.solve(fisher + ridge * np.eye(end - begin), g.T)
    return scores


def outcomes_of(scores: np.ndarray, noise: float = 0.0) -> np.ndarray:
    """Return outcomes (m, n_query) that these scores predict but for noise of this size."""
    exact = SUBSETS @ scores.T
    drawn = np.random.default_rng(5).standard_normal(exact.shape)
    return exact + noise * exact.std(axis=0) * drawn


def plain_directions(rows: np.ndarray, widths: tuple[int, ...]) -> float:
    """Return tr(F)^2 / tr(F^2), a mean over columns, from the eigenvalues of F in float64."""
    found = []
    for part in np.split(rows.astype(np.float64), np.cumsum(widths)[:-1], axis=1):
        eigenvalues = np.linalg.eigvalsh(part.T @ part / len(part))
        found.append(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())
    return float(np.mean(found))


@pytest.mark.parametrize("planted", [0.05, 1.6, 25.6])
def test_the_planted_damping_is_chosen(store: grass.Store, planted: float) -> None:
    queries = rows_of(QUERIES, 1)
    outcomes = outcomes_of(plain_influence(rows_of(N), queries, planted))
    tuning = grass.tune(store, queries, subsets=SUBSETS, outcomes=outcomes)
    assert (tuning.method, tuning.damping) == ("influence", planted)
    best = max(tuning.table, key=lambda row: row.value)
    assert best.damping == planted
    assert best.value == pytest.approx(1, abs=1e-9)
    assert tuning.directions is None


@pytest.mark.parametrize("method", ["graddot", "gradcos"])
def test_the_planted_method_is_chosen(store: grass.Store, method: str) -> None:
    queries = rows_of(QUERIES, 1)
    rows = rows_of(N).astype(np.float64)
    if method == "gradcos":
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    outcomes = outcomes_of(queries.astype(np.float64) @ rows.T)
    tuning = grass.tune(store, queries, subsets=SUBSETS, outcomes=outcomes)
    assert tuning.method == method
    assert tuning.damping == 0.4
    (chosen,) = [row for row in tuning.table if row.method == method]
    assert chosen.damping is None


def test_the_table_is_that_of_lds(store: grass.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = rows_of(QUERIES, 1)
    outcomes = outcomes_of(plain_influence(rows_of(N), queries, 1.6), noise=1)
    # Queries block by block, three at a time.
    monkeypatch.setattr("grass_rs.evaluate.tuning._SCORES_BYTES", 3 * 4 * N * 2)
    tuning = grass.tune(store, queries, subsets=SUBSETS, outcomes=outcomes, dampings=[6.4, 0.1])
    assert [(row.method, row.damping) for row in tuning.table] == [
        ("influence", 0.1),
        ("influence", 6.4),
        ("graddot", None),
        ("gradcos", None),
    ]
    for row in tuning.table[:2]:
        assert row.damping is not None
        expected = grass.lds(plain_influence(rows_of(N), queries, row.damping), SUBSETS, outcomes)
        assert row.lds is not None
        assert row.value == row.lds.mean == pytest.approx(expected.mean(), abs=1e-9)
        assert row.lds.sem == pytest.approx(expected.std(ddof=1) / QUERIES**0.5, abs=1e-9)
        assert row.lds.n == QUERIES


def test_a_tie_keeps_the_default(store: grass.Store) -> None:
    queries = rows_of(QUERIES, 1)
    # Nothing predicts these, so that the best wins by chance.
    outcomes = np.random.default_rng(1).standard_normal((MODELS, QUERIES))
    options: dict[str, Any] = {"subsets": SUBSETS, "outcomes": outcomes, "methods": ["influence"]}
    both = grass.tune(store, queries, dampings=[0.4, 6.4], **options)
    default, other = both.table
    assert other.value > default.value
    assert both.damping == 0.4
    alone = grass.tune(store, queries, dampings=[0.1, 6.4], **options)
    assert alone.damping == max(alone.table, key=lambda row: row.value).damping


def test_queries_may_be_a_store(store: grass.Store, tmp_path: Path) -> None:
    queries = write(tmp_path / "queries", rows_of(QUERIES, 1), WIDTHS)
    truth = {"subsets": SUBSETS, "outcomes": outcomes_of(store.score(queries).values, 1)}
    assert grass.tune(store, queries, **truth) == grass.tune(store, queries[:], **truth)
    other = write(tmp_path / "other", rows_of(QUERIES, 1), (15,))
    with pytest.raises(grass.StoreMismatchError):
        grass.tune(store, other, **truth)


# Without ground truth


@pytest.mark.parametrize("n", [1, 5, N])
def test_directions_equal_a_float64_twin(tmp_path: Path, n: int) -> None:
    store = write(tmp_path / "s", rows_of(n), WIDTHS)
    assert effective_directions(store) == pytest.approx(
        plain_directions(rows_of(n), WIDTHS), rel=1e-9
    )


def test_directions_of_known_spectra(tmp_path: Path) -> None:
    flat = np.concatenate([1e20 * np.eye(8), -1e20 * np.eye(8)]).astype(np.float32)
    assert effective_directions(write(tmp_path / "flat", flat, (8,))) == pytest.approx(8)
    parallel = np.outer(np.arange(1, 6), np.ones(4)).astype(np.float32)
    assert effective_directions(write(tmp_path / "one", parallel, (4,))) == pytest.approx(1)
    # A column of zeros says nothing.
    beside = np.concatenate([flat, 0 * flat], axis=1)
    assert effective_directions(write(tmp_path / "beside", beside, (8, 8))) == pytest.approx(8)


def test_directions_of_a_sample_have_no_bias(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(4000)
    store = write(tmp_path / "s", rows, WIDTHS)
    monkeypatch.setattr("grass_rs.evaluate.tuning._MOST_ROWS", 500)
    assert effective_directions(store) == pytest.approx(plain_directions(rows, WIDTHS), rel=0.05)
    assert effective_directions(store) != plain_directions(rows, WIDTHS)


def test_the_nearest_damping_to_the_rule_is_chosen(tmp_path: Path) -> None:
    # Sixteen equal directions: half of their root is 2.
    rows = np.tile(np.eye(16, dtype=np.float32), (3, 1))
    store = write(tmp_path / "s", rows, (16,))
    tuning = grass.tune(store, dampings=[0.5, 1.5, 3.0, 16.0])
    assert tuning.directions == pytest.approx(16)
    assert (tuning.method, tuning.damping) == ("influence", 1.5)
    expected = -np.abs(np.log2(np.array([0.5, 1.5, 3.0, 16.0]) / 2))
    np.testing.assert_allclose([row.value for row in tuning.table], expected, atol=1e-9)
    assert all(row.lds is None for row in tuning.table)


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"subsets": SUBSETS}, grass.SpecError, "got no outcomes"),
    ({"outcomes": np.ones((MODELS, QUERIES))}, grass.SpecError, "got no subsets"),
    ({"dampings": []}, grass.SpecError, "at least one"),
    ({"dampings": 0.4}, grass.SpecError, "a list of dampings"),
    ({"dampings": [0.0]}, grass.SpecError, "dampings above 0, got 0.0"),
    ({"dampings": [np.nan]}, grass.SpecError, "dampings above 0, got nan"),
    ({"dampings": ["0.4"]}, grass.SpecError, "dampings above 0"),
    ({"methods": []}, grass.SpecError, "of methods"),
    ({"methods": ["influenc"]}, grass.SpecError, "did you mean 'influence'"),
    ({"methods": ["graddot"]}, grass.SpecError, "'influence' among the methods"),
    ({"outcomes": np.ones((MODELS, 3))}, grass.ShapeError, "outcomes (m, 8)"),
    ({"outcomes": np.ones((MODELS, QUERIES))}, grass.DataError, "at least 2 queries"),
    ({"outcomes": np.full((MODELS, QUERIES), np.nan)}, grass.NonFiniteError, "finite outcomes"),
    ({"subsets": SUBSETS[:, :9]}, grass.ShapeError, "to fit scores"),
    ({"subsets": SUBSETS.astype(int)}, grass.UnsupportedArrayError, "bool subsets"),
    ({"subsets": np.ones_like(SUBSETS)}, grass.DataError, "different examples"),
    ({"subsets": np.zeros_like(SUBSETS)}, grass.DataError, "trained on some example"),
    ({"queries": None}, grass.UnsupportedArrayError, "score expects"),
    ({"queries": np.ones((2, 3))}, grass.ShapeError, "(n, 15)"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_input_is_one_line(
    store: grass.Store, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    truth = {"subsets": SUBSETS, "outcomes": np.random.default_rng(0).random((MODELS, QUERIES))}
    alone = error is grass.SpecError
    given = {"queries": rows_of(QUERIES, 1), **({} if alone else truth), **arguments}
    with pytest.raises(error) as raised:
        grass.tune(store, **given)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_stores_without_rows_are_refused(tmp_path: Path) -> None:
    with grass.create_store(tmp_path / "begun", columns(4)) as writer:
        writer.append(np.ones((2, 4)), [0, 1])
        writer.commit()
        with pytest.raises(grass.StoreError, match="unfinished"):
            grass.tune(grass.open_store(tmp_path / "begun"))
    with pytest.raises(grass.StoreError, match="without rows"):
        grass.tune(write(tmp_path / "none", np.ones((0, 4), np.float32), (4,)))
    with pytest.raises(grass.DataError, match="not all 0"):
        grass.tune(write(tmp_path / "zeros", np.zeros((3, 4), np.float32), (4,)))


# The command line


def test_the_command_prints_the_table(
    store: grass.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = write(tmp_path / "queries", rows_of(QUERIES, 1), WIDTHS)
    np.save(tmp_path / "s.npy", SUBSETS)
    outcomes = outcomes_of(plain_influence(rows_of(N), queries[:], 3.2))
    np.save(tmp_path / "o.npy", outcomes)
    command = ["tune", str(store.path), str(queries.path)]
    files = ["--subsets", str(tmp_path / "s.npy"), "--outcomes", str(tmp_path / "o.npy")]
    assert main([*command, *files]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["method", "damping", "LDS", "s.e.m.", "chosen"]
    assert len(lines) == 1 + 12 + 2
    assert [line[:2] for line in lines if line[-1] == "*"] == [["influence", "3.2"]]
    assert main(["tune", str(store.path)]) == 0
    alone = capsys.readouterr().out
    assert alone == f"{grass.tune(store)}\n"
    assert alone.count("*") == 1


def test_a_file_that_is_no_array_is_one_line(
    store: grass.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.npy").write_text("no array")
    path = str(tmp_path / "s.npy")
    for wrong in (path, str(tmp_path / "absent.npy")):
        command = ["tune", str(store.path), str(store.path), "--subsets", wrong, "--outcomes", path]
        assert main(command) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.count("\n") == 1
