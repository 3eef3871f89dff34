"""Scores of chosen columns and several checkpoints, equal to the formulas in double precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import grass_rs as grass
from stores import DTYPES, numbers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

WIDTHS = {"fc1": 5, "fc2": 7, "head": 4}
CHECKPOINTS = 3
ROWS = 40
RATES = [0.5, 0.25, 2.0]
QUERIES = 6


def columns_of(checkpoints: int | None, *, weighted: bool) -> list[grass.Column]:
    """Return blocks, and TRAK's weights, at some checkpoints; None for the names of none."""
    columns: list[grass.Column] = []
    for number in range(checkpoints or 1):
        suffix = "" if checkpoints is None else f"@{number}"
        parts = [(name, width, {"type": "sjlt"}) for name, width in WIDTHS.items()]
        if weighted:
            parts.append(("(weight)", 1, {"type": "trak_weight"}))
        for name, width, spec in parts:
            offset = columns[-1].offset + columns[-1].width if columns else 0
            columns.append(grass.Column(name + suffix, offset, width, spec))
    return columns


def store_of(
    path: Path,
    rows: int = ROWS,
    *,
    checkpoints: int | None = CHECKPOINTS,
    weighted: bool = True,
    dtype: str = "float32",
    seed: int = 0,
) -> grass.Store:
    """Write rows of normal numbers, and weights from 0 to 1."""
    columns = columns_of(checkpoints, weighted=weighted)
    values = numbers(rows, columns[-1].offset + columns[-1].width, seed)
    for column in columns:
        if column.spec["type"] == "trak_weight":
            values[:, column.offset] = np.random.default_rng(seed).random(rows)
    with grass.create_store(path, columns, dtype) as writer:
        writer.append(values, np.arange(rows) + 100)
        return writer.finish()


def parts_of(store: grass.Store, names: Sequence[str]) -> list[slice]:
    held = {column.name: column for column in store.columns}
    return [slice(held[n].offset, held[n].offset + held[n].width) for n in names]


def inverse(rows: np.ndarray, damping: float) -> np.ndarray:
    """Return (F + lambda I)^-1 of these rows."""
    fisher = rows.T @ rows / len(rows)
    ridge = damping * np.trace(fisher) / len(rows)
    return np.linalg.inv(fisher + ridge * np.eye(len(fisher)))


def influence(
    store: grass.Store, queries: np.ndarray, blocks: Sequence[Sequence[str]], damping: float
) -> np.ndarray:
    """Return q^T (F + lambda I)^-1 g, summed over blocks, each of some columns side by side."""
    rows, queries = store[:].astype(np.float64), queries.astype(np.float64)
    total = np.zeros((len(queries), len(rows)))
    for block in blocks:
        part = np.r_[tuple(parts_of(store, block))]
        total += queries[:, part] @ inverse(rows[:, part], damping) @ rows[:, part].T
    return total


def products(
    store: grass.Store, queries: np.ndarray, weights: dict[str, float] | None = None
) -> np.ndarray:
    """Return the sum over columns of weight times q^T g."""
    rows, queries = store[:].astype(np.float64), queries.astype(np.float64)
    total = np.zeros((len(queries), len(rows)))
    for name, weight in (weights or {}).items():
        (part,) = parts_of(store, [name])
        total += weight * queries[:, part] @ rows[:, part].T
    return total


def at(number: int, names: Sequence[str] = tuple(WIDTHS)) -> list[str]:
    return [f"{name}@{number}" for name in names]


def close(found: np.ndarray, exact: np.ndarray) -> None:
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5 * np.abs(exact).max())


def mean_weight(store: grass.Store, checkpoints: Sequence[int] = range(CHECKPOINTS)) -> np.ndarray:
    parts = parts_of(store, [f"(weight)@{number}" for number in checkpoints])
    mean: np.ndarray = np.mean([store[:].astype(np.float64)[:, part.start] for part in parts], 0)
    return mean


@pytest.fixture
def store(tmp_path: Path) -> grass.Store:
    return store_of(tmp_path / "s")


