"""Whole calls from Python, each beside a named rival or limit, measured in turn in one run.

Prints a table and, with --save, writes it with the machine's description to benches/results.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import grass_rs as grass

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

IMPORT_SECONDS = 0.05
"""Goal: the most that `import grass_rs` takes beyond `import numpy`."""
MISSED: list[str] = []
"""Goals that this run missed."""
RESULTS = Path(__file__).parent.parent / "results"
Row = tuple[str, float, str, float]
"""What, its seconds, against what, that one's seconds."""


def medians(*calls: Callable[[], Any], rounds: int = 15) -> list[float]:
    """Return the median seconds of each call, called in turn so that noise meets all alike."""
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if number:  # the first round warms up
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in seconds]


def importing() -> Iterator[Row]:
    """Time `import grass_rs` against `import numpy`, which it needs."""

    def run(module: str) -> Callable[[], Any]:
        return lambda: subprocess.run([sys.executable, "-c", f"import {module}"], check=True)  # noqa: S603

    ours, numpy = medians(run("grass_rs"), run("numpy"))
    yield "import grass_rs", ours, "import numpy", numpy
    if ours - numpy > IMPORT_SECONDS:
        MISSED.append(
            f"import grass_rs takes {ours - numpy:.3f} s more, the goal is {IMPORT_SECONDS}"
        )


def compressing() -> Iterator[Row]:
    """Time an SJLT of one long row against reading the row, and against torch's scatter by a table."""
    p, k = 2**24, 4096
    x = np.random.default_rng(0).standard_normal((1, p), dtype=np.float32)
    tensor = torch.from_numpy(x)
    buckets = torch.randint(0, k, (p,))
    signs = torch.randint(0, 2, (p,)) * 2.0 - 1
    out, signed = torch.zeros(1, k), torch.empty_like(tensor)
    for kind in ("cyclic", "iid"):
        sjlt = grass.SJLT(p, k, seed=0, kind=kind)
        ours, read, scatter = medians(
            lambda sjlt=sjlt: sjlt(x),
            tensor.sum,
            lambda: out.zero_().index_add_(1, buckets, torch.mul(tensor, signs, out=signed)),
        )
        yield f"SJLT {kind}, 2^24 to 4096", ours, "torch sum (reads the row)", read
        yield f"SJLT {kind}, 2^24 to 4096", ours, "torch index_add_", scatter


def calling() -> Iterator[Row]:
    """Time the overhead of one call: a small vector against NumPy's addition."""
    sjlt, x = grass.SJLT(64, 16, seed=0), np.ones(64, np.float32)
    many = range(1000)
    ours, numpy = medians(lambda: [sjlt(x) for _ in many], lambda: [x + x for _ in many])
    yield "SJLT 64 to 16, a call", ours / len(many), "NumPy addition", numpy / len(many)


def capturing() -> Iterator[Row]:
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

    for method in ("factgrass", "logra"):
        plan = grass.Plan.for_model(model, method, dim=1024)
        attributor = grass.Attributor(model, "cross_entropy", plan)
        ours, passes = medians(
            lambda attributor=attributor: attributor.compress(batches, progress=False),
            bare,
            rounds=5,
        )
        yield f"{method} rows of an MLP, 512 examples", ours, "bare forward and backward", passes


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "grass_rs": grass.build_info(),
        "threads": grass.num_threads(),
    }


def main() -> None:
    """Measure everything, print it, save it if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write benches/results/DATE.json")
    arguments = parser.parse_args()
    rows = [row for part in (importing, calling, compressing, capturing) for row in part()]
    print(f"{'what':42} {'ms':>10}   {'against':28} {'ms':>10} {'ratio':>8}")
    for what, ours, rival, theirs in rows:
        print(
            f"{what:42} {1e3 * ours:10.4f}   {rival:28} {1e3 * theirs:10.4f} {ours / theirs:8.2f}"
        )
    if arguments.save:
        keys = ("what", "seconds", "against", "its_seconds")
        content = {
            "machine": machine(),
            "rows": [dict(zip(keys, row, strict=True)) for row in rows],
        }
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}.json"
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"saved {path}")
    if MISSED:
        sys.exit("; ".join(MISSED))


if __name__ == "__main__":
    main()
