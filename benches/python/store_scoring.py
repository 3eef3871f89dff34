"""Scoring a store of a GiB beside what bounds it, and beside what else does the same.

One query is bounded by reading the rows, many by the multiplications. Stores are in memory, so that no disk counts.

The library has no way to leave checksums out. What they cost is measured by a program of its own, which reads the same
file in pieces and multiplies them with the library's kernels, once with the CRC-32 of each piece, taken as scoring takes
it, and once without: scoring without checksums is taken to be faster by that difference.
"""

from __future__ import annotations

import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import store_peers
from cargo import build, run
from rows import Row, medians, threads
from store_rows import HEADER_BYTES, in_memory, rows_file, rows_of, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    import grass_rs as grass

N = 65536
"""Rows. All scores of 64 queries take 16 MiB, a sixty-fourth of the rows."""
WIDTHS = [1024] * 4
"""Of the columns, each of which has a scale of its own in an int8 row."""
WIDTH = sum(WIDTHS)
QUERIES = 64
TOP = 10
DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int8": "int8"}
CHECKED = 8192
"""Rows whose scores are compared with the formula in double precision."""
READERS = 8

FRESH = "reading as many bytes, fresh map"
KEPT = "reading as many bytes, kept map"
PRODUCT = "torch.mm in memory, f32"
ALL = "all scores, kept in memory"
UNCHECKED = "less what CRC-32 takes"
LOOP = "NumPy memmap loop"


def measure() -> Iterator[Row]:
    """Measure all of them."""
    matrix = rows_of(N, WIDTH)
    checksums = build("checksums")
    with in_memory(3 * matrix.nbytes) as folder:
        stores = {
            short: write(folder / short, matrix, WIDTHS, dtype) for dtype, short in DTYPES.items()
        }
        queries = np.random.default_rng(1).standard_normal((QUERIES, WIDTH), dtype=np.float32)
        number = os.cpu_count() or 1
        with threads(number):
            yield from _one_query(stores, queries[:1], checksums, number)
            yield from _many_queries(stores, queries, matrix, checksums, number)
            yield from _readers(stores["f32"], queries[:1])
        with threads(1):
            yield from _one_thread(stores["f32"], queries[:1])
        for short, store in stores.items():
            yield from _errors(short, store, queries, matrix[:CHECKED])


def _size(store: grass.Store) -> int:
    """Return the bytes of a store's rows."""
    return rows_file(store).stat().st_size - HEADER_BYTES


