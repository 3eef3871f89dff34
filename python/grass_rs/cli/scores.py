"""The subcommands that score stored rows: `score`, `self-influence` and `tune`. None needs torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from grass_rs.cli.arguments import add_command, count
from grass_rs.errors import DataError, GrassError
from grass_rs.evaluate import tune
from grass_rs.store import FISHERS, METHODS, open_store
from grass_rs.store.arrays import first_line

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from grass_rs.store import Store
    from grass_rs.types import Scores

_SHOWN = 10
"""How many examples a table shows unless it is told otherwise."""


def add(commands: Any) -> None:
    """Add the subcommands."""
    _add_score(commands)
    _add_self_influence(commands)
    _add_tune(commands)


def _add_score(commands: Any) -> None:
    command = add_command(
        commands,
        "score",
        _score,
        "score training examples for queries, from two stores of the same plan",
        """\
A positive score means that training on the example lowers the loss on the query. Prints a table of
the best training examples of each query (columns, tab-separated: query, rank, train, score), or
writes scores to a file. FILE.npy takes all of them as they are made, however many; the ids of its
columns go to FILE.ids.npy, and the same command goes on where it was stopped. FILE.npz, with --top
or without, is read by numpy.load and grass_rs.Scores.load. Needs no torch.

example: grass-rs score train.grass queries.grass --top 5
example: grass-rs score train.grass queries.grass --damping 0.1 --out scores.npy --progress
example: grass-rs score train.grass queries.grass --method tracin --learning-rates 0.1 0.05""",
    )
    command.add_argument("train", metavar="TRAIN", help="store of the training examples")
    command.add_argument("queries", metavar="QUERIES", help="store of the queries, same plan")
    command.add_argument(
        "--method",
        choices=METHODS,
        default=METHODS[0],
        help="influence = g_query (F + lambda)^-1 g_train with the empirical Fisher F of each "
        "layer; graddot = g_query g_train; gradcos = its cosine; tracin = sum over checkpoints of "
        "learning rate times graddot; trak = influence times the stored weight of the example, for "
        "loss margin (default: influence)",
    )
    command.add_argument(
        "--learning-rates",
        type=float,
        nargs="+",
        metavar="RATE",
        help="of tracin, one a checkpoint",
    )
    _add_common(command)
    command.add_argument(
        "--top",
        type=count,
        metavar="K",
        help=f"keep the K best a query (default: {_SHOWN} in the table, all in a file)",
    )
    command.add_argument("--out", type=Path, metavar="FILE", help="write a file, no table")


def _add_self_influence(commands: Any) -> None:
    command = add_command(
        commands,
        "self-influence",
        _self_influence,
        "list the training examples that influence themselves most",
        """\
The influence of an example on itself, g (F + lambda)^-1 g, is large where a model could not have
learnt the example from the others: rare examples, and mislabelled ones. Prints a table (columns,
tab-separated: rank, train, score). Needs no torch.

example: grass-rs self-influence train.grass --top 50""",
    )
    command.add_argument("store", metavar="STORE", help="store of the training examples")
    _add_common(command)
    command.add_argument(
        "--top",
        type=count,
        default=_SHOWN,
        metavar="K",
        help=f"how many examples to list (default: {_SHOWN})",
    )


def _add_tune(commands: Any) -> None:
    command = add_command(
        commands,
        "tune",
        _tune,
        "choose the method and the damping for a store",
        """\
With the outcomes of models retrained on subsets, by the mean LDS over the queries; influence with
damping 0.4 stays unless another is better by more than a standard error. Without, the damping of
influence by a rule that looks at the stored rows alone. Prints what was tried and marks the choice
(columns, tab-separated: method, damping, LDS and its s.e.m. or the criterion, chosen). Needs no torch.

