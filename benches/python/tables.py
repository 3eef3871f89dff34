"""Rows as a table: for a terminal, and for docs/performance.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from rows import Row
    from verdicts import Goals

HEAD = ("what", "time", "against", "its time", "ratio", "goal", "verdict", "speed")
BEGIN, END = "<!-- the table: written by make bench -->", "<!-- end of the table -->"


def _quantity(value: float, unit: str) -> str:
    if unit == "s":
        for size, name in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
            if value >= size:
                return f"{value / size:.3g} {name}"
        return f"{value * 1e9:.3g} ns"
    if unit == "bytes":
        return f"{value / 2**20:.2f} MiB"
    if not unit:
        return f"{value:.2g}"
    return f"{value:,.0f} {unit}"


def _speed(row: Row) -> str:
    """Return the speed by the measure that bounds it: multiply-adds beside as many of another kind, or bytes."""
    if row.unit != "s":
        return ""
    if row.operations and any(word in row.against for word in ("multiply-adds", "product")):
        return f"{row.operations / row.value / 1e9:.1f} GFLOP/s"
    if row.bytes:
        return f"{row.bytes / row.value / 1e9:.1f} GB/s"
    return ""


def _cells(rows: list[Row], goals: Goals) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = []
    for row in rows:
        ratio, goal, met, _ = goals.judge(row)
        verdict = ("met" if met else "missed") if goal else ""
        times = _quantity(row.value, row.unit), _quantity(row.its_value, row.unit)
        cells.append(
            (row.what, times[0], row.against, times[1], f"{ratio:.3g}", goal, verdict, _speed(row))
        )
    return cells


def for_terminal(rows: list[Row], goals: Goals) -> str:
    """Return aligned columns, then the goals that no row is about."""
    lines = [HEAD, *_cells(rows, goals)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    text += [
        f"not measured: {what}, against {against}" for what, against in goals.not_measured(rows)
    ]
    return "\n".join(text)


def write_page(
    path: Path, rows: list[Row], goals: Goals, machine: dict[str, Any], date: str
) -> None:
    """Put the table and what it was measured on between the markers of a page."""
    before, begin, rest = path.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path} expects the lines {BEGIN!r} and {END!r} around the table")
    lines = [HEAD, ("---",) * len(HEAD), *_cells(rows, goals)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    simd = machine["grass_rs"]["simd"]
    on = (
        f"Measured on {date}: {machine['processor']}, {machine['cores']} cores, {simd}, "
        f"torch {machine['torch']}, NumPy {machine['numpy']}."
    )
    path.write_text(f"{before}{BEGIN}\n{on}\n\n{table}\n{END}{after}")