@pytest.fixture
def queries(store: grass.Store) -> np.ndarray:
    return numbers(QUERIES, store.width, seed=1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_tracin_sums_products_times_learning_rates(tmp_path: Path, dtype: str) -> None:
    store = store_of(tmp_path / "s", dtype=dtype)
    queries = numbers(QUERIES, store.width, seed=1)
    weights = {name: RATES[c] for c in range(CHECKPOINTS) for name in at(c)}
    scores = store.score(queries, "tracin", learning_rates=RATES)
    close(scores.values, products(store, queries, weights))
    assert (scores.method, scores.damping) == ("tracin", None)
    given = np.array(RATES, np.float32)
    same = store.score(queries, "tracin", learning_rates=given).values
    np.testing.assert_array_equal(same, scores.values)


def test_a_rate_of_zero_leaves_a_checkpoint_out(store: grass.Store, queries: np.ndarray) -> None:
    found = store.score(queries, "tracin", learning_rates=[0, 1, 0]).values
    alone = store.score(queries, "graddot", columns="*@1").values
    np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize("dtype", DTYPES)
def test_trak_is_mean_influence_times_the_rows_mean_weight(tmp_path: Path, dtype: str) -> None:
    store = store_of(tmp_path / "s", dtype=dtype)
    queries = numbers(QUERIES, store.width, seed=1)
    blocks = [[name] for c in range(CHECKPOINTS) for name in at(c)]
    exact = influence(store, queries, blocks, 0.3) / CHECKPOINTS * mean_weight(store)
    scores = store.score(queries, "trak", 0.3)
    close(scores.values, exact)
    assert (scores.method, scores.damping) == ("trak", 0.3)
    for scored, damping in zip(store.score(queries, "trak", [0.3, 2]), (0.3, 2), strict=True):
        exact = influence(store, queries, blocks, damping) / CHECKPOINTS * mean_weight(store)
        close(scored.values, exact)


def test_influence_and_products_are_means_over_checkpoints(
    store: grass.Store, queries: np.ndarray
) -> None:
    blocks = [[name] for c in range(CHECKPOINTS) for name in at(c)]
    close(store.score(queries).values, influence(store, queries, blocks, 0.4) / CHECKPOINTS)
    weights = dict.fromkeys((name for (name,) in blocks), 1 / CHECKPOINTS)
    close(store.score(queries, "graddot").values, products(store, queries, weights))
    rows = store[:].astype(np.float64)
    selves = sum(
        np.einsum("ij,jk,ik->i", rows[:, part], inverse(rows[:, part], 0.4), rows[:, part])
        for (name,) in blocks
        for part in parts_of(store, [name])
    )
    close(store.self_influence(), selves / CHECKPOINTS)


def test_cosines_are_of_the_columns_that_count(store: grass.Store, queries: np.ndarray) -> None:
    for names, columns in ((["fc1@0", "head@2"], ["fc1@0", "head@2"]), (at(1), "*@1")):
        part = np.r_[tuple(parts_of(store, names))]
        left, right = queries[:, part].astype(np.float64), store[:][:, part].astype(np.float64)
        lengths = np.outer(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))
        found = store.score(queries, "gradcos", columns=columns).values
        np.testing.assert_allclose(found, left @ right.T / lengths, atol=1e-6)


@pytest.mark.parametrize(
    ("columns", "names"),
    [
        ("fc2", ["fc2@0", "fc2@1", "fc2@2"]),
        (["fc*@0", "head@0"], at(0)),
        (("head@2",), ["head@2"]),
        ("*[12]@[01]", ["fc1@0", "fc2@0", "fc1@1", "fc2@1"]),
    ],
)
def test_columns_choose_by_name_and_pattern(
    store: grass.Store, queries: np.ndarray, columns: Any, names: list[str]
) -> None:
    used = len({name[-1] for name in names})
    blocks = [[name] for name in names]
    exact = influence(store, queries, blocks, 0.4) / used
    close(store.score(queries, columns=columns).values, exact)
    weighed = exact * mean_weight(store, sorted({int(name[-1]) for name in names}))
    close(store.score(queries, "trak", columns=columns).values, weighed)
    weights = dict.fromkeys(names, 1 / used)
    close(
        store.score(queries, "graddot", columns=columns).values, products(store, queries, weights)
    )
    found = store.precondition(queries, columns=columns)
    part = np.r_[tuple(parts_of(store, names))]
    assert (np.delete(found, part, axis=1) == 0).all()
    assert (found[:, part] != 0).all()


