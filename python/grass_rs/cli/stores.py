"""The subcommands about stores: `inspect`, `verify`, `repair`, `merge` and `export`. None needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grass_rs.cli.arguments import add_command
from grass_rs.cli.inspect import facts, text
from grass_rs.errors import GrassError
from grass_rs.store import (
    EXPORT_FORMATS,
    export_store,
    merge_stores,
    open_store,
    repair_store,
    verify_store,
)

if TYPE_CHECKING:
    from argparse import Namespace


def add(commands: Any) -> None:
    """Add the subcommands."""
    _add_inspect(commands)
    _add_verify(commands)
    _add_repair(commands)
    _add_merge(commands)
    _add_export(commands)


def _add_inspect(commands: Any) -> None:
    command = add_command(
        commands,
        "inspect",
        _inspect,
        "say what a store holds",
        """\
Prints rows, dtype, size on disk, fingerprints of plan and model, and the compressor of each layer.
Reads no rows: `grass-rs verify` does.

example: grass-rs inspect train.grass --json""",
    )
    command.add_argument("store", metavar="STORE", help="folder of the store")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _add_verify(commands: Any) -> None:
    command = add_command(
        commands,
        "verify",
        _verify,
        "check every byte of a store against its checksums",
        """\
Exit code 0 = every row and id is as it was written; 1 = the message names all damage found, which
`grass-rs repair` drops.

example: grass-rs verify train.grass""",
    )
    command.add_argument("store", metavar="STORE", help="folder of the store")


def _add_repair(commands: Any) -> None:
    command = add_command(
        commands,
        "repair",
        _repair,
        "drop what is damaged in a store, and keep the rest",
        """\
Says how many rows were dropped and kept, and the ids of the examples to be cached again: the same
call of `cache` that made the store caches just those.

example: grass-rs repair train.grass""",
    )
    command.add_argument("store", metavar="STORE", help="folder of the store")
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _add_merge(commands: Any) -> None:
    command = add_command(
        commands,
        "merge",
        _merge,
        "make one store of the rows of several, of the same plan and model",
        """\
The sources stay as they are. No example may be in two of them.

example: grass-rs merge part-0.grass part-1.grass --out train.grass""",
    )
    command.add_argument("sources", metavar="SOURCE", nargs="+", help="folder of a store")
    command.add_argument(
        "--out", type=Path, metavar="PATH", required=True, help="folder of the new store"
    )


def _add_export(commands: Any) -> None:
    command = add_command(
        commands,
        "export",
        _export,
        "write a store's rows, or its ids, in a format of other programs",
        """\
npy = rows as a float32 matrix for numpy.load, and beside them the ids; safetensors = rows and ids,
as tensors; parquet = a table of the ids in the order of the rows. Every chunk is compared with its
checksum.

example: grass-rs export train.grass --out train.npy --format npy""",
    )
    command.add_argument("store", metavar="STORE", help="folder of the store")
    command.add_argument("--out", type=Path, metavar="PATH", required=True, help="file to write")
    command.add_argument("--format", choices=EXPORT_FORMATS, required=True, help="what to write")


def _inspect(arguments: Namespace) -> str:
    """Return what a store holds, as text or as one JSON object."""
    held = facts(open_store(arguments.store))
    return json.dumps(held, indent=2) if arguments.json else "\n".join(text(held))


def _verify(arguments: Namespace) -> str:
    """Check every byte of a store; `CorruptStoreError` lists all damage found."""
    store = verify_store(arguments.store)
    return f"{arguments.store}: {len(store):,} rows are as they were written"


def _repair(arguments: Namespace) -> str:
    """Drop what is damaged, and return what is to be cached again."""
    outcome = repair_store(arguments.store)
    kept, lost = outcome.kept_rows, outcome.lost_ids.tolist()
    if arguments.json:
        told = {
            "dropped_rows": outcome.dropped_rows,
            "kept_rows": kept,
            "lost_ids": lost,
            "unknown_ids": outcome.unknown_ids,
        }
        return json.dumps(told, indent=2)
    lines = [f"{arguments.store}: dropped {outcome.dropped_rows:,} rows, kept {kept:,}"]
    if lost:
        lines.append(f"cache again: {' '.join(map(str, lost))}")
    if outcome.unknown_ids:
        lines.append(
            f"lost with their ids: {outcome.unknown_ids:,} rows; caching again finds what is missing"
        )
    return "\n".join(lines)


def _merge(arguments: Namespace) -> str:
    """Make one store of several."""
    merged = merge_stores(arguments.sources, arguments.out)
    return f"{arguments.out}: {len(merged):,} rows of {len(arguments.sources)} stores"


def _export(arguments: Namespace) -> str:
    """Write a store in another format."""
    try:
        export_store(arguments.store, arguments.out, arguments.format)
    except ModuleNotFoundError as error:
        raise GrassError(str(error)) from error
    size = arguments.out.stat().st_size
    return f"{arguments.out}: {arguments.format} of {arguments.store}, {size:,} bytes"
