"""Compare masks chosen by a sample of gradients with random ones, by LDS on the demo's digits, and time the choice.

With --save, the tables go to docs/selection.md.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import grass_rs as grass
from grass_rs.cli.demo.digits import Digits, build_network, split_digits
from grass_rs.evaluate import Estimate, Recipe, estimate, random_subsets, train_together

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor, nn

PAGE = Path(__file__).parents[2] / "docs" / "selection.md"
BEGIN, END = (
    "<!-- tables: written by benches/python/selective_masks.py -->",
    "<!-- end of tables -->",
)
TRAIN, QUERIES, MODELS, SAMPLE, CACHED, TIMED = 1200, 200, 50, 256, 1000, 5
METHODS, DIMS, SEEDS = ("mask", "grass", "factgrass"), (64, 256), range(5)
WAYS = ("correlation", "second_moment", "leverage")


def loader(*tensors: Tensor) -> DataLoader[tuple[Tensor, ...]]:
    """Return a loader of examples in their order."""
    return DataLoader(TensorDataset(*tensors), 256)


class Judge:
    """The demo's digits, a network trained on them all, and networks retrained on random halves."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._stores = 0
        self.digits: Digits = split_digits(TRAIN, QUERIES, seed=seed)
        train = self.digits.train_inputs, self.digits.train_labels
        everything = np.ones((1, TRAIN), dtype=bool)
        recipe = Recipe()
        trained = train_together(
            build_network, "cross_entropy", train, everything, recipe, seed=seed
        )
        self.network: nn.Module = trained.member(0)
        self.halves = random_subsets(MODELS, TRAIN, 0.5, seed=seed + 1)
        retrained = train_together(
            build_network, "cross_entropy", train, self.halves, recipe, seed=seed + 2
        )
        query = self.digits.query_inputs, self.digits.query_labels
        self.outcomes = -retrained.losses(query).numpy()

    def select(self, by: str, seed: int) -> grass.Selection:
        """Return a selection from the first training digits."""
        sample = self.digits.train_inputs[:SAMPLE], self.digits.train_labels[:SAMPLE]
        return grass.select(
            self.network, "cross_entropy", loader(*sample), by=by, seed=seed, progress=False
        )

    def plan(self, method: str, dim: int, by: str | None, seed: int) -> grass.Plan:
        """Return a plan with masks chosen in this way, or random ones."""
        selection = None if by is None else self.select(by, seed)
        return grass.Plan.for_model(self.network, method, dim, seed=seed, selection=selection)

    def cache(self, plan: grass.Plan, count: int = TRAIN) -> tuple[grass.Attributor, grass.Store]:
        """Cache the first training digits."""
        self._stores += 1
        attributor = grass.Attributor(self.network, "cross_entropy", plan)
        rows = loader(self.digits.train_inputs[:count], self.digits.train_labels[:count])
        path = self._folder / f"{self._stores}.grass"
        return attributor, attributor.cache(rows, path, progress=False)

    def lds(self, plan: grass.Plan) -> NDArray[np.float64]:
        """Return the LDS of each query, of influence with the default damping."""
        attributor, store = self.cache(plan)
        queries = loader(self.digits.query_inputs, self.digits.query_labels)
        scores = attributor.score(queries, store, progress=False)
        return grass.lds(scores, self.halves, self.outcomes)

    def mean_lds(self, method: str, dim: int, by: str | None) -> NDArray[np.float64]:
        """Return the LDS of each query, a mean over seeds of masks and sketches."""
        return np.mean([self.lds(self.plan(method, dim, by, seed)) for seed in SEEDS], axis=0)

    def seconds(self, method: str, dim: int) -> dict[str, float]:
        """Return median seconds of caching, gathering, and choosing masks in each way, in turns."""
        found: dict[str, list[float]] = {name: [] for name in ("cache", "gather", *WAYS)}
        plan = self.plan(method, dim, None, 0)
        for turn in range(TIMED):
            start = time.perf_counter()
            self.cache(plan, CACHED)
            found["cache"].append(time.perf_counter() - start)
            for by in WAYS:
                start = time.perf_counter()
                selection = self.select(by, turn)
                gathered = time.perf_counter()
                grass.Plan.for_model(self.network, method, dim, selection=selection)
                found["gather"].append(gathered - start)
                found[by].append(time.perf_counter() - gathered)
        return {name: float(np.median(times)) for name, times in found.items()}


def signed(difference: Estimate) -> str:
    """Return a difference with its standard error."""
    return f"{difference.mean:+.3f} +- {difference.sem:.3f}"


def table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    """Return a Markdown table."""
    rows = [head, ("---",) * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def page_of(seed: int) -> str:
    """Measure, and return what the page says."""
    lds_lines, time_lines = [], []
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(Path(folder), seed)
        parameters = sum(p.numel() for p in judge.network.parameters())
        whole = estimate(judge.lds(judge.plan("mask", parameters, None, 0)))
        for method in METHODS:
            for dim in DIMS:
                random = judge.mean_lds(method, dim, None)
                chosen = [estimate(judge.mean_lds(method, dim, by) - random) for by in WAYS]
                lds_lines.append((method, f"{dim}", f"{estimate(random)}", *map(signed, chosen)))
                took = judge.seconds(method, dim)
                time_lines.append((method, f"{dim}", *(f"{took[name]:.3f}" for name in took)))
                sys.stderr.write(f"{lds_lines[-1]}\n{time_lines[-1]}\n")
    return f"""\
Printed by `python benches/python/selective_masks.py`: LDS of influence with the default damping over {QUERIES} held-out
digits, {MODELS} networks retrained on halves of {TRAIN:,}, one scored network, k coordinates a layer, masks chosen by its
first {SAMPLE} training digits. Every number is a mean over {len(SEEDS)} seeds of masks and sketches, +- the standard error over the
queries; chosen masks by their paired difference to random ones. Uncompressed: {whole}.

{table(("method", "k", "random", *WAYS), lds_lines)}

Seconds on one thread, medians of {TIMED} in turns: caching {CACHED:,} training digits, gathering the sample, and then choosing the
masks of all layers.

{table(("method", "k", f"caching {CACHED:,}", "gathering", *WAYS), time_lines)}
"""


def main() -> None:
    """Measure, print the tables, and save them where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write the tables to docs/selection.md")
    parser.add_argument("--seed", type=int, default=1, help="seed of data, networks and halves")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    grass.set_num_threads(1)
    text = page_of(arguments.seed)
    print(text)
    if arguments.save:
        before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"{PAGE} expects the lines {BEGIN!r} and {END!r} around the tables")
        PAGE.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
