"""Exit codes and one-line errors of the command line."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from io import TextIOWrapper
from typing import TYPE_CHECKING

from grass_rs.cli import scores, stores
from grass_rs.cli.demo import command as demo
from grass_rs.cli.inspect import shown
from grass_rs.errors import GrassError

if TYPE_CHECKING:
    from collections.abc import Sequence

_EXIT_CODES = """\
Data goes to stdout, messages and progress bars to stderr. Exit codes: 0 done, 1 an error that one
line on stderr explains, 2 wrong usage, 130 Ctrl-C, 141 the reader of stdout has left."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit code.

    Parameters
    ----------
    arguments
        The words after the program's name; None = those of this process.

    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # Names of layers and files may be what the terminal's encoding cannot write.
            stream.reconfigure(errors="backslashreplace")
    parsed = _parser().parse_args(arguments)
    try:
        sys.stdout.write(parsed.run(parsed) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has left, as `head` does; without this Python complains again on closing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (GrassError, OSError) as error:
        sys.stderr.write(f"grass-rs: {shown(str(error))}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("grass-rs: interrupted\n")
        return 130
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="grass-rs",
        description="Which training data made my model say this? Attribution with GraSS.",
        epilog=_EXIT_CODES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (demo, stores, scores):
        group.add(commands)
    return parser