def test_columns_that_are_left_out_can_be_singular(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", rows=6, checkpoints=None)
    queries = numbers(QUERIES, store.width, seed=1)
    with pytest.raises(grass.SpecError, match='column "fc2" with damping 0e0 is singular'):
        store.score(queries, damping=0)
    found = store.score(queries, damping=0, columns=["fc1", "head"]).values
    np.testing.assert_allclose(
        found, influence(store, queries, [["fc1"], ["head"]], 0), rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("rows", [ROWS, 10])
def test_one_fisher_block_a_row(tmp_path: Path, rows: int) -> None:
    # Of ten rows each block has more coordinates than there are rows.
    store = store_of(tmp_path / "s", rows)
    queries = numbers(QUERIES, store.width, seed=1)
    blocks = [at(number) for number in range(CHECKPOINTS)]
    before = store.score(queries).values
    for _ in range(2):  # gathered, and saved
        scores = store.score(queries, fisher="row")
        assert scores.damping == 1.0
        close(scores.values, influence(store, queries, blocks, 1.0) / CHECKPOINTS)
        close(
            store.score(queries, "trak", 0.2, fisher="row").values,
            influence(store, queries, blocks, 0.2) / CHECKPOINTS * mean_weight(store),
        )
        values = store[:].astype(np.float64)
        selves = np.zeros(rows)
        for block in blocks:
            part = values[:, np.r_[tuple(parts_of(store, block))]]
            selves += np.einsum("ij,jk,ik->i", part, inverse(part, 1.0), part) / CHECKPOINTS
        close(store.self_influence(fisher="row"), selves)
    pair = ["fc1@1", "fc2@1"]
    found = store.score(queries, damping=0.5, fisher="row", columns=pair).values
    close(found, influence(store, queries, [pair], 0.5))
    np.testing.assert_array_equal(store.score(queries).values, before)
    saved = {file.name for file in store.path.with_name("s.fisher").glob("*.fisher")}
    assert {"column-00000.fisher", "columns-00000-00002.fisher"} <= {
        name.replace(".double", "") for name in saved
    }


@pytest.mark.parametrize("fisher", ["layer", "row"])
@pytest.mark.parametrize("rows", [ROWS, 6])
def test_products_of_preconditioned_queries_are_influence(
    tmp_path: Path, fisher: str, rows: int
) -> None:
    # Of six rows some blocks have more coordinates than there are rows.
    store = store_of(tmp_path / "s", rows)
    queries = numbers(QUERIES, store.width, seed=1)
    solved = store.precondition(queries, 0.7, fisher=fisher)
    assert (solved.dtype, solved.shape) == (np.float32, queries.shape)
    values = store[:].astype(np.float64)
    for number in range(CHECKPOINTS):
        blocks = [[name] for name in at(number)] if fisher == "layer" else [at(number)]
        for block in blocks:
            part = np.r_[tuple(parts_of(store, block))]
            close(solved[:, part], queries[:, part] @ inverse(values[:, part], 0.7))
        assert (solved[:, parts_of(store, [f"(weight)@{number}"])[0]] == 0).all()
    exact = store.score(queries, damping=0.7, fisher=fisher).values
    close(store.score(solved, "graddot").values, exact)
    default = {"layer": 0.4, "row": 1.0}[fisher]
    np.testing.assert_array_equal(
        store.precondition(queries, fisher=fisher),
        store.precondition(queries, default, fisher=fisher),
    )


def test_little_damping_is_solved_in_double_precision(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", 8, checkpoints=None)
    queries = numbers(QUERIES, store.width, seed=1)
    found = store.precondition(queries, 1e-6, columns="fc2")
    (part,) = parts_of(store, ["fc2"])
    exact = queries[:, part].astype(np.float64) @ inverse(
        store[:].astype(np.float64)[:, part], 1e-6
    )
    np.testing.assert_allclose(found[:, part], exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


METHODS: list[dict[str, Any]] = [
    {"method": "tracin", "learning_rates": RATES},
    {"method": "trak", "damping": 0.3},
    {"method": "trak", "fisher": "row"},
    {"method": "gradcos", "columns": ["fc1@0", "head@2"]},
    {"columns": "*@1"},
]


@pytest.mark.parametrize("options", METHODS)
def test_the_best_k_and_files_are_those_of_all(
    tmp_path: Path, store: grass.Store, queries: np.ndarray, options: dict[str, Any]
) -> None:
    whole = store.score(queries, **options)
    ids, values = whole.top(7)
    best = store.score(queries, top_k=7, **options)
    np.testing.assert_array_equal(best.ids, ids)
    np.testing.assert_array_equal(best.values, values)
    written = store.score(queries, out=tmp_path / "a.npy", **options)
    np.testing.assert_array_equal(written.values, whole.values)
    held = numbers(QUERIES, store.width, seed=1)
    with grass.create_store(tmp_path / "q", store.columns) as writer:
        writer.append(held, np.arange(QUERIES))
        stored = writer.finish()
    np.testing.assert_array_equal(store.score(stored, **options).values, whole.values)
    for query in (0, 5):
        one = store.score(queries[query : query + 1], **options).values
        np.testing.assert_array_equal(one[0], whole.values[query])


def test_rows_longer_than_a_buffer_have_the_same_weights(tmp_path: Path) -> None:
    width = 300_000
    columns = [
        grass.Column("a", 0, width, {}),
        grass.Column("(weight)", width, 1, {"type": "trak_weight"}),
    ]
    rows = numbers(3, width + 1)
    with grass.create_store(tmp_path / "s", columns) as writer:
        writer.append(rows, np.arange(3))
        store = writer.finish()
    queries = numbers(2, width + 1, seed=1)
    plain = store.score(queries).values.astype(np.float64)
    close(store.score(queries, "trak").values, plain * rows[:, -1])
    cosines = store.score(queries, "gradcos").values
    left, right = queries[:, :-1].astype(np.float64), rows[:, :-1].astype(np.float64)
    lengths = np.outer(np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1))
    np.testing.assert_allclose(cosines, left @ right.T / lengths, atol=1e-6)


def test_names_with_an_end_of_their_own_are_no_checkpoints(tmp_path: Path) -> None:
    columns = [grass.Column("a@1", 0, 3, {}), grass.Column("b@2", 3, 2, {})]
    with grass.create_store(tmp_path / "s", columns) as writer:
        writer.append(numbers(4, 5), np.arange(4))
        store = writer.finish()
    queries = numbers(2, 5, seed=1)
    exact = queries.astype(np.float64) @ store[:].T.astype(np.float64)
    close(store.score(queries, "graddot").values, exact)
    close(store.score(queries, "tracin", learning_rates=[3]).values, 3 * exact)


TRACIN = "method 'tracin' expects learning_rates, one for each of 3 checkpoints, got"
RATE = "learning_rates must be finite numbers of at least 0, got"
NAMES = "columns expects names of blocks or patterns of them, got"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "tracin"}, f"{TRACIN} none"),
        ({"method": "tracin", "learning_rates": [0.1, 0.2]}, f"{TRACIN} 2"),
        ({"method": "tracin", "learning_rates": []}, f"{TRACIN} 0"),
        ({"method": "tracin", "learning_rates": 0.1}, f"{TRACIN} a float"),
        ({"method": "tracin", "learning_rates": "123"}, f"{TRACIN} a str"),
        ({"method": "tracin", "learning_rates": np.ones((3, 1))}, f"{TRACIN} an array of shape"),
        ({"method": "tracin", "learning_rates": np.ma.array(RATES)}, f"{TRACIN} a Masked"),
        ({"method": "tracin", "learning_rates": [1, 1, -0.1]}, f"{RATE} float -0.1 for .* 2"),
        ({"method": "tracin", "learning_rates": [1, np.nan, 1]}, f"{RATE} float nan for .* 1"),
        ({"method": "tracin", "learning_rates": [np.inf, 1, 1]}, f"{RATE} float inf"),
        ({"method": "tracin", "learning_rates": [10**5000, 1, 1]}, f"{RATE} int of many digits"),
        ({"method": "tracin", "learning_rates": [True, 1, 1]}, f"{RATE} bool True"),
        ({"method": "tracin", "learning_rates": ["1", 1, 1]}, f"{RATE} str '1'"),
        (
            {"learning_rates": RATES},
            "learning_rates are for method 'tracin', got method 'influence'",
        ),
        ({"method": "tracin", "learning_rates": RATES, "damping": [1, 2]}, "several dampings are"),
        ({"method": "tracn"}, "method must be one of .* did you mean 'tracin'"),
        ({"fisher": "rows"}, "fisher must be one of 'layer', 'row', got 'rows'"),
        ({"fisher": None}, "fisher must be one of 'layer', 'row', got None"),
        ({"fisher": ["row"]}, "fisher must be one of 'layer', 'row'"),
        (
            {"fisher": "row", "method": "graddot"},
            "fisher='row' is for methods 'influence' and 'trak'",
        ),
        ({"fisher": "row", "columns": ["fc1@0", "head@0"]}, "got a gap before column 2"),
        ({"columns": "fc3"}, "no block is called 'fc3': the store has 'fc1@0', 'fc2@0'"),
        ({"columns": ["fc1", "fc1@3"]}, "no block is called 'fc1@3'"),
        ({"columns": "(weight)"}, "no block is called"),
        ({"columns": []}, "columns expects at least one name of a block, got none"),
        ({"columns": 3}, f"{NAMES} 3"),
        ({"columns": [3]}, f"{NAMES} 3 among"),
        ({"columns": b"fc1"}, f"{NAMES} b'fc1'"),
    ],
)
def test_what_is_refused(
    store: grass.Store, queries: np.ndarray, options: dict[str, Any], words: str
) -> None:
    for out in (None, store.path.with_name("a.npy")):
        with pytest.raises(grass.SpecError, match=words) as caught:
            store.score(queries, out=out, **options)
        assert "\n" not in str(caught.value)
    assert not list(store.path.parent.glob("a.*"))


def test_trak_needs_its_columns(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", weighted=False)
    with pytest.raises(grass.SpecError, match=r"got 0 for 3: cache with loss='margin'$"):
        store.score(numbers(1, store.width), "trak")