def _map(path: Path, size: int) -> NDArray[np.float32]:
    """Map so many bytes of a file of f32 rows: copied on writing, as torch wants to be able to write."""
    return np.memmap(path, np.float32, "c", HEADER_BYTES, (size // 4,))


def _sum_fresh(path: Path, size: int) -> torch.Tensor:
    return torch.from_numpy(_map(path, size)).sum()


def _checksum_seconds(program: str, store: grass.Store, number: int, queries: int) -> float:
    return float(run(program, str(rows_file(store)), str(number), str(queries)).stdout)


def _one_query(
    stores: dict[str, grass.Store], query: NDArray[np.float32], checksums: str, number: int
) -> Iterator[Row]:
    """Time one query for rows of each type, in turn with sums over as many bytes of f32 rows."""
    f32 = stores["f32"]
    path = rows_file(f32)
    sizes = [_size(store) for store in stores.values()]
    kept = torch.from_numpy(_map(path, sizes[0]))
    scored = [partial(store.score, query, "graddot", top_k=TOP) for store in stores.values()]
    fresh = [partial(_sum_fresh, path, size) for size in sizes]
    everything = partial(f32.score, query, "graddot")
    loop = partial(store_peers.best_of_f32, path, query, N, TOP)
    checked: list[float] = []

    def check() -> None:
        checked.append(_checksum_seconds(checksums, f32, number, 1))

    *seconds, all_scores, sum_kept, peer, _ = medians(
        *scored, *fresh, everything, kept.sum, loop, check, seconds=6
    )
    ours, reads = seconds[: len(stores)], seconds[len(stores) :]
    for short, taken, read, size in zip(stores, ours, reads, sizes, strict=True):
        yield Row(f"1 query, {short} rows", taken, FRESH, read, bytes=size)
    what, taken, size = "1 query, f32 rows", ours[0], sizes[0]
    yield Row(what, taken, KEPT, sum_kept, bytes=size)
    yield Row(what, taken, ALL, all_scores, bytes=size)
    yield Row(what, taken, UNCHECKED, taken - statistics.median(checked), bytes=size)
    yield Row(what, taken, LOOP, peer, bytes=size)


def _many_queries(
    stores: dict[str, grass.Store],
    queries: NDArray[np.float32],
    matrix: NDArray[np.float32],
    checksums: str,
    number: int,
) -> Iterator[Row]:
    """Time many queries, in turn with one product of all rows and queries in memory."""
    rows, columns = torch.from_numpy(matrix), torch.from_numpy(queries).T.contiguous()
    out = torch.empty(N, QUERIES)
    scored = [partial(store.score, queries, "graddot", top_k=TOP) for store in stores.values()]
    f32, int8 = stores["f32"], stores["int8"]
    everything = [partial(store.score, queries, "graddot") for store in (f32, int8)]
    loops: list[Callable[[], Any]] = [
        partial(store_peers.best_of_f32, rows_file(f32), queries, N, TOP),
        partial(store_peers.best_of_int8, rows_file(int8), queries, N, WIDTHS, TOP),
    ]
    checked: dict[str, list[float]] = {"f32": [], "int8": []}

    def check() -> None:
        for short, seconds in checked.items():
            seconds.append(_checksum_seconds(checksums, stores[short], number, QUERIES))

    product_of_all = partial(torch.mm, rows, columns, out=out)
    *seconds, all_f32, all_int8, product, loop_f32, loop_int8, _ = medians(
        *scored, *everything, product_of_all, *loops, check, seconds=12
    )
    taken = dict(zip(stores, seconds, strict=True))
    for short, its in taken.items():
        yield Row(f"{QUERIES} queries, {short} rows", its, PRODUCT, product)
    beside = {"f32": (all_f32, loop_f32), "int8": (all_int8, loop_int8)}
    for short, (all_scores, loop) in beside.items():
        what, its = f"{QUERIES} queries, {short} rows", taken[short]
        yield Row(what, its, ALL, all_scores)
        yield Row(what, its, UNCHECKED, its - statistics.median(checked[short]))
        yield Row(what, its, LOOP, loop)


def _readers(store: grass.Store, query: NDArray[np.float32]) -> Iterator[Row]:
    """Time calls of many Python threads at once on one store, each on all cores, and the same one after the other."""
    call = partial(store.score, query, "graddot", top_k=TOP)
    with ThreadPoolExecutor(READERS) as pool:

        def together() -> None:
            for future in [pool.submit(call) for _ in range(READERS)]:
                future.result()

        def in_turn() -> None:
            for _ in range(READERS):
                call()

        both, turns = medians(together, in_turn, seconds=3)
    yield Row(f"{READERS} Python threads, 1 query each", both, "the same in turn", turns)


def _one_thread(store: grass.Store, query: NDArray[np.float32]) -> Iterator[Row]:
    path, size = rows_file(store), _size(store)
    kept = torch.from_numpy(_map(path, size))
    ours, fresh, sum_kept = medians(
        partial(store.score, query, "graddot", top_k=TOP),
        partial(_sum_fresh, path, size),
        kept.sum,
        seconds=3,
    )
    what = "1 query, f32 rows, 1 thread"
    yield Row(what, ours, f"{FRESH}, 1 thread", fresh, bytes=size)
    yield Row(what, ours, f"{KEPT}, 1 thread", sum_kept, bytes=size)


def _errors(
    short: str, store: grass.Store, queries: NDArray[np.float32], rows: NDArray[np.float32]
) -> Iterator[Row]:
    """Compare scores with the products of the rows before they were rounded, in units of |query| |row|."""
    exact_queries, exact_rows = queries.astype(np.float64), rows.astype(np.float64)
    exact = exact_queries @ exact_rows.T
    lengths = [np.linalg.norm(values, axis=1) for values in (exact_queries, exact_rows)]
    values = store.score(queries, "graddot").values[:, : len(rows)]
    errors = (values - exact) / np.outer(*lengths)
    root_mean_square = float(np.sqrt(np.mean(errors**2)))
    what = f"error of scores, {short} rows"
    yield Row(f"{what}, largest", float(np.abs(errors).max()), "norms of query and row", 1, unit="")
    yield Row(f"{what}, root mean square", root_mean_square, "norms of query and row", 1, unit="")
