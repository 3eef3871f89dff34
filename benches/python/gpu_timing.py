"""Seconds that calls take on a GPU."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_ROUNDS = 10
GRAPH_SECONDS = 2e-3
"""A graph holds as many calls as take about this long, so that events resolve it."""
MOST_CALLS = 64


class Timer(Protocol):
    """Measures calls in turn, on one device."""

    device: torch.device

    def kernels(self, *calls: Callable[[], Any]) -> list[float]:
        """Return the median seconds of each call on the device alone, launches not counted."""

    def passes(self, *calls: Callable[[], Any]) -> list[float]:
        """Return the median seconds of each call as its caller sees them, launches and all."""


class GraphTimer:
    """Times calls by CUDA graphs between events, and whole passes by the clock."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def kernels(self, *calls: Callable[[], Any]) -> list[float]:
        """Capture each call some times in a graph and replay the graphs in turn."""
        graphs = [self._graph(call) for call in calls]
        taken: list[list[float]] = [[] for _ in calls]
        for _ in range(LEAST_ROUNDS):
            for (graph, count), times in zip(graphs, taken, strict=True):
                times.append(_between_events(graph.replay) / count)
        return [statistics.median(times) for times in taken]

    def passes(self, *calls: Callable[[], Any]) -> list[float]:
        """Call in turn and wait for the device after each."""
        taken: list[list[float]] = [[] for _ in calls]
        for call in calls:
            call()
        for _ in range(LEAST_ROUNDS):
            for call, times in zip(calls, taken, strict=True):
                torch.cuda.synchronize()
                start = time.perf_counter()
                call()
                torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
        return [statistics.median(times) for times in taken]

    def _graph(self, call: Callable[[], Any]) -> tuple[torch.cuda.CUDAGraph, int]:
        # The first call compiles and uploads, the second is timed.
        call()
        count = max(1, min(MOST_CALLS, int(GRAPH_SECONDS / _between_events(call))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(count):
                call()
        graph.replay()
        return graph, count


def _between_events(call: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    seconds: float = begin.elapsed_time(end) / 1e3
    return seconds
