"""The plots of docs/performance.md."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import matplotlib as mpl

from goals import CPU

mpl.use("agg")
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

    from rows import Row

MET, MISSED = "#3b7d4f", "#b5473c"


def draw(folder: Path, rows: list[Row]) -> None:
    """Draw all of them into `folder`."""
    _goals(folder / "performance-goals.png", rows)
    _parameters(folder / "performance-parameters.png", rows)
    _threads(folder / "performance-threads.png", rows)


def _goals(path: Path, rows: list[Row]) -> None:
    """Draw how far each row is from its goal."""
    verdicts = [(row, CPU.judge(row)) for row in rows]
    held = [(row, verdict) for row, verdict in verdicts if verdict.goal][::-1]
    figure, axes = plt.subplots(figsize=(9, 1 + 0.19 * len(held)), layout="constrained")
    names = [f"{row.what} | {row.against}" for row, _ in held]
    # A logarithmic axis has no zero: nothing used is drawn as a hundredth of what is allowed.
    margins = [max(verdict.margin, 0.01) for _, verdict in held]
    colours = [MET if verdict.met else MISSED for _, verdict in held]
    axes.barh(range(len(held)), [margin - 0.01 for margin in margins], left=0.01, color=colours)
    axes.set_yticks(range(len(held)), names, fontsize=6)
    axes.set_ylim(-0.6, len(held) - 0.4)
    axes.set_xscale("log")
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("measured / allowed (1 = the goal, left of it is better)")
    _save(figure, path)


def _parameters(path: Path, rows: list[Row]) -> None:
    """Draw the time of a call against the number of parameters."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for name in ("GraSS", "FactGraSS"):
        matches = [(re.fullmatch(rf"{name} of p=2\^(\d+)", row.what), row) for row in rows]
        points = [(2 ** int(match[1]), row) for match, row in matches if match]
        sizes = [size for size, _ in points]
        axes.plot(sizes, [1e3 * row.value for _, row in points], marker="o", label=name)
        if name == "GraSS":
            times = [1e3 * row.its_value for _, row in points]
            axes.plot(
                sizes, times, linestyle="--", color="grey", label="reading p values, for scale"
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("parameters p")
    axes.set_ylabel("ms a call, 1 thread")
    axes.legend(frameon=False)
    _save(figure, path)


def _threads(path: Path, rows: list[Row]) -> None:
    """Draw what two threads gain: for calls of any size, and for large ones."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    calls = sorted(
        (row.operations, row.its_value / row.value)
        for row in rows
        if row.what.startswith("2 threads, call of")
    )
    left.plot([size for size, _ in calls], [gain for _, gain in calls], marker="o")
    left.axhline(1, color="black", linewidth=1)
    for row in rows:
        if row.against == "threshold of serial calls":
            left.axvline(row.its_value, color="grey", linestyle="--")
            left.text(row.its_value, 0.1, " threshold")
    left.set_xscale("log", base=2)
    left.set_ylim(0, 2.2)
    left.set_xlabel("operations of the call")
    left.set_ylabel("times faster with 2 threads")
    large = [row for row in rows if row.against in {"1 thread", "1 Python thread"}]
    large = [row for row in large if row.unit == "s" and not row.operations][::-1]
    gains = [row.its_value / row.value for row in large]
    right.barh(range(len(large)), gains, color=MET)
    right.set_yticks(range(len(large)), [row.what for row in large], fontsize=7)
    right.axvline(1, color="black", linewidth=1)
    right.set_xlim(0, 2.2)
    right.set_xlabel("times faster with 2 threads")
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    # Without the version of matplotlib, so that the same rows make the same file.
    figure.savefig(path, dpi=90, metadata={"Software": None})
    plt.close(figure)
