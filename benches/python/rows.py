"""What a bench measures: a row of a value beside its rival's or limit's, both measured in turn."""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

import grass_rs as grass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LEAST_ROUNDS = 5


@dataclass(frozen=True)
class Row:
    """A measured value and what it is held against."""

    what: str
    value: float
    against: str
    its_value: float
    unit: str = "s"
    """Of both values: s, bytes or operations; empty for a plain number."""
    bytes: int = 0
    """Bytes of input that must be read, where that is known."""
    operations: int = 0
    """Multiplications and additions that must be done, where that is known."""
    simd: str = ""
    """Vector instructions in use, where they were asked for."""


def medians(*calls: Callable[[], Any], seconds: float = 1.5) -> list[float]:
    """Return the median seconds of each call, called in turn so that noise meets all alike.

    They are called for about `seconds` in all, five times each at least.
    """
    for call in calls:
        call()
    taken: list[list[float]] = [[] for _ in calls]
    begin = time.perf_counter()
    while len(taken[0]) < LEAST_ROUNDS or time.perf_counter() - begin < seconds:
        for call, times in zip(calls, taken, strict=True):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in taken]


@contextlib.contextmanager
def threads(number: int) -> Iterator[None]:
    """Let this library and torch use `number` threads each."""
    before = grass.num_threads(), torch.get_num_threads()
    grass.set_num_threads(number)
    torch.set_num_threads(number)
    try:
        yield
    finally:
        grass.set_num_threads(before[0])
        torch.set_num_threads(before[1])
