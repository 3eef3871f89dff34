"""Arguments, exit codes and one-line errors of the command line."""

from __future__ import annotations

import os
import resource
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grass_rs.cli import stores
from grass_rs.errors import GrassError
from grass_rs.store.reader import METHODS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        sys.stderr.write(f"grass-rs: {error}\n")
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
    _add_demo(commands)
    _add_inspect(commands)
    _add_verify(commands)
    _add_score(commands)
    return parser


def _add(
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


def _add_demo(commands: Any) -> None:
    command = _add(
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
    command.add_argument("--seed", type=_seed, default=0, help="seed of everything (default: 0)")
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


def _add_inspect(commands: Any) -> None:
    command = _add(
        commands,
        "inspect",
        stores.inspect,
        "say what a store holds",
        """\
Prints rows, dtype, size on disk, fingerprints of plan and model, and the compressor of each layer.
Reads no rows: `grass-rs verify` does.

example: grass-rs inspect train.grass --json""",
    )
    command.add_argument("store", metavar="STORE", help="folder of the store")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _add_verify(commands: Any) -> None:
    command = _add(
        commands,
        "verify",
        stores.verify,
        "check every byte of a store against its checksums",
        """\
Exit code 0 = every row and id is as it was written; 1 = the message names all damage found.

example: grass-rs verify train.grass""",
    )
    command.add_argument("store", metavar="STORE", help="folder of the store")


def _add_score(commands: Any) -> None:
    command = _add(
        commands,
        "score",
        stores.score,
        "score training examples for queries, from two stores of the same plan",
        """\
A positive score means that training on the example lowers the loss on the query. Prints a table of
the best training examples of each query (columns, tab-separated: query, rank, train, score), or
writes scores to an .npz file that numpy.load and grass_rs.Scores.load read. Needs no torch.

example: grass-rs score train.grass queries.grass --top 5
example: grass-rs score train.grass queries.grass --damping 0.1 --out scores.npz""",
    )
    command.add_argument("train", metavar="TRAIN", help="store of the training examples")
    command.add_argument("queries", metavar="QUERIES", help="store of the queries, same plan")
    command.add_argument(
        "--method",
        choices=METHODS,
        default=METHODS[0],
        help="influence = g_query (F + lambda)^-1 g_train with the empirical Fisher F of each "
        "layer; graddot = g_query g_train; gradcos = its cosine (default: influence)",
    )
    command.add_argument(
        "--damping",
        type=float,
        default=0.4,
        help="lambda of influence, in units of tr(F) / n of each layer (default: 0.4)",
    )
    command.add_argument(
        "--top",
        type=_count,
        metavar="K",
        help="keep the K best a query (default: 10 in the table, all in a file)",
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="write an .npz file, no table")


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


def _seed(text: str) -> int:
    return _whole(text, 0, 2**64 - 1)


def _count(text: str) -> int:
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
