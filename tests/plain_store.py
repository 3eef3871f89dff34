"""Format 1 of the store in plain Python and NumPy, from docs/store.md alone: nothing of grass_rs is used."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

HEADER, RECORD, CHUNK = 4096, 20, 2**20
CODES = {"float32": 1, "float16": 2, "bfloat16": 3, "int8": 4}
FLOATS = {"float32": "<f4", "float16": "<f2", "bfloat16": ml_dtypes.bfloat16}
KEYS = {
    "columns": list,
    "complete": bool,
    "crc32": int,
    "dtype": str,
    "fingerprints": dict,
    "finished_writers": list,
    "format": int,
    "shards": list,
    "skipped_ids": list,
    "writers": int,
}
COLUMN_KEYS = {"name": str, "offset": int, "spec": dict, "width": int}
SHARD_KEYS = {"log_crc32": int, "number": int, "rows": int}


class DamagedError(Exception):
    """The store is not what format 1 says."""


def expect(holds: object, what: str) -> None:
    """Refuse the store unless something holds."""
    if not holds:
        raise DamagedError(what)


def canonical(value: Any) -> bytes:
    """Return canonical JSON; Python sorts strings by code points, which is the order of UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True)
class PlainColumn:
    """A named run of numbers in every row."""

    name: str
    width: int
    spec: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """What the columns and the dtype say of a row."""

    widths: tuple[int, ...]
    dtype: str

    @property
    def row_bytes(self) -> int:
        """Return how many bytes a stored row has, also where NumPy has no such type."""
        numbers = sum(self.widths)
        if self.dtype == "int8":
            return (4 * len(self.widths) + numbers + 3) // 4 * 4
        return numbers * (4 if self.dtype == "float32" else 2)

    @property
    def row(self) -> np.dtype[Any]:
        """Return a stored row as NumPy's type."""
        if self.dtype != "int8":
            return np.dtype((FLOATS[self.dtype], (sum(self.widths),)))
        scales, numbers = 4 * len(self.widths), sum(self.widths)
        return np.dtype(
            {
                "names": ["scales", "numbers"],
                "formats": [("<f4", (len(self.widths),)), ("i1", (numbers,))],
                "offsets": [0, scales],
                "itemsize": self.row_bytes,
            }
        )

    @property
    def chunk_rows(self) -> int:
        """Return how many rows make a chunk."""
        rows = 1
        while 2 * rows * self.row_bytes <= CHUNK:
            rows *= 2
        return rows

    def encode(self, rows: np.ndarray) -> bytes:
        """Return the bytes of finite (n, width) rows."""
        if self.dtype != "int8":
            with np.errstate(over="raise"):
                return np.ascontiguousarray(rows, np.float32).astype(self.row.base).tobytes()
        # An array made of zeros, so that the padding is.
        stored = np.zeros(len(rows) * self.row.itemsize, np.uint8).view(self.row)
        columns = np.split(np.asarray(rows, np.float32), np.cumsum(self.widths)[:-1], axis=1)
        for index, column in enumerate(columns):
            largest = np.abs(column).max(axis=1)
            scale = np.maximum(largest / np.float32(127), np.float32(2**-126))
            with np.errstate(over="ignore"):
                below = np.nextafter(scale, np.float32(0))
                scale = np.where(np.isinf(scale * np.float32(127)), below, scale)
            scale[largest == 0] = 0
            stored["scales"][:, index] = scale
            steps = np.divide(
                column, scale[:, None], out=np.zeros_like(column), where=scale[:, None] > 0
            )
            start = sum(self.widths[:index])
            numbers = np.clip(np.rint(steps), -127, 127).astype(np.int8)
            stored["numbers"][:, start : start + self.widths[index]] = numbers
        return stored.tobytes()

    def decode(self, data: bytes) -> np.ndarray:
        """Return stored rows as (n, width) float32."""
        stored = np.frombuffer(data, self.row)
        if self.dtype != "int8":
            return stored.astype(np.float32)
        scales = np.repeat(stored["scales"], self.widths, axis=1)
        return stored["numbers"].astype(np.float32) * scales

    def header(self, number: int, identity: bytes) -> bytes:
        """Return the first bytes of a shard."""
        fields = (b"GRASSROW", 1, CODES[self.dtype], self.row.itemsize, number, identity)
        start = struct.pack("<8sIIQI32s", *fields).ljust(HEADER - 4, b"\0")
        return start + struct.pack("<I", zlib.crc32(start))

    def log(self, rows: bytes, ids: bytes) -> bytes:
        """Return the log of a closed shard."""
        log, count, size = b"", len(ids) // 8, self.row.itemsize
        for start in range(0, count, self.chunk_rows):
            end = min(count, start + self.chunk_rows)
            sums = zlib.crc32(rows[start * size : end * size]), zlib.crc32(ids[start * 8 : end * 8])
            record = struct.pack("<QII", end, *sums)
            log += record + struct.pack("<I", zlib.crc32(record))
        return log


def identity_of(manifest: Mapping[str, Any]) -> bytes:
    """Return what all shards of a store share, as 32 bytes."""
    shared = {key: manifest[key] for key in ("columns", "dtype", "fingerprints")}
    return hashlib.sha256(canonical(shared)).digest()


