"""The best rows of queries by bergson (https://github.com/EleutherAI/bergson) and by this library, of the same rows.

Run by `store_bergson.py`, by the Python of an environment that has bergson; prints rows in JSON. bergson's command
`query` loads a model, computes the query's gradient, gives it to `Attributor.search` and prints texts. `Attributor`
alone is measured, on an index as `bergson build` writes it. Its fixed costs are in the times of "index opened" and left
out of those of "index in memory"; importing it as well is in those of a process of its own. An index of f32 is mapped
when it is opened, one of bf16 is copied as f32, and for cosines, which bergson's own example asks for, rows are divided
by their norms in memory.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from bergson.gradients import GradientProcessor
from bergson.query.attributor import Attributor

import grass_rs as grass
from rows import Row, medians, threads
from store_rows import HEADER_BYTES, in_memory, rows_file, rows_of, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

N = 16384
WIDTHS = [1024] * 4
TOP = 10
CASES = (("float32", "graddot"), ("bfloat16", "graddot"), ("float32", "gradcos"))
OPENED = "bergson, index opened"
IN_MEMORY = "bergson, index in memory"
OWN_PROCESS = "bergson, a process of its own"
PROCESSES = 3
OURS = f"""\
import sys, numpy, grass_rs
grass_rs.open_store(sys.argv[1]).score(numpy.load(sys.argv[2]), "graddot", top_k={TOP})
"""
ITS = f"""\
import sys, numpy, torch
from bergson.query.attributor import Attributor
queries = torch.from_numpy(numpy.load(sys.argv[2])).split({WIDTHS}, dim=1)
names = [f"layer {{index}}" for index in range({len(WIDTHS)})]
Attributor(sys.argv[1], unit_norm=False).search(dict(zip(names, queries)), {TOP})
"""


def _index(path: Path, store: grass.Store) -> Path:
    """Write the rows of a store as an index: no projection, no Hessian."""
    path.mkdir()
    with rows_file(store).open("rb") as file:
        file.seek(HEADER_BYTES)
        (path / "gradients.bin").write_bytes(file.read())
    sizes = {column.name: column.width for column in store.columns}
    info = {"num_grads": len(store), "grad_sizes": sizes, "base_dtype": store.dtype}
    (path / "info.json").write_text(json.dumps(info))
    GradientProcessor().save(path)
    return path


def _compare(store: grass.Store, index: Path, method: str) -> Iterator[Row]:
    """Time queries of both, and compare their scores."""
    in_memory_index = Attributor(index, unit_norm=method == "gradcos")
    for count in (1, 64):
        queries = np.random.default_rng(1).standard_normal((count, store.width), dtype=np.float32)
        parts = torch.from_numpy(queries).split([column.width for column in store.columns], dim=1)
        tensors = {column.name: part for column, part in zip(store.columns, parts, strict=True)}

        def search(tensors: dict[str, torch.Tensor] = tensors) -> Any:
            return in_memory_index.search(tensors, TOP)

        def opened_search(tensors: dict[str, torch.Tensor] = tensors) -> Any:
            return Attributor(index, unit_norm=method == "gradcos").search(tensors, TOP)

        score = partial(store.score, queries, method, top_k=TOP)

        def opened_score(queries: Any = queries) -> grass.Scores:
            return grass.open_store(store.path).score(queries, method, top_k=TOP)

        np.testing.assert_allclose(search().values.numpy(), score().values, rtol=1e-4)
        ours, opened, its, its_opened = medians(score, opened_score, search, opened_search)
        what = f"{count} of {store.dtype}, {method}"
        yield Row(f"{what}, store opened", opened, OPENED, its_opened)
        yield Row(f"{what}, store open", ours, IN_MEMORY, its)


def _own_process(store: grass.Store, index: Path) -> Row:
    """Time one query of f32 rows from the start of a process to its end."""
    query = index / "query.npy"
    np.save(query, np.random.default_rng(1).standard_normal((1, store.width), dtype=np.float32))
    taken: list[list[float]] = [[], []]
    for _ in range(PROCESSES):
        for seconds, program, folder in zip(taken, (OURS, ITS), (store.path, index), strict=True):
            command = [sys.executable, "-c", program, str(folder), str(query)]
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=sys.stderr)  # noqa: S603
            seconds.append(time.perf_counter() - start)
    ours, its = map(statistics.median, taken)
    return Row("1 of float32, graddot, a process of its own", ours, OWN_PROCESS, its)


def main() -> None:
    """Measure and print."""
    # torch says once that it should not write to the index that bergson maps.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    matrix = rows_of(N, sum(WIDTHS))
    found: list[Row] = []
    for dtype, method in CASES:
        with in_memory(2 * matrix.nbytes) as folder, threads(os.cpu_count() or 1):
            store = write(folder / "store", matrix, WIDTHS, dtype)
            index = _index(folder / "index", store)
            found += _compare(store, index, method)
            if (dtype, method) == CASES[0]:
                found.append(_own_process(store, index))
    print(json.dumps([asdict(row) for row in found]))


if __name__ == "__main__":
    main()
