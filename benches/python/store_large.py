"""What must not depend on how large a store is: the time to open it, and the memory that scoring takes."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import grass_rs as grass
import sparse_store
from processes import median_of_processes
from rows import Row, medians
from store_rows import on_disk, rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator

OPEN_SECONDS = 0.02
"""Goal: the most that it takes to open a store."""
MEMORY_BYTES = 256 * 2**20
"""Goal: the most memory that scoring takes beside the queries and the best scores."""
FISHER_BLOCKS = 3
"""So many Fisher blocks of the widest column come on top for influence."""

LARGE_BYTES = 10 * 2**30
WIDTHS = [2048] * 2
FISHER_BYTES = FISHER_BLOCKS * 4 * max(WIDTHS) ** 2


def measure() -> Iterator[Row]:
    """Measure stores whose rows are zeros that no disk holds."""
    with on_disk() as folder:
        small, large = folder / "small", folder / "large"
        _write(small, 2**18)
        _write(large, LARGE_BYTES)
        calls = [partial(grass.open_store, path) for path in (small, large)]
        sizes = ("256 KiB", "10 GiB")
        for size, seconds in zip(sizes, medians(*calls), strict=True):
            yield Row(f"opening a store of {size}", seconds, "at most 20 ms", OPEN_SECONDS)
        if not Path("/proc/self/clear_refs").exists():
            return  # peak memory of a call can be read on Linux alone
        for method, limit, most in (
            ("graddot", "256 MiB", MEMORY_BYTES),
            ("influence", "256 MiB and 3 Fisher blocks", MEMORY_BYTES + FISHER_BYTES),
        ):
            grown = median_of_processes(
                "scoring_memory", str(large), method, str(sum(WIDTHS)), processes=1
            )
            what = f"memory, {method} of 64 queries, store of 10 GiB"
            yield Row(what, grown, limit, most, unit="bytes")


def _write(path: Path, size: int) -> None:
    """Write a store of so many bytes of rows, the first of which are no zeros, so that its Fisher is none."""
    width = sum(WIDTHS)
    n = size // (4 * width)
    sparse_store.write(path, n, WIDTHS, rows_of(math.gcd(n, 16), width))
