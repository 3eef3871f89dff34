"""Count the instructions of a call of each kernel by callgrind, beside the counts that are stored.

Counts hardly depend on how busy the machine is. Valgrind knows no AVX-512, so they are of the AVX2 path. Set-up
does not count: it is the difference between runs of some calls and of one. With --save, the counts are stored.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys

from cargo import ROOT, build, run

STORED = ROOT / "benches" / "results" / "instructions.json"
CALLS = 3


def _instructions(program: str, kernel: str, calls: int) -> int:
    """Return what a run of so many calls executes, set-up included."""
    callgrind = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
    counted = run(*callgrind, program, kernel, str(calls))
    match = re.search(r"Collected : (\d+)", counted.stderr)
    if match is None:
        raise ValueError(f"valgrind expected to say what it collected, got {counted.stderr!r}")
    return int(match[1])


def main() -> None:
    """Count, compare, print, and store if asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help=f"write {STORED.relative_to(ROOT)}")
    arguments = parser.parse_args()
    if shutil.which("valgrind") is None:
        sys.exit("expected valgrind on the PATH, got none: install it with the system's packages")
    program = build("instructions")
    stored = json.loads(STORED.read_text())["instructions"] if STORED.exists() else {}
    counts = {}
    print(f"{'a call of':34} {'instructions':>14} {'stored':>14} {'change':>8}")
    for kernel in run(program).stdout.splitlines():
        one, more = (_instructions(program, kernel, calls) for calls in (1, 1 + CALLS))
        counts[kernel] = (more - one) // CALLS
        before = stored.get(kernel)
        beside = f"{'new':>14}"
        if before is not None:
            beside = f"{before:14,} {100 * (counts[kernel] / before - 1):+7.2f}%"
        print(f"{kernel:34} {counts[kernel]:14,} {beside}", flush=True)
    if arguments.save:
        version = run("valgrind", "--version").stdout.strip()
        content = {"counted_by": version, "simd": "avx2", "instructions": counts}
        STORED.write_text(json.dumps(content, indent=1) + "\n")
        print(f"saved {STORED.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
