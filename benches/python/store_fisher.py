"""Gathering a Fisher matrix, and scores that need it, beside the same by torch."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
import torch

import grass_rs as grass
from rows import Row, medians, threads
from store_rows import in_memory, rows_of, write

if TYPE_CHECKING:
    from collections.abc import Iterator

N, WIDTH = 8192, 4096
DAMPING = 0.4
TOP = 10


def measure() -> Iterator[Row]:
    """Measure a store of one column.

    A call that finds the store's Fisher saved beside it differs from the first call in two things: the first gathers
    the Fisher, from the rows on disk, and saves it. The difference of their times is held against torch's product of
    rows that are in memory.
    """
    matrix = rows_of(N, WIDTH)
    query = np.random.default_rng(1).standard_normal((1, WIDTH), dtype=np.float32)
    rows, fisher = torch.from_numpy(matrix), torch.zeros(WIDTH, WIDTH)
    with in_memory(4 * matrix.nbytes) as folder, threads(os.cpu_count() or 1):
        path = write(folder / "store", matrix, [WIDTH], "float32").path
        saved = path.with_name(f"{path.name}.fisher")

        def influence() -> None:
            grass.open_store(path).score(query, "influence", DAMPING, TOP)

        def gathering() -> None:
            shutil.rmtree(saved, ignore_errors=True)
            influence()

        def product() -> None:
            torch.addmm(fisher, rows.T, rows, beta=0, out=fisher)

        def solve() -> None:
            damped = fisher.double() / N
            damped.diagonal().add_(DAMPING * damped.diagonal().mean())
            torch.cholesky_solve(
                torch.from_numpy(query.T.astype(np.float64)), torch.linalg.cholesky(damped)
            )

        first, later, addmm, solved = medians(gathering, influence, product, solve)
        assert saved.exists(), f"expected the Fisher of the store at {saved}, got nothing there"
    yield Row("Fisher of 4096 columns, 8192 rows", first - later, "torch.addmm", addmm)
    what = "influence of 1 query, 4096 columns, 8192 rows"
    yield Row(what, first, "torch.addmm, Cholesky in f64", addmm + solved)
    yield Row(f"{what}, Fisher saved", later, "torch Cholesky in f64", solved)
