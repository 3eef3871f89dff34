"""Ways out of a store: its rows and ids as files that other programs read."""

from __future__ import annotations

import json
import os
import struct
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from os import fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from grass_rs.errors import (
    SpecError,
    StoreError,
    StoreExistsError,
    StorePermissionError,
    path_of,
    unknown_name,
)
from grass_rs.store.reader import Store, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from os import PathLike

    from numpy.typing import NDArray

_BLOCK_BYTES = 16 * 2**20
"""Bytes of float32 rows that are in memory at once."""

_GROUP_ROWS = 2**20
"""Rows that a group of a Parquet file holds."""

_MOST_HEADER_BYTES = 100_000_000
"""Readers of safetensors refuse a longer header."""


def export_store(
    store: Store | str | PathLike[str],
    out: str | PathLike[str],
    format: str,  # noqa: A002 - the word of every other exporter
) -> tuple[Path, ...]:
    """Copy the rows or ids of a finished store to a file of a common format.

    Rows are copied in blocks, so memory holds some 16 MiB at a time, at least a row, and 8 bytes an
    id, whatever the size of the store. A file is written beside its place, and takes its name when it is
    whole and every checksum of the store was compared: damaged rows never leave. What is returned
    survives a power loss.

    Parameters
    ----------
    store
        The store, or its folder.
    out
        File to write; nothing may be there.
    format
        "npy": the rows as an (n, width) float32 array, and beside it, with `.ids.npy` in the place of
        `.npy`, the ids as an (n,) uint64 array; "safetensors": tensors `rows`, (n, width) of the
        store's dtype (float32 for int8), and `ids`, (n,) uint64, with columns, dtype, fingerprints
        and skipped ids as metadata; "parquet": columns `id` and `row`, both uint64, which needs
        pyarrow.

    Returns
    -------
    tuple of Path
        The files written.

    Raises
    ------
    SpecError
        If the format is unknown, or cannot hold the columns' specs.
    StoreExistsError
        If there is anything at a path to write.
    CorruptStoreError
        If the store is damaged; no file is left.
    StoreError
        If the store is unfinished, or a file cannot be written.
    ModuleNotFoundError
        If pyarrow is needed and missing.

    """
    if format not in _WRITERS:
        raise SpecError(unknown_name("export format", format, _WRITERS))
    source = store if isinstance(store, Store) else open_store(store)
    if not source.complete:
        raise StoreError(
            f"export expects a finished store, got {source!r}: go on with what writes it"
        )
    path = path_of("export", out)
    if not path.name:
        raise SpecError(f"export expects a file to write, got {fspath(out)!r}: name one")
    # The rows are named last: where they are, their ids are too.
    ids = path.with_name(path.name.removesuffix(".npy") + ".ids.npy")
    paths = (ids, path) if format == "npy" else (path,)
    with _named_when_whole(paths) as temporaries:
        _WRITERS[format](source, *temporaries)
        source.verify()
    return paths


@contextmanager
def _named_when_whole(paths: tuple[Path, ...]) -> Iterator[list[Path]]:
    """Give a temporary path for each; in the end they are renamed, after an error removed."""
    _refuse_existing(paths)
    out = paths[-1]
    try:
        from tempfile import TemporaryDirectory  # noqa: PLC0415 - milliseconds that only exports need

        with TemporaryDirectory(prefix=f"{out.name}.", suffix=".tmp", dir=out.parent) as folder:
            temporaries = [Path(folder) / path.name for path in paths]
            yield temporaries
            _refuse_existing(paths)
            _rename(temporaries, paths)
    except StoreError:
        raise
    except OSError as error:
        kind = StorePermissionError if isinstance(error, PermissionError) else StoreError
        raise kind(
            f"export cannot write {out} ({error}): choose another place, or make room"
        ) from error


def _rename(temporaries: list[Path], paths: tuple[Path, ...]) -> None:
    """Give files their names, all of them durable, or after an error none."""
    named: list[Path] = []
    try:
        for temporary, path in zip(temporaries, paths, strict=True):
            named.append(temporary.rename(path))
        _sync_folder(paths[-1].parent)
    except BaseException:
        for path in named:
            path.unlink()
        raise


