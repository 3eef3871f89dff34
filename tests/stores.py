"""What the tests of stores share: columns, rows, files as bytes, and format 1 written in plain Python."""

from __future__ import annotations

import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

import grass_rs as grass

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DTYPES = ("float32", "float16", "bfloat16", "int8")
CHUNK_BYTES = 4 * 2**20


INTERRUPTED = """
import resource, signal, sys
import numpy as np
import grass_rs as grass

store = grass.open_store(sys.argv[1])
grass.set_num_threads(1)
{before}
# A call that nothing stops is killed.
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.5)
try:
    {call}
except KeyboardInterrupt:
    print("interrupted", store[:1].shape, store.ids[:1])
else:
    print("finished")
"""
"""A script that makes a call about a store, which must take minutes of the CPU, and sends itself a signal."""


def columns(*widths: int) -> list[grass.Column]:
    """Return columns of these widths, side by side."""
    offsets = np.cumsum([0, *widths]).tolist()
    return [
        grass.Column(f"layer{i}", offsets[i], width, {"type": "sjlt", "seed": i})
        for i, width in enumerate(widths)
    ]


def numbers(rows: int, width: int, seed: int = 0) -> np.ndarray:
    """Return (rows, width) normal numbers as float32."""
    return np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)


def write(
    path: Path, rows: np.ndarray, widths: Sequence[int], dtype: str = "float32", **options: Any
) -> grass.Store:
    """Write a finished store of these rows; row i has id 100 + i unless `ids` says otherwise."""
    ids = options.pop("ids", np.arange(100, 100 + len(rows)))
    with grass.create_store(path, columns(*widths), dtype, **options) as writer:
        writer.append(rows, ids)
        return writer.finish()


def files(path: Path) -> dict[str, bytes]:
    """Return every file of a store, but for the lock, which is no part of it."""
    return {f.name: f.read_bytes() for f in sorted(path.iterdir()) if f.name != ".lock"}


def reference_files(
    rows: np.ndarray, ids: Sequence[int], widths: Sequence[int], fingerprints: dict[str, str]
) -> dict[str, bytes]:
    """Return the files of a finished float32 store of one shard, by design and by hand."""
    row_bytes = 4 * rows.shape[1]
    chunk = 1 << (max(1, CHUNK_BYTES // row_bytes).bit_length() - 1)
    header = struct.pack("<8sIIQI", b"GRASSROW", 1, 1, row_bytes, 0).ljust(4092, b"\0")
    log = b""
    stored_ids = np.asarray(ids, dtype="<u8")
    for start in range(0, len(rows), chunk):
        part = slice(start, min(start + chunk, len(rows)))
        record = struct.pack(
            "<QII",
            part.stop,
            zlib.crc32(rows[part].astype("<f4").tobytes()),
            zlib.crc32(stored_ids[part].tobytes()),
        )
        log += record + struct.pack("<I", zlib.crc32(record))
    manifest: dict[str, Any] = {
        "columns": [
            {"name": c.name, "offset": c.offset, "width": c.width, "spec": c.spec}
            for c in columns(*widths)
        ],
        "complete": True,
        "dtype": "float32",
        "fingerprints": fingerprints,
        "format": 1,
        "shards": [{"rows": len(rows)}],
        "skipped_ids": [],
    }
    manifest["crc32"] = zlib.crc32(_canonical(manifest))
    return {
        "manifest.json": _canonical(manifest) + b"\n",
        "shard-00000.ids": stored_ids.tobytes(),
        "shard-00000.log": log,
        "shard-00000.rows": header
        + struct.pack("<I", zlib.crc32(header))
        + rows.astype("<f4").tobytes(),
    }


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
