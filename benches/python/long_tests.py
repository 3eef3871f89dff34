"""Run the tests of the store that take minutes, print a line for each, and save their figures.

Each test prints lines ``GRASS-LONG {"name": ..., "seconds": ..., ...}``, with what it counted (states,
kills, faults). They go, with the machine, to benches/results/long-DATE.json.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from typing import Any

from bench import ROOT, machine

MARK = "GRASS-LONG "
SUITES = {"grass-store": ("crash", "failed_sync", "faults", "kill", "bit_flips")}


def main() -> None:
    """Run every suite; the figures are saved only if all tests pass."""
    figures = [
        figure
        for package, tests in SUITES.items()
        for test in tests
        for figure in run(package, test)
    ]
    date = f"{dt.datetime.now(tz=dt.timezone.utc):%Y-%m-%d}"
    path = ROOT / "benches" / "results" / f"long-{date}.json"
    path.write_text(json.dumps({"machine": machine(), "tests": figures}, indent=1) + "\n")
    print(f"saved {path}")


def run(package: str, test: str) -> list[dict[str, Any]]:
    """Run one test binary with everything it can look at, and return the figures it printed."""
    command = ["cargo", "test", "--release", "--locked", "-p", package, "--test", test]
    process = subprocess.Popen(  # noqa: S603
        [*command, "--", "--nocapture"],
        cwd=ROOT,
        env={**os.environ, "GRASS_TEST_LONG": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    figures, said = [], []
    for line in process.stdout or ():
        said.append(line)
        if line.startswith(MARK):
            figure = json.loads(line.removeprefix(MARK))
            figures.append({"suite": test, **figure})
            print(summary(figure), flush=True)
    if process.wait():
        sys.exit("".join(said) + f"the tests of {test} failed")
    if not figures:
        sys.exit(f"expected figures of {test}, got none")
    return figures


def summary(figure: dict[str, Any]) -> str:
    """Put what a test did in one line."""
    counts = {what: count for what, count in figure.items() if what not in {"name", "seconds"}}
    words = ", ".join(f"{count:,} {what.replace('_', ' ')}" for what, count in counts.items())
    return f"{figure['name']:<32} {figure['seconds']:>8.1f} s  {words}"


if __name__ == "__main__":
    main()
