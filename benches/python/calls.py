"""What a call costs besides its arithmetic: the import, the first call, every call, and capture."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import grass_rs as grass
from goals import GUARD
from processes import median_of_processes
from rows import Row, medians, threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IMPORT_SECONDS = 0.05
"""Guard: the most that `import grass_rs` takes beyond `import numpy`."""
CALL_SECONDS = 5e-6
"""Goal: the most that a call on a small vector takes."""


def measure() -> Iterator[Row]:
    """Measure all of them."""
    yield from _import()
    with threads(1):
        yield from _small_calls()
    with threads(os.cpu_count() or 1):
        yield from _capture()


def _import() -> Iterator[Row]:
    def run(module: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)  # noqa: S603

    ours, numpy = medians(run("grass_rs"), run("numpy"))
    yield Row("import grass_rs", ours, "import numpy", numpy)
    yield Row(GUARD[0], ours - numpy, GUARD[1], IMPORT_SECONDS)


def _small_calls() -> Iterator[Row]:
    x, factor = np.ones(64, np.float32), np.ones((1, 1, 64), np.float32)
    calls: dict[str, Callable[[], Any]] = {}
    sjlt, mask = grass.SJLT(64, 16, seed=0), grass.RandomMask(64, 16, seed=0)
    factgrass = grass.FactGraSS(64, 64, 16, seed=0)
    calls["SJLT 64 to 16, a call"] = lambda: sjlt(x)
    calls["mask 64 to 16, a call"] = lambda: mask(x)
    calls["FactGraSS 64 x 64 to 16, a call"] = lambda: factgrass(factor, factor)
    many = range(1000)
    *seconds, addition = medians(
        *(lambda call=call: [call() for _ in many] for call in calls.values()),
        lambda: [x + x for _ in many],
    )
    for what, taken in zip(calls, seconds, strict=True):
        yield Row(what, taken / len(many), "goal of 5 us", CALL_SECONDS)
    yield Row(
        "SJLT 64 to 16, a call", seconds[0] / len(many), "NumPy addition", addition / len(many)
    )
    first = median_of_processes("first_call")
    yield Row("SJLT 64 to 16, first call", first, "goal of 5 us", CALL_SECONDS)


def _capture() -> Iterator[Row]:
    """Time capture and compression of a network against its bare forward and backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 10)
    )
    batch = torch.randn(64, 1024), torch.randint(0, 10, (64,))
    batches = [batch] * 8

    def bare() -> None:
        for inputs, targets in batches:
            model.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()

    for method in ("factgrass", "logra", "tile"):
        plan = grass.Plan.for_model(model, method, dim=1024)
        attributor = grass.Attributor(model, "cross_entropy", plan)
        ours, passes = medians(partial(attributor.compress, batches, progress=False), bare)
        yield Row(
            f"{method} rows of an MLP, 512 examples", ours, "forward and backward pass", passes
        )
