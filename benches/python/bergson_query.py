"""The best rows of queries by bergson (https://github.com/EleutherAI/bergson) and by this library, of the same rows.

Run by hand where bergson is installed: `python benches/python/bergson_query.py`. Its command `query` loads a model,
computes the query's gradient, gives it to `Attributor.search` and prints texts. `Attributor` alone is measured, on an
index as `bergson build` writes it. Its fixed costs are in the times of "index opened" and left out of those of "index
in memory", but for the import, which has a row of its own. An index of f32 is mapped when it is opened, one of bf16 is
copied as f32, and for cosines, which bergson's own example asks for, rows are divided by their norms in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import grass_rs as grass
import tables
from rows import Row, medians, threads
from store_rows import HEADER_BYTES, in_memory, rows_file, rows_of, write
from verdicts import Goals

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

start = time.perf_counter()
try:
    from bergson.gradients import GradientProcessor
    from bergson.query.attributor import Attributor
except ModuleNotFoundError as error:
    sys.exit(f"expected bergson to be installed ({error}): pip install bergson")
IMPORT_SECONDS = time.perf_counter() - start

N = 16384
WIDTHS = [1024] * 4
TOP = 10
CASES = (("float32", "graddot"), ("bfloat16", "graddot"), ("float32", "gradcos"))
OPENED = "bergson, index opened"


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
        yield Row(f"{what}, store open", ours, "bergson, index in memory", its)


def main() -> None:
    """Measure and print a table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    # torch says once that it should not write to the index that bergson maps.
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    matrix = rows_of(N, sum(WIDTHS))
    found: list[Row] = []
    for dtype, method in CASES:
        with in_memory(2 * matrix.nbytes) as folder, threads(os.cpu_count() or 1):
            store = write(folder / "store", matrix, WIDTHS, dtype)
            found += _compare(store, _index(folder / "index", store), method)
    found.append(
        Row("1 of float32, graddot, store opened", found[0].value, "import bergson", IMPORT_SECONDS)
    )
    goals = {(row.what, row.against): 5.0 for row in found if row.against == OPENED}
    print(tables.for_terminal(found, Goals({}, goals)))


if __name__ == "__main__":
    main()
