"""Measurements that need a process of their own, each by `probe.py`."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from probe import MEMORY_CASES, MEMORY_THREADS
from rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterator

PROBE = Path(__file__).with_name("probe.py")
MEMORY_BYTES = MEMORY_THREADS * 8 * 2**20
"""Goal: the most memory of a call beyond its inputs and outputs."""


def _probe(*arguments: str) -> float:
    command = [sys.executable, str(PROBE), *arguments]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)  # noqa: S603


def median_of_processes(*arguments: str, processes: int = 7) -> float:
    """Return the median of what as many fresh processes measure."""
    return statistics.median(_probe(*arguments) for _ in range(processes))


def measure() -> Iterator[Row]:
    """Measure the memory of calls, and the processor time of an idle process."""
    waited = 1.0
    yield Row("idle after a call, processor time", _probe("idle"), "the time waited", waited)
    if not Path("/proc/self/clear_refs").exists():
        return  # peak memory of a call can be read on Linux alone
    for case in MEMORY_CASES:
        yield Row(
            f"memory, {case}", _probe("memory", case), "8 MiB a thread", MEMORY_BYTES, unit="bytes"
        )
