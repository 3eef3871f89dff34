"""Stores that lie with checksums that fit: a reader made from docs/store.md refuses what grass_rs refuses, no more."""

from __future__ import annotations

import json
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import grass_rs as grass
import plain_store
from stores import columns, numbers, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Change = Callable[[Any], object]

WIDTHS = (5, 40_000)
"""4 float32 rows a chunk."""


def refused(path: Path) -> bool:
    """Return whether a store is refused, which both readers must say."""
    try:
        read = plain_store.read_store(path)
    except (plain_store.DamagedError, FileNotFoundError, ValueError) as error:
        plain, said = True, str(error)
    else:
        plain, said = False, f"{len(read.ids)} rows"
    words, store = "", None
    try:
        store = grass.open_store(path)
        store.verify()
    except grass.StoreError as error:
        words, store = str(error), None
    assert plain == (store is None), f"the plain reader says {said}, grass_rs {words or 'nothing'}"
    if store is not None:
        assert store.ids.tolist() == read.ids
        assert (store[:] == read.rows).all()
    return plain


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Return a store of shards of 6 and 1 rows, two chunks and one."""
    path = tmp_path / "s"
    write(path, numbers(6, sum(WIDTHS)), WIDTHS, fingerprints={"plan": "p"})
    with grass.create_store(
        path, columns(*WIDTHS), resume=True, fingerprints={"plan": "p"}
    ) as writer:
        writer.append(numbers(1, sum(WIDTHS)), [7])
        writer.finish(skipped_ids=[3, 9])
    assert not refused(path)
    return path


@pytest.fixture
def unfinished(tmp_path: Path) -> Path:
    """Return a store of 5 rows in 4 commits, the last of which is a chunk's."""
    path = tmp_path / "s"
    with grass.create_store(path, columns(*WIDTHS)) as writer:
        for first, end in ((0, 1), (1, 2), (2, 4), (4, 5)):
            writer.append(numbers(end - first, sum(WIDTHS)), range(first, end))
            writer.commit()
    assert not refused(path)
    return path


def forge(path: Path, change: Change) -> None:
    """Change the manifest, and make its checksum fit."""
    file = path / "manifest.json"
    manifest = json.loads(file.read_bytes())
    del manifest["crc32"]
    change(manifest)
    manifest["crc32"] = zlib.crc32(plain_store.canonical(manifest))
    file.write_bytes(plain_store.canonical(manifest) + b"\n")


def nested(levels: int) -> Any:
    """Return objects inside one another."""
    return {"a": nested(levels - 1)} if levels else 0


