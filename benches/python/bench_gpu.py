"""Measure the CUDA kernels beside their rivals and limits; needs a GPU, torch for CUDA, and CuPy.

Prints the table after each part, with a verdict where there is a goal. With --save, it goes with the device's name and
clocks to benches/results/gpu-DATE.json.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import gpu_caching
import gpu_layers
import gpu_rows
import grass_rs as grass
import tables
from gpu_goals import GPU
from gpu_timing import GraphTimer

if TYPE_CHECKING:
    from rows import Row

ROOT = Path(__file__).parents[2]
PARTS = {
    "rows": gpu_rows.measure,
    "layers": gpu_layers.measure,
    "caching": gpu_caching.measure,
}
_CLOCKS = "clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,power.limit,driver_version"


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on; clocks are read while the device is busy."""
    properties = torch.cuda.get_device_properties(0)
    busy = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(100):
        busy = busy @ busy
    command = ["nvidia-smi", f"--query-gpu={_CLOCKS}", "--format=csv,noheader", "--id=0"]
    try:
        clocks = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        clocks = f"not known: {error}"
    torch.cuda.synchronize()
    return {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "memory": properties.total_memory,
        _CLOCKS: clocks,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "grass_rs": grass.build_info(),
    }


def main() -> None:
    """Measure everything, or the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--save", metavar="FOLDER", nargs="?", const=ROOT / "benches" / "results")
    arguments = parser.parse_args()
    parts = arguments.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"expected parts of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        sys.exit("bench_gpu expects a CUDA device, torch sees none: run it on a machine with a GPU")
    described, timer = machine(), GraphTimer(torch.device("cuda", 0))
    print(json.dumps(described, indent=1))
    rows: list[Row] = []
    for part in parts:
        rows += PARTS[part](timer)
        torch.cuda.empty_cache()
        # After each part: a later one may run out of memory or time.
        print(tables.for_terminal(rows, GPU), flush=True)
        if arguments.save:
            save(Path(arguments.save), rows, described)


def save(folder: Path, rows: list[Row], described: dict[str, Any]) -> None:
    """Write the rows and what they were measured on."""
    judged = [{**asdict(row), **GPU.judge(row)._asdict()} for row in rows]
    path = folder / f"gpu-{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}.json"
    path.write_text(json.dumps({"machine": described, "rows": judged}, indent=1) + "\n")
    print(f"saved {path}")


if __name__ == "__main__":
    main()