def write_store(
    path: Path,
    columns: Sequence[PlainColumn],
    dtype: str,
    shards: Mapping[int, tuple[np.ndarray, Sequence[int]]],
    *,
    fingerprints: Mapping[str, str] | None = None,
    skipped_ids: Sequence[int] = (),
) -> None:
    """Write a finished store: number of each shard -> its rows, (n, width), and ids."""
    widths = tuple(column.width for column in columns)
    layout = Layout(widths, dtype)
    offsets = np.cumsum((0, *widths)).tolist()
    manifest: dict[str, Any] = {
        "columns": [
            {"name": c.name, "offset": offset, "spec": c.spec, "width": c.width}
            for c, offset in zip(columns, offsets, strict=False)
        ],
        "complete": True,
        "dtype": dtype,
        "fingerprints": dict(fingerprints or {}),
        "finished_writers": [],
        "format": 1,
        "shards": [],
        "skipped_ids": sorted(set(skipped_ids)),
        "writers": 1,
    }
    path.mkdir()
    for number, (rows, ids) in sorted(shards.items()):
        stored, numbers = layout.encode(rows), np.asarray(ids, "<u8").tobytes()
        log = layout.log(stored, numbers)
        name = f"shard-{number:05}"
        (path / f"{name}.rows").write_bytes(layout.header(number, identity_of(manifest)) + stored)
        (path / f"{name}.ids").write_bytes(numbers)
        (path / f"{name}.log").write_bytes(log)
        closed = {"log_crc32": log_crc32(log), "number": number, "rows": len(rows)}
        manifest["shards"].append(closed)
    manifest["crc32"] = zlib.crc32(canonical(manifest))
    for name in ("manifest.json", "manifest.copy.json"):
        (path / name).write_bytes(canonical(manifest) + b"\n")


@dataclass(frozen=True)
class PlainStore:
    """What a store holds."""

    rows: np.ndarray
    """(n, width) float32."""
    ids: list[int]
    manifest: dict[str, Any]


def no_number(text: str) -> None:
    """Refuse numbers that are not whole."""
    raise DamagedError(text)


def expect_keys(value: Any, keys: Mapping[str, type]) -> None:
    """Refuse what is not an object of exactly these keys with values of their types."""
    expect(type(value) is dict and set(value) == set(keys), "keys")
    expect(all(type(value[key]) is kind for key, kind in keys.items()), "types")


def expect_ascending(numbers: list[Any], end: int) -> None:
    """Refuse what are not different whole numbers from 0 to below an end, ascending."""
    expect(all(type(number) is int and 0 <= number < end for number in numbers), "numbers")
    expect(numbers == sorted(set(numbers)), "ascending numbers")


def levels(value: Any) -> int:
    """Return how many lists and objects are inside one another."""
    inside = value.values() if isinstance(value, dict) else value
    return 1 + max(map(levels, inside), default=0) if isinstance(value, (dict, list)) else 0


def numbers_of(value: Any) -> list[int]:
    """Return all numbers in JSON."""
    if isinstance(value, (dict, list)):
        inside = value.values() if isinstance(value, dict) else value
        return [number for part in inside for number in numbers_of(part)]
    return [value] if type(value) is int else []


def read_manifest(path: Path) -> tuple[dict[str, Any], Layout]:
    """Return the manifest of a store, checked."""
    file = path / "manifest.json"
    expect(file.stat().st_size <= 2**30, "length")
    text = file.read_bytes()
    try:
        manifest = json.loads(text, parse_float=no_number, parse_constant=no_number)
    except RecursionError:
        raise DamagedError("nested without end") from None
    expect(type(manifest) is dict and type(manifest.get("format")) is int, "format")
    expect(manifest["format"] == 1, "a later format")
    expect_keys(manifest, KEYS)
    expect(canonical(manifest) + b"\n" == text, "canonical JSON")
    unsummed = {key: value for key, value in manifest.items() if key != "crc32"}
    expect(zlib.crc32(canonical(unsummed)) == manifest["crc32"], "manifest checksum")
    expect(all(-(2**63) <= number < 2**64 for number in numbers_of(manifest)), "64 bits")
    expect(all(type(value) is str for value in manifest["fingerprints"].values()), "fingerprints")
    layout = layout_of(manifest)
    check_shards(manifest["shards"], layout)
    expect_ascending(manifest["skipped_ids"], 2**64)
    expect(0 < manifest["writers"] < 2**32, "writers")
    expect_ascending(manifest["finished_writers"], manifest["writers"])
    expect(not (manifest["complete"] and manifest["finished_writers"]), "finished writers")
    return manifest, layout


def layout_of(manifest: Mapping[str, Any]) -> Layout:
    """Return what the columns and the dtype say, checked."""
    columns = manifest["columns"]
    for column in columns:
        expect_keys(column, COLUMN_KEYS)
        expect(levels(column["spec"]) <= 64, "levels of a spec")
    widths = tuple(column["width"] for column in columns)
    expect(widths and min(widths) > 0, "widths")
    starts = [sum(widths[:index]) for index in range(len(widths))]
    expect([column["offset"] for column in columns] == starts, "offsets")
    expect(len({column["name"] for column in columns}) == len(columns), "names")
    expect(manifest["dtype"] in CODES, "dtype")
    layout = Layout(widths, manifest["dtype"])
    expect(layout.row_bytes <= 2**32, "bytes of a row")
    return layout


