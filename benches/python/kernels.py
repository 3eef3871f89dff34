"""The kernels alone: runs the Criterion benches and reads the rows that they write."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import grass_rs as grass
from cargo import ROOT
from rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

ROWS = "GRASS_BENCH_ROWS"
SIMD = "GRASS_SIMD"


def _cargo_bench(*arguments: str, **environment: str) -> Iterator[Row]:
    command = ["cargo", "bench", "--locked", "-p", "grass-benches", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows"
        env = {**os.environ, **environment, ROWS: str(path)}
        subprocess.run(command, check=True, cwd=ROOT, env=env)  # noqa: S603
        for line in path.read_text().splitlines():
            yield Row(**json.loads(line))


def measure() -> Iterator[Row]:
    """Measure all kernels by the fastest vector instructions, then the cyclic SJLT by AVX2."""
    yield from _cargo_bench()
    if grass.build_info()["simd"] == "avx512":
        filters = ("--bench", "rows", "--", r"cyclic n=1 2\^24 to")
        yield from _cargo_bench(*filters, **{SIMD: "avx2"})
