"""Finished stores larger than what they take on the disk: their rows are zeros that no disk holds, but for the first.

Written from the description of the format alone, in plain Python, so that a store of any size is made at once.
"""

from __future__ import annotations

import hashlib
import json
import struct
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from zlib import crc32

import numpy as np

from store_rows import HEADER_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SHARD_BYTES = 4 * 2**30
CHUNK_BYTES = 2**20


def write(path: Path, n: int, widths: list[int], first_rows: NDArray[np.float32]) -> None:
    """Write a store of n float32 rows.

    Parameters
    ----------
    path
        Folder to make.
    n
        Rows; their ids count from 0.
    widths
        Of the columns.
    first_rows
        (m, sum(widths)): the first rows of every shard, a whole chunk at most. All others are zeros.

    """
    path.mkdir()
    row_bytes = 4 * sum(widths)
    chunk_rows = 1 << (CHUNK_BYTES // row_bytes).bit_length() - 1
    shard_rows = SHARD_BYTES // row_bytes // chunk_rows * chunk_rows
    starts = [*range(0, n, shard_rows), n]
    identity = {
        "columns": _columns(widths),
        "dtype": "float32",
        "fingerprints": {},
    }
    shards = []
    for number, (start, end) in enumerate(pairwise(starts)):
        files = path / f"shard-{number:05}"
        with files.with_suffix(".rows").open("wb") as file:
            file.write(_header(identity, row_bytes, number))
            file.write(first_rows.tobytes())
            file.truncate(HEADER_BYTES + (end - start) * row_bytes)
        ids = np.arange(start, end, dtype="<u8")
        files.with_suffix(".ids").write_bytes(ids.tobytes())
        log = _log(ids, row_bytes, chunk_rows, first_rows.tobytes())
        files.with_suffix(".log").write_bytes(log)
        shards.append({"log_crc32": _log_crc32(log), "number": number, "rows": end - start})
    manifest = _manifest(identity, shards)
    for name in ("manifest.json", "manifest.copy.json"):
        (path / name).write_bytes(manifest)


def _columns(widths: list[int]) -> list[dict[str, Any]]:
    offsets = np.cumsum([0, *widths])
    return [
        {"name": f"layer {index}", "offset": int(offset), "spec": {}, "width": width}
        for index, (offset, width) in enumerate(zip(offsets, widths, strict=False))
    ]


def _canonical(value: dict[str, Any]) -> bytes:
    """Return one line of JSON: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _header(identity: dict[str, Any], row_bytes: int, shard: int) -> bytes:
    """Return a page: magic, format, dtype code, row bytes, shard number, digest of the identity, zeros, CRC-32."""
    digest = hashlib.sha256(_canonical(identity)).digest()
    fields = struct.pack("<8sIIQI32s", b"GRASSROW", 1, 1, row_bytes, shard, digest)
    page = fields.ljust(HEADER_BYTES - 4, b"\0")
    return page + struct.pack("<I", crc32(page))


def _log(ids: NDArray[np.uint64], row_bytes: int, chunk_rows: int, first_bytes: bytes) -> bytes:
    """Return a record a chunk: rows so far, CRC-32 of the chunk's rows and of its ids, CRC-32 of the record."""
    zeros = crc32(bytes(chunk_rows * row_bytes))
    records = []
    for start in range(0, len(ids), chunk_rows):
        part = ids[start : start + chunk_rows]
        size = len(part) * row_bytes
        if start == 0:
            rows_crc = crc32(first_bytes.ljust(size, b"\0"))
        else:
            rows_crc = zeros if len(part) == chunk_rows else crc32(bytes(size))
        record = struct.pack("<QII", start + len(part), rows_crc, crc32(part.tobytes()))
        records.append(record + struct.pack("<I", crc32(record)))
    return b"".join(records)


def _log_crc32(log: bytes) -> int:
    """CRC-32 of the records of a log without their own."""
    records = np.frombuffer(log, np.uint8).reshape(-1, 20)
    return crc32(records[:, :16].tobytes())


def _manifest(identity: dict[str, Any], shards: list[dict[str, int]]) -> bytes:
    fields = {
        **identity,
        "complete": True,
        "finished_writers": [],
        "format": 1,
        "shards": shards,
        "skipped_ids": [],
        "writers": 1,
    }
    checksum = crc32(_canonical(fields))
    return _canonical({**fields, "crc32": checksum}) + b"\n"