def put(*keys: Any, to: Any) -> Change:
    """Return a change that puts a value somewhere."""

    def change(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to

    return change


def take(*keys: Any) -> Change:
    """Return a change that takes something away."""

    def change(value: Any) -> None:
        for key in keys[:-1]:
            value = value[key]
        del value[keys[-1]]

    return change


SHARD = {"log_crc32": 1, "number": 2, "rows": 3}
LIES: dict[str, Change] = {
    "a later format": put("format", to=2),
    "a format that is no number": put("format", to="1"),
    "a format that is true": put("format", to=True),
    "no format": take("format"),
    "a key too few": take("columns"),
    "a key too many": put("colour", to="red"),
    "a key too many in a column": put("columns", 0, "colour", to="red"),
    "a key too few in a column": take("columns", 0, "spec"),
    "a key too many in a shard": put("shards", 0, "colour", to="red"),
    "a key too few in a shard": take("shards", 0, "log_crc32"),
    "complete that is 1": put("complete", to=1),
    "an unknown dtype": put("dtype", to="float8"),
    "another dtype": put("dtype", to="bfloat16"),
    "a fingerprint that is a number": put("fingerprints", "plan", to=1),
    "another fingerprint": put("fingerprints", "plan", to="q"),
    "no column": put("columns", to=[]),
    "a width of 0": put("columns", 0, "width", to=0),
    "a negative width": put("columns", 0, "width", to=-1),
    "a width that is not whole": put("columns", 0, "width", to=1.5),
    "a width that is whole with a point": put("columns", 0, "width", to=5.0),
    "a width that is true": put("columns", 0, "width", to=True),
    "an absurd width": put("columns", 1, "width", to=2**62),
    "a width of more than 64 bits": put("columns", 1, "width", to=2**64),
    "another width": put("columns", 1, "width", to=40_001),
    "columns with a gap": put("columns", 1, "offset", to=6),
    "a name twice": put("columns", 1, "name", to="layer0"),
    "a name that is no string": put("columns", 1, "name", to=1),
    "a spec that is no object": put("columns", 1, "spec", to=[]),
    "a number of a spec that is not whole": put("columns", 1, "spec", to={"a": 0.5}),
    "a number of a spec that is too large": put("columns", 1, "spec", to={"a": 2**64}),
    "a spec nested too deep": put("columns", 1, "spec", to=nested(65)),
    "more rows than there are": put("shards", 0, "rows", to=7),
    "fewer rows than there are": put("shards", 0, "rows", to=5),
    "an absurd number of rows": put("shards", 0, "rows", to=2**50),
    "a shard without rows": put("shards", 1, "rows", to=0),
    "a shard that is not there": lambda m: m["shards"].append(SHARD),
    "a shard that is not listed": lambda m: m["shards"].pop(),
    "a shard twice": put("shards", 1, "number", to=0),
    "shards in another order": lambda m: m["shards"].reverse(),
    "a number of six digits": put("shards", 1, "number", to=100_000),
    "another log": put("shards", 1, "log_crc32", to=7),
    "a checksum of more than 32 bits": put("shards", 1, "log_crc32", to=2**32),
    "skipped ids in another order": put("skipped_ids", to=[9, 3]),
    "a skipped id twice": put("skipped_ids", to=[3, 3]),
    "a negative skipped id": put("skipped_ids", to=[-1]),
    "no writer": put("writers", to=0),
    "writers of more than 32 bits": put("writers", to=2**32),
    "a finished writer of a finished store": put("finished_writers", to=[0]),
    "finished writers that are no list": put("finished_writers", to={}),
}
"""Those of rust/grass-store/tests/corrupt_manifest.rs, and what another language may take for right."""


@pytest.mark.parametrize("lie", LIES)
def test_manifests_that_lie(finished: Path, lie: str) -> None:
    forge(finished, LIES[lie])
    assert refused(finished)


def test_finished_writers_of_an_unfinished_store(unfinished: Path) -> None:
    for writers, ended, wrong in (
        (3, [0, 2], False),
        (3, [2, 0], True),
        (3, [0, 0], True),
        (3, [3], True),
        (1, [-1], True),
        (1, [True], True),
    ):
        forge(unfinished, lambda m, n=writers, e=ended: m.update(writers=n, finished_writers=e))
        assert refused(unfinished) == wrong, (writers, ended)


def test_manifests_that_are_not_canonical(finished: Path) -> None:
    file = finished / "manifest.json"
    text = file.read_bytes()
    for wrong in (
        b"",
        b"[1]\n",
        b"[" * 2**20,
        text[:30],
        text[:-1],
        text + b"\n",
        text.replace(b":", b": ", 1),
        text.replace(b'"plan":"p"', b'"plan":"\\u0070"'),
        text.replace(b'"plan":"p"', b'"plan":"p","plan":"p"'),
        text.replace(b'"offset":0', b'"offset":-0'),
        text.replace(b'"offset":0', b'"offset":0.0'),
        text.replace(b'"offset":0', b'"offset":NaN'),
        text.replace(b'"seed":1', b'"seed":2'),
        b"\xef\xbb\xbf" + text,
    ):
        assert wrong != text
        file.write_bytes(wrong)
        assert refused(finished), wrong[:60]
    file.unlink()
    assert refused(finished)
    file.write_bytes(text)
    (finished / "repair.json").write_bytes(b"")
    assert refused(finished)


def test_what_is_no_part_of_a_store_means_nothing(finished: Path) -> None:
    names = ("shard-00000.rows.tmp", "shard-1.rows", "shard-00004.txt", "shard-0000\u0664.log", "x")
    for name in names:
        (finished / name).write_bytes(b"x" * 5000)
    assert not refused(finished)
    # But any file of a shard that is not listed is damage, also an empty one.
    for name in ("shard-00004.ids", "shard-99999.log"):
        (finished / name).touch()
        assert refused(finished)
        (finished / name).unlink()


@pytest.mark.parametrize("kind", ["rows", "ids", "log"])
def test_files_of_a_closed_shard(finished: Path, kind: str) -> None:
    file = finished / f"shard-00000.{kind}"
    data = file.read_bytes()
    for wrong in (data[:-1], data + b"\0", data[:20], b""):
        file.write_bytes(wrong)
        assert refused(finished)
    file.unlink()
    assert refused(finished)


def record(rows: int, rows_sum: int, ids_sum: int) -> bytes:
    """Return a record of a log whose own checksum fits."""
    start = struct.pack("<QII", rows, rows_sum, ids_sum)
    return start + struct.pack("<I", zlib.crc32(start))


def test_a_log_with_more_than_a_record_a_chunk_closes_no_shard(finished: Path) -> None:
    file = finished / "shard-00001.log"
    log = file.read_bytes()
    both = log + record(2, 0, 0)
    file.write_bytes(both)
    crc32 = plain_store.log_crc32(both)
    forge(finished, lambda m: m["shards"][1].update(log_crc32=crc32, rows=2))
    assert refused(finished)


LOGS: dict[str, tuple[Callable[[bytes], bytes], bool]] = {
    "a torn tail": (lambda log: log + b"torn", False),
    "zeros after it": (lambda log: log + bytes(40), False),
    "zeros as far as the rows allow": (lambda log: log.ljust(6 * 20, b"\0"), False),
    "longer than the rows allow": (lambda log: log.ljust(6 * 20 + 1, b"\0"), True),
    "less than a record": (lambda log: log[:19], False),
    "a damaged first record and no other": (lambda log: b"?" + log[1:20], False),
    "a damaged last record": (lambda log: log[:60] + b"?" + log[61:], False),
    "a damaged record before a valid one": (lambda log: log[:45] + b"?" + log[46:], True),
    "counts that stay": (lambda log: log[:20] + record(1, 0, 0), True),
    "counts that fall": (lambda log: log[:40] + record(1, 0, 0), True),
    "a record over the end of its chunk": (lambda log: log[:40] + record(5, 0, 0), True),
    "more than there is": (lambda log: log + record(6, 0, 0), True),
    "another checksum of rows": (
        lambda log: log[:60] + record(5, 1, int.from_bytes(log[72:76], "little")),
        True,
    ),
    "another checksum of ids": (
        lambda log: log[:60] + record(5, int.from_bytes(log[68:72], "little"), 1),
        True,
    ),
    "no record at all": (lambda _: b"", False),
}


@pytest.mark.parametrize("case", LOGS)
def test_logs_of_an_open_shard(unfinished: Path, case: str) -> None:
    change, wrong = LOGS[case]
    file = unfinished / "shard-00000.log"
    file.write_bytes(change(file.read_bytes()))
    assert refused(unfinished) == wrong


def test_files_of_an_open_shard(unfinished: Path) -> None:
    files = {kind: unfinished / f"shard-00000.{kind}" for kind in ("rows", "ids", "log")}
    whole = {kind: file.read_bytes() for kind, file in files.items()}
    row = 4 * sum(WIDTHS)
    cases: list[tuple[dict[str, bytes | None], bool]] = [
        ({"rows": whole["rows"] + b"more", "ids": whole["ids"] + b"more"}, False),
        ({"rows": whole["rows"][:-1]}, True),
        ({"rows": whole["rows"][:4096]}, True),
        ({"rows": whole["rows"][:90]}, True),
        ({"rows": b"?" + whole["rows"][1:]}, True),
        ({"rows": whole["rows"][:4096] + b"?" + whole["rows"][4097:]}, True),
        ({"ids": whole["ids"][:-1]}, True),
        ({"ids": b"?" + whole["ids"][1:]}, True),
        ({"rows": None}, True),
        ({"ids": None}, True),
        ({"log": None}, True),
        ({"log": None, "rows": whole["rows"][:4096]}, False),
        ({"log": None, "rows": None}, False),
        ({"log": b"less than a record", "rows": None, "ids": None}, False),
        ({"log": bytes(20), "rows": None}, True),
        ({"log": bytes(20), "rows": whole["rows"][:4096], "ids": None}, False),
        ({"log": bytes(40), "rows": whole["rows"][:4096]}, True),
        ({"log": bytes(40), "rows": whole["rows"][: 4096 + row - 1]}, True),
    ]
    for change, wrong in cases:
        for kind, file in files.items():
            data = change.get(kind, whole[kind])
            file.unlink(missing_ok=True)
            if data is not None:
                file.write_bytes(data)
        lengths = {kind: data and len(data) for kind, data in change.items()}
        assert refused(unfinished) == wrong, lengths


def test_a_skipped_id_that_got_a_row_is_taken_off_by_finishing(tmp_path: Path) -> None:
    path, rows = tmp_path / "s", np.ones((1, 45), np.float32)
    with grass.create_store(path, columns(5, 40)) as writer:
        writer.append(rows, [1])
        writer.finish(skipped_ids=[2])
    with grass.create_store(path, columns(5, 40), resume=True) as writer:
        writer.append(rows, [2])
        writer.commit()
        assert plain_store.read_store(path).manifest["skipped_ids"] == [2]
        assert not refused(path)
        writer.finish()
    assert plain_store.read_store(path).manifest["skipped_ids"] == []