def _sync_folder(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _refuse_existing(paths: tuple[Path, ...]) -> None:
    for path in paths:
        if os.path.lexists(path):
            raise StoreExistsError(
                f"export expects nothing at {path}, got something: choose another path, or remove it"
            )


@contextmanager
def _durable(path: Path) -> Iterator[BinaryIO]:
    """Make a file whose bytes are on the disk when it is left."""
    with path.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _blocks(store: Store) -> Iterator[NDArray[np.float32]]:
    count = max(1, _BLOCK_BYTES // (4 * store.width))
    for start in range(0, len(store), count):
        yield store[start : start + count]


def _write_npy(store: Store, ids_path: Path, rows_path: Path) -> None:
    def header(file: BinaryIO, dtype: str, shape: tuple[int, ...]) -> None:
        facts = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, facts)

    with _durable(ids_path) as file:
        header(file, "<u8", (len(store),))
        file.write(store.ids.astype("<u8", copy=False).data)
    with _durable(rows_path) as file:
        header(file, "<f4", (len(store), store.width))
        for rows in _blocks(store):
            file.write(rows.astype("<f4", copy=False).data)


def _write_safetensors(store: Store, path: Path) -> None:
    # The ids come first, so that both tensors begin at a multiple of their numbers' length.
    ids_bytes = 8 * len(store)
    name, number_bytes, convert = _TENSORS[store.dtype]
    rows_bytes = number_bytes * len(store) * store.width
    facts = {
        "columns": [asdict(column) for column in store.columns],
        "dtype": store.dtype,
        "fingerprints": store.fingerprints,
        "skipped_ids": store.skipped_ids.tolist(),
    }
    described = {
        "__metadata__": {
            "format": "grass_rs store 1",
            **{key: json.dumps(fact) for key, fact in facts.items()},
        },
        "ids": {"dtype": "U64", "shape": [len(store)], "data_offsets": [0, ids_bytes]},
        "rows": {
            "dtype": name,
            "shape": [len(store), store.width],
            "data_offsets": [ids_bytes, ids_bytes + rows_bytes],
        },
    }
    header = json.dumps(described).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > _MOST_HEADER_BYTES:
        raise SpecError(
            f"export to safetensors expects a header of at most {_MOST_HEADER_BYTES} bytes, got "
            f"{len(header)}, by long column specs or many skipped ids: export to npy"
        )
    with _durable(path) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.write(store.ids.astype("<u8", copy=False).data)
        for rows in _blocks(store):
            file.write(convert(rows).data)


def _write_parquet(store: Store, path: Path) -> None:
    try:
        arrow, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    except ModuleNotFoundError as error:
        if error.name != "pyarrow":
            raise
        msg = "export to parquet needs pyarrow, which is not here: pip install 'grass_rs[parquet]'"
        raise ModuleNotFoundError(msg, name="pyarrow") from error
    schema = arrow.schema([("id", arrow.uint64()), ("row", arrow.uint64())])
    ids = store.ids
    with _durable(path) as file, parquet.ParquetWriter(file, schema) as writer:
        for start in range(0, len(ids), _GROUP_ROWS):
            part = ids[start : start + _GROUP_ROWS]
            rows = np.arange(start, start + len(part), dtype=np.uint64)
            writer.write_table(arrow.table([part, rows], schema=schema))


def _upper_half(rows: NDArray[np.float32]) -> NDArray[Any]:
    """Return bfloat16 numbers, which the rows of such a store are, as their bits."""
    return (rows.view(np.uint32) >> 16).astype("<u2")


_TENSORS: dict[str, tuple[str, int, Callable[[NDArray[np.float32]], NDArray[Any]]]] = {
    "float32": ("F32", 4, lambda rows: rows.astype("<f4", copy=False)),
    "float16": ("F16", 2, lambda rows: rows.astype("<f2")),
    "bfloat16": ("BF16", 2, _upper_half),
    "int8": ("F32", 4, lambda rows: rows.astype("<f4", copy=False)),
}
"""Dtype of a store -> name in safetensors, bytes of a number, and rows as that."""

_WRITERS: dict[str, Callable[..., None]] = {
    "npy": _write_npy,
    "safetensors": _write_safetensors,
    "parquet": _write_parquet,
}
"""Each takes the store and the paths to write."""

EXPORT_FORMATS = tuple(_WRITERS)
"""What `export_store` writes."""