example: grass-rs tune train.grass
example: grass-rs tune train.grass queries.grass --subsets subsets.npy --outcomes outcomes.npy""",
    )
    command.add_argument("store", metavar="STORE", help="store of the training examples")
    command.add_argument(
        "queries",
        metavar="QUERIES",
        nargs="?",
        help="store of the queries, same plan; needed with --outcomes",
    )
    command.add_argument(
        "--subsets",
        type=Path,
        metavar="S.npy",
        help="(models, rows) bool: what each retrained model was trained on",
    )
    command.add_argument(
        "--outcomes",
        type=Path,
        metavar="O.npy",
        help="(models, queries): how well each does, higher = better",
    )


def _add_common(command: ArgumentParser) -> None:
    command.add_argument(
        "--damping",
        type=float,
        help="lambda of influence and trak, in units of tr(F) / n of each block of F (default: 0.4, or "
        "1.0 with --fisher row)",
    )
    command.add_argument(
        "--columns",
        nargs="+",
        metavar="NAME",
        help="names or shell patterns of the blocks that count, NAME@0 for one checkpoint alone "
        "(default: all)",
    )
    command.add_argument(
        "--fisher",
        choices=tuple(FISHERS),
        default="layer",
        help="a block of F a layer, or one for the whole row (default: layer)",
    )
    command.add_argument(
        "--progress", action="store_true", help="show a progress bar of the bytes of rows"
    )


def _score(arguments: Namespace) -> str:
    """Score the rows of one store for the rows of another, to a table or a file."""
    train, queries = open_store(arguments.train), open_store(arguments.queries)
    options = {
        "method": arguments.method,
        "damping": arguments.damping,
        "columns": arguments.columns,
        "learning_rates": arguments.learning_rates,
        "fisher": arguments.fisher,
        "progress": arguments.progress,
    }
    out: Path | None = arguments.out
    if out is not None and out.suffix == ".npy":
        if arguments.top is not None:
            raise GrassError(
                f"score writes all scores to {out}, got --top {arguments.top}: leave it out, or "
                f"name a file .npz"
            )
        scores = train.score(queries, out=out, **options)
        return (
            f"{out}: scores {scores.values.shape}, a row a query of {arguments.queries}\n"
            f"{out.with_suffix('.ids.npy')}: ids of the columns"
        )
    if out is None:
        scores = train.score(queries, top_k=min(arguments.top or _SHOWN, len(train)), **options)
        return "\n".join(_table(scores, queries))
    top_k = None if arguments.top is None else min(arguments.top, len(train))
    scores = train.score(queries, top_k=top_k, **options)
    scores.save(out)
    return f"{out}: scores {scores.values.shape}, a row a query of {arguments.queries}"


def _self_influence(arguments: Namespace) -> str:
    """Return a table of the examples with the largest influence on themselves."""
    store = open_store(arguments.store)
    values = store.self_influence(
        arguments.damping,
        columns=arguments.columns,
        fisher=arguments.fisher,
        progress=arguments.progress,
    )
    best = np.lexsort((store.ids, -values))[: arguments.top]
    lines = ["rank\ttrain\tscore"]
    for rank, (train, value) in enumerate(zip(store.ids[best], values[best], strict=True), start=1):
        lines.append(f"{rank}\t{train}\t{value:.9g}")
    return "\n".join(lines)


def _tune(arguments: Namespace) -> str:
    """Return a table of methods and dampings, with the choice marked."""
    queries = None if arguments.queries is None else open_store(arguments.queries)
    tuning = tune(
        open_store(arguments.store),
        queries,
        subsets=_array(arguments.subsets),
        outcomes=_array(arguments.outcomes),
    )
    return str(tuning)


def _array(path: Path | None) -> NDArray[Any] | None:
    """Return the array of a file .npy."""
    if path is None:
        return None
    try:
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        msg = f"tune expects an array of numpy.save in {path}, got something else: {first_line(error)}"
        raise DataError(msg) from error
    return array


def _table(scores: Scores, queries: Store) -> Iterator[str]:
    """Yield tab-separated lines: query id, rank from 1, training id, score."""
    yield "query\trank\ttrain\tscore"
    for query, ids, values in zip(queries.ids, scores.ids, scores.values, strict=True):
        for rank, (train, value) in enumerate(zip(ids, values, strict=True), start=1):
            yield f"{query}\t{rank}\t{train}\t{value:.9g}"
