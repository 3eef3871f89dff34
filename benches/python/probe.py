"""One measurement in a process of its own, which prints a number.

`probe.py first_call | idle | memory CASE | scoring_memory STORE METHOD WIDTH`
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import grass_rs as grass

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

MEMORY_THREADS = 2
_FACTORS = ((8, 512, 2048), (8, 512, 2048))

MEMORY_CASES: dict[str, tuple[Callable[[], Any], tuple[tuple[int, ...], ...], str]] = {
    "mask n=1 2^24 to 16384": (
        lambda: grass.RandomMask(2**24, 16384, seed=0),
        ((1, 2**24),),
        "float32",
    ),
    "cyclic n=1 2^24 to 4096": (lambda: grass.SJLT(2**24, 4096, seed=0), ((1, 2**24),), "float32"),
    "cyclic n=1 2^24 to 2^20": (lambda: grass.SJLT(2**24, 2**20, seed=0), ((1, 2**24),), "float32"),
    "cyclic n=32 2^20 to 4096": (
        lambda: grass.SJLT(2**20, 4096, seed=0),
        ((32, 2**20),),
        "float32",
    ),
    "cyclic n=32 2^20 to 4096 of f16": (
        lambda: grass.SJLT(2**20, 4096, seed=0),
        ((32, 2**20),),
        "float16",
    ),
    "cyclic n=32 2^20 to 4096 of f64": (
        lambda: grass.SJLT(2**20, 4096, seed=0),
        ((32, 2**20),),
        "float64",
    ),
    "iid n=1 2^24 to 4096": (
        lambda: grass.SJLT(2**24, 4096, seed=0, kind="iid"),
        ((1, 2**24),),
        "float32",
    ),
    "iid n=32 2^20 to 4096": (
        lambda: grass.SJLT(2**20, 4096, seed=0, kind="iid"),
        ((32, 2**20),),
        "float32",
    ),
    "GraSS n=1 2^24 to 16384 to 4096": (
        lambda: grass.GraSS(2**24, 4096, seed=0),
        ((1, 2**24),),
        "float32",
    ),
    "Gaussian n=32 2^14 to 512": (
        lambda: grass.Gaussian(2**14, 512, seed=0),
        ((32, 2**14),),
        "float32",
    ),
    "Rademacher n=32 2^16 to 4096": (
        lambda: grass.Gaussian(2**16, 4096, seed=0, kind="rademacher"),
        ((32, 2**16),),
        "float32",
    ),
    "FactGraSS 8 x 512 x 2048": (
        lambda: grass.FactGraSS(2048, 2048, 4096, seed=0),
        _FACTORS,
        "float32",
    ),
    "FactGraSS 1 x 16384 x 2048": (
        lambda: grass.FactGraSS(2048, 2048, 4096, seed=0),
        ((1, 16384, 2048), (1, 16384, 2048)),
        "float32",
    ),
    "LoGra 8 x 512 x 2048": (lambda: grass.LoGra(2048, 2048, 64, 64, seed=0), _FACTORS, "float32"),
    "LoGra 1 x 16384 x 2048": (
        lambda: grass.LoGra(2048, 2048, 64, 64, seed=0),
        ((1, 16384, 2048), (1, 16384, 2048)),
        "float32",
    ),
    "tile 8 x 512 x 2048": (
        lambda: grass.TileSketch(2048, 2048, 4096, seed=0),
        _FACTORS,
        "float32",
    ),
    "tile 1 x 16384 x 2048": (
        lambda: grass.TileSketch(2048, 2048, 4096, seed=0),
        ((1, 16384, 2048), (1, 16384, 2048)),
        "float32",
    ),
}
"""Compressor, shapes of the inputs and their dtype, by name."""


def first_call() -> float:
    """Return the seconds of the first call on a small vector."""
    sjlt, x = grass.SJLT(64, 16, seed=0), np.ones(64, np.float32)
    start = time.perf_counter()
    sjlt(x)
    return time.perf_counter() - start


def idle() -> float:
    """Return the processor seconds that the process uses while it waits a second after a call of two threads."""
    grass.set_num_threads(2)
    sjlt, x = grass.SJLT(2**22, 4096, seed=0), np.ones((4, 2**22), np.float32)
    sjlt(x)
    time.sleep(0.1)  # the system charges the call's own last milliseconds late
    start = time.process_time()
    time.sleep(1)
    return time.process_time() - start


def _status(name: str) -> int:
    """Return a line of the kernel's account of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _growth(call: Callable[[], Any]) -> float:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    call()
    return float(_status("VmHWM") - before)


def memory(case: str) -> float:
    """Return by how many bytes the process grows in the first call, inputs and output there before."""
    make, shapes, dtype = MEMORY_CASES[case]
    grass.set_num_threads(MEMORY_THREADS)
    compressor = make()
    inputs: list[NDArray[Any]] = [np.ones(shape, dtype) for shape in shapes]
    out = np.ones((shapes[0][0], compressor.output_dim), np.float32)
    return _growth(lambda: compressor(*inputs, out=out))


def scoring_memory(store: str, method: str, width: str) -> float:
    """Return by how many bytes the process grows while it opens a store and scores 64 queries, there before."""
    grass.set_num_threads(MEMORY_THREADS)
    queries = np.ones((64, int(width)), np.float32)
    return _growth(lambda: grass.open_store(store).score(queries, method, top_k=10))


if __name__ == "__main__":
    measurement, *rest = sys.argv[1:]
    measurements: dict[str, Callable[..., float]] = {
        "first_call": first_call,
        "idle": idle,
        "memory": memory,
        "scoring_memory": scoring_memory,
    }
    print(measurements[measurement](*rest))
