"""Measure what each row type of a store loses, on FactGraSS rows of the demo's network, beside float32.

With --save, the table goes to docs/store.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import DataLoader, TensorDataset

import grass_rs as grass
from grass_rs.cli.demo.digits import build_network, split_digits
from grass_rs.evaluate import Recipe, train_together

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE = Path(__file__).parents[2] / "docs" / "store.md"
BEGIN, END = (
    "<!-- row types: written by benches/python/row_types.py -->",
    "<!-- end of row types -->",
)
HEAD = (
    "dtype",
    "bytes a row",
    "error of rows, rms",
    "error of a dot product, largest",
    "rank correlation: graddot",
    "influence",
    "same top 10: graddot",
    "influence",
)
TRAIN, QUERIES, DIM, SEED = 1200, 200, 1024, 0
METHODS = ("graddot", "influence")


def gradients(folder: Path) -> tuple[grass.Store, grass.Store]:
    """Return float32 stores of training digits and of held-out digits, by a trained network."""
    digits = split_digits(TRAIN, QUERIES, seed=SEED)
    train = digits.train_inputs, digits.train_labels
    everything = np.ones((1, TRAIN), dtype=bool)
    trained = train_together(build_network, "cross_entropy", train, everything, Recipe(), seed=SEED)
    network = trained.member(0)
    plan = grass.Plan.for_model(network, "factgrass", dim=DIM, seed=SEED)
    attributor = grass.Attributor(network, "cross_entropy", plan)

    def cached(name: str, *tensors: object) -> grass.Store:
        loader = DataLoader(TensorDataset(*tensors), 256)
        return attributor.cache(loader, folder / name, progress=sys.stderr.isatty())

    return cached("train", *train), cached("queries", digits.query_inputs, digits.query_labels)


def rank_correlation(left: NDArray[np.float32], right: NDArray[np.float32]) -> float:
    """Return the mean over queries of Spearman's correlation of (n_query, n) scores."""
    ranks = [scores.argsort(axis=1).argsort(axis=1).astype(float) for scores in (left, right)]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    lengths = [np.linalg.norm(rank, axis=1) for rank in centred]
    products = (centred[0] * centred[1]).sum(axis=1)
    return float((products / lengths[0] / lengths[1]).mean())


def same_top(left: grass.Scores, right: grass.Scores, k: int = 10) -> float:
    """Return which share of the best k of each query is among the best k of the other's."""
    pairs = zip(left.top(k)[0], right.top(k)[0], strict=True)
    return float(np.mean([len(set(a) & set(b)) / k for a, b in pairs]))


def measure(folder: Path) -> list[tuple[str, ...]]:
    """Return a line of the table a dtype."""
    exact, held_out = gradients(folder)
    rows, queries = exact[:], held_out[:]
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
    right = {method: exact.score(queries, method) for method in METHODS}
    lines = []
    for dtype in ("float32", "float16", "bfloat16", "int8"):
        columns, marks = exact.columns, exact.fingerprints
        with grass.create_store(folder / dtype, columns, dtype, fingerprints=marks) as writer:
            writer.append(rows, exact.ids)
            store = writer.finish()
        errors = np.linalg.norm(store[:] - rows, axis=1) / np.linalg.norm(rows, axis=1)
        scores = {method: store.score(queries, method) for method in METHODS}
        dots = abs(scores["graddot"].values - right["graddot"].values) / lengths
        ranks = [rank_correlation(scores[m].values, right[m].values) for m in METHODS]
        tops = [same_top(scores[m], right[m]) for m in METHODS]
        size = ((folder / dtype / "shard-00000.rows").stat().st_size - 4096) // len(store)
        lines.append(
            (
                dtype,
                f"{size:,}",
                f"{np.sqrt((errors**2).mean()):.1e}",
                f"{dots.max():.1e}",
                *(f"{rank:.6f}" for rank in ranks),
                *(f"{100 * top:.1f}%" for top in tops),
            )
        )
    return lines


def page_of(lines: list[tuple[str, ...]], width: int) -> str:
    """Return what the page says."""
    table = [HEAD, ("---",) * len(HEAD), *lines]
    text = "\n".join("| " + " | ".join(line) + " |" for line in table)
    return f"""\
Printed by `python benches/python/row_types.py`: FactGraSS rows of {width:,} numbers of {TRAIN:,} handwritten digits, {QUERIES}
held-out digits as queries, scores beside those of float32 rows. The error of a row is relative to its length, that of a
dot product to the lengths of query and row; the last four are means over the queries.

{text}
"""


def main() -> None:
    """Measure, print the table, and save it where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write the table to docs/store.md")
    save = parser.parse_args().save
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(Path(folder))
        width = grass.open_store(Path(folder) / "float32").width
    text = page_of(lines, width)
    print(text)
    if save:
        before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"{PAGE} expects the lines {BEGIN!r} and {END!r} around the table")
        PAGE.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
