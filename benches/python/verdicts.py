"""Whether a measured row reaches its goal."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rows import Row


class Verdict(NamedTuple):
    """A row's ratio beside its goal."""

    ratio: float
    """Value over its rival's, or, where the goal is to be so many times faster, the inverse."""
    goal: str
    """Empty where there is none."""
    met: bool
    margin: float
    """What is measured in units of what is allowed: at most 1 where the goal is met."""


class Goals(NamedTuple):
    """Goals by what is measured and what it is held against."""

    most: Mapping[tuple[str, str], float]
    """The most that a row's value may be, in units of what it is held against."""
    least: Mapping[tuple[str, str], float]
    """How many times faster than what it is held against a row must be, at least."""

    def judge(self, row: Row) -> Verdict:
        """Hold a row to its goal."""
        key, ratio = (row.what, row.against), row.value / row.its_value
        if key in self.most:
            margin = ratio / self.most[key]
            return Verdict(ratio, f"<= {self.most[key]:.4g}", met=margin <= 1, margin=margin)
        if key in self.least:
            margin = self.least[key] * ratio
            return Verdict(1 / ratio, f">= {self.least[key]:g}x", met=margin <= 1, margin=margin)
        return Verdict(ratio, "", met=True, margin=0)

    def not_measured(self, rows: list[Row]) -> list[tuple[str, str]]:
        """Return the goals that no row is about."""
        measured = {(row.what, row.against) for row in rows}
        return [key for key in (*self.most, *self.least) if key not in measured]
