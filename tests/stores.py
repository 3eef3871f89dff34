"""What the tests of stores share: columns, rows and files as bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

import grass_rs as grass

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DTYPES = ("float32", "float16", "bfloat16", "int8")

ONE_COLUMN = ([1.0], [(0, 1)], [])
"""What counts in the scores of a store of one column, as the native module takes it."""


INTERRUPTED = """
import resource, signal, sys
import numpy as np
import grass_rs as grass

store = grass.open_store(sys.argv[1])
grass.set_num_threads(1)
{before}
# A call that nothing stops is killed.
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.5)
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", store[:1].shape, store.ids[:1])
else:
    print("finished")
"""
"""A script that makes a call about a store, which must take minutes of the CPU, and sends itself a signal."""


def columns(*widths: int) -> list[grass.Column]:
    """Return columns of these widths, side by side."""
    offsets = np.cumsum([0, *widths]).tolist()
    return [
        grass.Column(f"layer{i}", offsets[i], width, {"type": "sjlt", "seed": i})
        for i, width in enumerate(widths)
    ]


def numbers(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Return (rows, width) normal numbers as float32."""
    return np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)


def write(
    path: Path, rows: np.ndarray, widths: Sequence[int], dtype: str = "float32", **options: Any
) -> grass.Store:
    """Write a finished store of these rows; row i has id 100 + i unless `ids` says otherwise."""
    ids = options.pop("ids", np.arange(100, 100 + len(rows)))
    with grass.create_store(path, columns(*widths), dtype, **options) as writer:
        writer.append(rows, ids)
        return writer.finish()


def files(path: Path) -> dict[str, bytes]:
    """Return every file of a store, but for locks, which are no part of it."""
    return {f.name: f.read_bytes() for f in sorted(path.iterdir()) if f.name[0] != "."}
