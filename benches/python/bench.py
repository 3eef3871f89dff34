"""Measure the library beside its rivals and limits, print one table, with a verdict where there is a goal.

With --save, the table and what it was measured on go to benches/results/DATE.json and, with plots, to
docs/performance.md.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

import calls
import goals
import grass_rs as grass
import kernels
import plots
import processes
import rivals
import scaling
import store_bergson
import store_fisher
import store_large
import store_scoring
import store_writing
import tables

ROOT = Path(__file__).parents[2]
PARTS = {
    "kernels": kernels.measure,
    "rivals": rivals.measure,
    "calls": calls.measure,
    "scaling": scaling.measure,
    "processes": processes.measure,
    "scoring": store_scoring.measure,
    "fisher": store_fisher.measure,
    "writing": store_writing.measure,
    "large": store_large.measure,
    "bergson": store_bergson.measure,
}


def machine() -> dict[str, Any]:
    """Describe what the figures were measured on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    described = {name.strip(): value.strip() for name, value in fields.items()}
    return {
        "processor": described.get("model name", platform.processor()),
        "family": described.get("cpu family", ""),
        "model": described.get("model", ""),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "grass_rs": grass.build_info(),
        "threads": grass.num_threads(),
    }


def main() -> None:
    """Measure everything, or the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; all")
    parser.add_argument("--save", action="store_true", help="write results, page and plots")
    arguments = parser.parse_args()
    parts = arguments.parts or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"expected parts of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    if arguments.save and set(parts) != set(PARTS):
        parser.error("--save expects all parts, so that results of one run stand together")
    rows = [row for part in parts for row in PARTS[part]()]
    print(tables.for_terminal(rows, goals.CPU))
    if arguments.save:
        save(rows)
    if broken := goals.broken_guard(rows):
        sys.exit(broken)


def save(rows: list[Any]) -> None:
    """Write the results, the page and its plots."""
    date, described = f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}", machine()
    content = {
        "machine": described,
        "rows": [{**asdict(row), **goals.CPU.judge(row)._asdict()} for row in rows],
    }
    path = ROOT / "benches" / "results" / f"{date}.json"
    path.write_text(json.dumps(content, indent=1) + "\n")
    tables.write_page(ROOT / "docs" / "performance.md", rows, goals.CPU, described, date)
    plots.draw(ROOT / "docs", rows)
    print(f"saved {path}, docs/performance.md and its plots")


if __name__ == "__main__":
    main()
