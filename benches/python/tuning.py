"""How much LDS a choice of damping without ground truth gives away, against the best in the grid.

    OMP_NUM_THREADS=1 python benches/python/tuning.py FOLDER [TASK ...]

trains the models of `tuning_tasks.py` in FOLDER once (minutes), and prints a row for every task, compressor
and k: the best damping and its mean LDS with its standard error, then the damping that each choice makes and
its regret, the best LDS less its own.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

import grass_rs as grass
from grass_rs.evaluate import estimate
from grass_rs.evaluate.tuning import DAMPINGS
from tuning_tasks import TASKS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from grass_rs.evaluate import Benchmark

COMPRESSORS = ("factgrass", "grass", "tile", "kfac_grass")
SIZES = (64, 256, 1024)
DEFAULT = 0.4
WHITENED, OTHERS = 6.4, 0.8


def likelihood(store: grass.Store, queries: NDArray[np.float32]) -> float:
    """Return the damping under which the queries are likeliest, as drawn from N(0, F + lambda I)."""
    total = np.zeros(len(DAMPINGS))
    for column in store.columns:
        span = slice(column.offset, column.offset + column.width)
        g, q = (part[:, span].astype(np.float64) for part in (store[:], queries))
        values, vectors = np.linalg.eigh(g.T @ g / len(g))
        squares = ((q @ vectors) ** 2).mean(axis=0)
        for place, damping in enumerate(DAMPINGS):
            variances = values.clip(0) + damping * values.sum() / len(g)
            total[place] -= (squares / variances + np.log(variances)).sum() / 2
    return DAMPINGS[int(total.argmax())]


def measure(name: str, benchmark: Benchmark) -> Iterator[dict[str, float]]:
    """Print a row for every compressor and k, and yield the regrets."""
    model, loss = benchmark.model(), benchmark.loss
    train, queries = benchmark.train_loader(), benchmark.query_loader()
    moments = grass.second_moments(model, loss, train, progress=False)
    for compressor in COMPRESSORS:
        for size in SIZES:
            given = moments if compressor == "kfac_grass" else None
            plan = grass.Plan.for_model(model, compressor, size, moments=given)
            attributor = grass.Attributor(model, loss, plan)
            with tempfile.TemporaryDirectory() as folder:
                store = attributor.cache(train, Path(folder) / "store", progress=False)
                rows = attributor.compress(queries, progress=False)
                swept = store.score(rows, damping=DAMPINGS)
                lds = {
                    damping: estimate(grass.lds(scores, benchmark.subsets, benchmark.outcomes))
                    for damping, scores in zip(DAMPINGS, swept, strict=True)
                }
                chosen = {
                    "tune": grass.tune(store, dampings=DAMPINGS).damping,
                    "0.4": DEFAULT,
                    "0.8": OTHERS,
                    "0.8, whitened 6.4": WHITENED if compressor == "kfac_grass" else OTHERS,
                    "1.6": 1.6,
                    "likelihood": likelihood(store, rows),
                }
            best = max(DAMPINGS, key=lambda damping: lds[damping].mean)
            regrets = {
                choice: lds[best].mean - lds[damping].mean for choice, damping in chosen.items()
            }
            told = "\t".join(f"{chosen[choice]:g}\t{regrets[choice]:.4f}" for choice in chosen)
            print(f"{name}\t{compressor}\t{size}\t{best:g}\t{lds[best]}\t{told}", flush=True)
            yield {**regrets, "s.e.m.": lds[best].sem}


def main() -> None:
    """Measure the tasks of the command line, all of them by default."""
    torch.set_num_threads(1)
    grass.set_num_threads(1)
    folder, *names = sys.argv[1:]
    everything = []
    for name in names or TASKS:
        regrets = list(measure(name, TASKS[name](Path(folder))))
        everything += regrets
        print(f"mean of {name}\t{means(regrets)}", flush=True)
    print(f"mean of all\t{means(everything)}")


def means(rows: list[dict[str, float]]) -> str:
    """Return the mean and the largest of every regret."""
    return "\t".join(
        f"{choice}: {np.mean([row[choice] for row in rows]):.4f} "
        f"(at most {max(row[choice] for row in rows):.4f})"
        for choice in rows[0]
    )


if __name__ == "__main__":
    main()
