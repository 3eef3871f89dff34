"""What the subcommands share: how one is added, and arguments that are whole numbers."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def add_command(
    commands: Any, name: str, run: Callable[[Namespace], str], purpose: str, more: str
) -> ArgumentParser:
    """Add one subcommand, whose help is its purpose and an example."""
    command: ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.\n\n{more}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def seed(text: str) -> int:
    """Return `text` as a seed."""
    return _whole(text, 0, 2**64 - 1)


def count(text: str) -> int:
    """Return `text` as a number of things, at least one."""
    return _whole(text, 1, 2**63 - 1)


def _whole(text: str, low: int, high: int) -> int:
    """Return `text` as a whole number from `low` to `high`; argparse reports the error."""
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        msg = f"expected a whole number from {low} to {high}, got {text!r}"
        raise ArgumentTypeError(msg)
    return value
