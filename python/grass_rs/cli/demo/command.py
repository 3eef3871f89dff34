"""The subcommand `demo`: its arguments, and what they ask for before torch is imported."""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grass_rs.cli.arguments import add_command, seed
from grass_rs.errors import GrassError

if TYPE_CHECKING:
    from argparse import Namespace


def add(commands: Any) -> None:
    """Add the subcommand."""
    command = add_command(
        commands,
        "demo",
        _demo,
        "explain handwritten digits by the digits that a network was trained on",
        """\
Trains a small network, stores FactGraSS-compressed gradients of all training digits, scores
held-out digits, and judges the scores by 50 networks retrained on random halves (LDS), next to
uncompressed gradients and random scores. Needs torch and scikit-learn; takes well under a minute.
The same seed gives the same scores, bit for bit, on the same machine.

example: grass-rs demo --seed 1 --out seed1.html --store seed1.grass""",
    )
    command.add_argument("--seed", type=seed, default=0, help="seed of everything (default: 0)")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("demo_report.html"),
        help="report to write, one self-contained HTML file (default: demo_report.html)",
    )
    command.add_argument(
        "--store",
        type=Path,
        help="store of the training digits' rows; one that the same run made is used again "
        "(default: demo-seed0.grass, with the seed in its name)",
    )


def _demo(arguments: Namespace) -> str:
    """Run the demo, write its report and return its text."""
    report_path, store_path = arguments.out, arguments.store
    if store_path is None:
        store_path = Path(f"demo-seed{arguments.seed}.grass")
    if report_path.is_dir():
        raise GrassError(
            f"demo expects a file for --out, got the folder {report_path}: name a file in it"
        )
    for option, path in (("--out", report_path), ("--store", store_path)):
        folder = path.resolve().parent
        if not os.access(folder, os.W_OK):
            msg = (
                f"demo expects to write {path}, but there is no folder {folder} that it may write "
                f"in: choose another with {option}"
            )
            raise GrassError(msg)
    try:
        # Only the demo needs torch and scikit-learn, and torch takes seconds to import.
        from grass_rs.cli.demo.pipeline import DemoSettings, run_demo  # noqa: PLC0415
        from grass_rs.cli.demo.present import demo_report, demo_text  # noqa: PLC0415
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in {"torch", "sklearn"}:
            raise
        msg = f"demo needs {package}, which is not here: pip install 'grass_rs[torch,report]'"
        raise GrassError(msg) from error
    from grass_rs.report import write_report  # noqa: PLC0415

    start = time.perf_counter()
    result = run_demo(DemoSettings(seed=arguments.seed), store_path)
    write_report(demo_report(result), report_path)
    seconds = time.perf_counter() - start
    sys.stderr.write(f"took {seconds:.1f} s and at most {_peak_memory() / 1e9:.2f} GB of memory\n")
    return f"{demo_text(result)}\n\nreport: {report_path}\nstore: {store_path}"


def _peak_memory() -> int:
    """Return the most bytes of memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