def check_shards(shards: list[Any], layout: Layout) -> None:
    """Refuse a list of closed shards that no store has."""
    for shard in shards:
        expect_keys(shard, SHARD_KEYS)
        expect(shard["rows"] > 0 and 0 <= shard["log_crc32"] < 2**32, "a shard")
    expect_ascending([shard["number"] for shard in shards], 100_000)
    rows = sum(shard["rows"] for shard in shards)
    expect(rows * max(8, layout.row_bytes) < 2**62, "rows")


def log_crc32(log: bytes) -> int:
    """Return what the manifest says of a closed log: CRC-32 of its records without their own."""
    return zlib.crc32(b"".join(log[start : start + 16] for start in range(0, len(log), RECORD)))


def records(log: bytes, chunk_rows: int) -> list[tuple[int, int, int]]:
    """Return the valid records of a log: rows so far, checksums of rows and ids."""
    parts = [log[start : start + RECORD] for start in range(0, len(log) - RECORD + 1, RECORD)]
    valid = [zlib.crc32(part[:16]) == int.from_bytes(part[16:], "little") for part in parts]
    whole = valid.index(False) if False in valid else len(valid)
    expect(not any(valid[whole:]), "a valid record after a damaged one")
    found = [struct.unpack("<QII", part[:16]) for part in parts[:whole]]
    before = 0
    for rows, _, _ in found:
        expect(before < rows <= (before // chunk_rows + 1) * chunk_rows, "counts of the log")
        before = rows
    return found


def read_store(path: Path) -> PlainStore:
    """Read all of a store, finished or not, and compare everything that can be compared."""
    expect(not (path / "repair.json").exists(), "a repair was stopped")
    manifest, layout = read_manifest(path)
    names = (
        re.fullmatch(r"shard-([0-9]{5})\.(rows|ids|log)", file.name) for file in path.iterdir()
    )
    present = {int(name[1]) for name in names if name}
    closed = {shard["number"]: shard for shard in manifest["shards"]}
    expect(not manifest["complete"] or present <= set(closed), "a shard that is not listed")
    rows, ids = [b""], [b""]
    for number in sorted(present | set(closed)):
        listed = closed.get(number)
        committed = read_shard(path / f"shard-{number:05}", layout, listed)
        if committed is not None:
            header, shard_rows, shard_ids = committed
            expect(header == layout.header(number, identity_of(manifest)), "header")
            rows.append(shard_rows)
            ids.append(shard_ids)
    numbers: list[int] = np.frombuffer(b"".join(ids), "<u8").tolist()
    if manifest["complete"]:
        taken = {*numbers, *manifest["skipped_ids"]}
        expect(len(taken) == len(numbers) + len(manifest["skipped_ids"]), "ids")
    return PlainStore(layout.decode(b"".join(rows)), numbers, manifest)


def read_shard(
    base: Path, layout: Layout, listed: Mapping[str, int] | None
) -> tuple[bytes, bytes, bytes] | None:
    """Return the header, the committed rows and their ids; None where nothing is committed."""
    rows_file, ids_file, log_file = (base.with_suffix(s) for s in (".rows", ".ids", ".log"))
    if not log_file.exists():
        expect(listed is None, "a log is missing")
        expect(not rows_file.exists() or rows_file.stat().st_size <= HEADER, "a lost log")
        return None
    if listed is None and log_file.stat().st_size < RECORD:
        return None
    expect(rows_file.exists(), "rows are missing")
    if listed is None:
        written = max(0, rows_file.stat().st_size - HEADER) // layout.row.itemsize
        expect(log_file.stat().st_size <= RECORD * (1 + written), "a log longer than its rows")
    log = log_file.read_bytes()
    found = records(log, layout.chunk_rows)
    if listed is None and not found:
        return None
    expect(ids_file.exists(), "ids are missing")
    stored, ids = rows_file.read_bytes(), ids_file.read_bytes()
    header, rows, size = stored[:HEADER], stored[HEADER:], layout.row.itemsize
    count = found[-1][0] if found else 0
    if listed is not None:
        expect(log_crc32(log) == listed["log_crc32"], "the log that the manifest lists")
        expect(count == listed["rows"], "rows of the log")
        expect(len(log) == RECORD * -(-count // layout.chunk_rows), "one record a chunk")
        expect((len(rows), len(ids)) == (count * size, count * 8), "lengths")
    expect(len(rows) >= count * size and len(ids) >= count * 8, "committed rows")
    start = 0
    for end, rows_sum, ids_sum in found:
        expect(zlib.crc32(rows[start * size : end * size]) == rows_sum, "checksum of rows")
        expect(zlib.crc32(ids[start * 8 : end * 8]) == ids_sum, "checksum of ids")
        start = end
    return header, rows[: count * size], ids[: count * 8]
