"""Exported files hold the rows and ids of a store, are whole or not there, and replace nothing."""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet
import pytest
import safetensors
import safetensors.torch
import torch

import grass_rs as grass
from grass_rs.store import export
from stores import DTYPES, columns, numbers, write

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS, WIDTHS = 23, (3, 5, 4)
FORMATS = ("npy", "safetensors", "parquet")
IDS = np.array([7, 2**64 - 1, *range(40, 19, -1)], np.uint64)
TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.float32,
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks of five rows, and groups of ten: several of each, the last one shorter."""
    monkeypatch.setattr(export, "_BLOCK_BYTES", 5 * 4 * sum(WIDTHS) + 1)
    monkeypatch.setattr(export, "_GROUP_ROWS", 10)


def store(path: Path, dtype: str = "float32", rows: int = ROWS) -> grass.Store:
    with grass.create_store(
        path, columns(*WIDTHS), dtype, fingerprints={"plan": "p", "model": "é"}
    ) as writer:
        writer.append(numbers(rows, sum(WIDTHS)), IDS[:rows])
        return writer.finish(skipped_ids=[2, 1])


def left_in(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("rows", [ROWS, 0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_npy(tmp_path: Path, dtype: str, rows: int) -> None:
    source = store(tmp_path / "s", dtype, rows)
    out = tmp_path / "rows.npy"
    assert grass.export_store(source, out, "npy") == (tmp_path / "rows.ids.npy", out)
    got, ids = np.load(out), np.load(tmp_path / "rows.ids.npy")
    assert (got.dtype, ids.dtype) == (np.float32, np.uint64)
    assert got.shape == (rows, sum(WIDTHS))
    np.testing.assert_array_equal(got, source[:])
    np.testing.assert_array_equal(ids, source.ids)


@pytest.mark.parametrize("rows", [ROWS, 0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_safetensors(tmp_path: Path, dtype: str, rows: int) -> None:
    source = store(tmp_path / "s", dtype, rows)
    out = tmp_path / "é"
    assert grass.export_store(tmp_path / "s", str(out), "safetensors") == (out,)
    tensors = safetensors.torch.load_file(out)
    assert set(tensors) == {"rows", "ids"}
    assert tensors["rows"].dtype == TORCH[dtype]
    assert tensors["rows"].shape == (rows, sum(WIDTHS))
    np.testing.assert_array_equal(tensors["rows"].float().numpy(), source[:])
    np.testing.assert_array_equal(tensors["ids"].numpy(), source.ids)
    with safetensors.safe_open(out, "numpy") as file:
        facts = file.metadata()
    assert facts["format"] == "grass_rs store 1"
    assert json.loads(facts["fingerprints"]) == source.fingerprints
    assert json.loads(facts["dtype"]) == dtype
    assert json.loads(facts["skipped_ids"]) == [1, 2]
    assert [grass.Column(**c) for c in json.loads(facts["columns"])] == list(source.columns)


@pytest.mark.parametrize("rows", [ROWS, 0])
def test_parquet(tmp_path: Path, rows: int) -> None:
    source = store(tmp_path / "s", rows=rows)
    out = tmp_path / "ids.parquet"
    assert grass.export_store(source, out, "parquet") == (out,)
    with pyarrow.parquet.ParquetFile(out) as file:
        assert file.num_row_groups == -(-rows // 10)
        table = file.read()
    assert table.schema.names == ["id", "row"]
    assert table["id"].to_pylist() == source.ids.tolist()
    assert table["row"].to_pylist() == list(range(rows))


def test_a_shape_longer_than_one_header_line_of_npy_is_aligned(tmp_path: Path) -> None:
    rows = numbers(2, 100_003)
    source = write(tmp_path / "s", rows, (3, 100_000))
    grass.export_store(source, tmp_path / "rows", "npy")
    np.testing.assert_array_equal(np.load(tmp_path / "rows", mmap_mode="r"), rows)
    np.testing.assert_array_equal(np.load(tmp_path / "rows.ids.npy"), source.ids)


@pytest.mark.parametrize("format_", FORMATS)
def test_what_is_there_is_not_replaced(tmp_path: Path, format_: str) -> None:
    source = store(tmp_path / "s")
    out = tmp_path / "out.npy"
    out.write_bytes(b"mine")
    with pytest.raises(grass.StoreExistsError, match=r"nothing at .*out\.npy"):
        grass.export_store(source, out, format_)
    assert out.read_bytes() == b"mine"
    assert left_in(tmp_path) == ["out.npy", "s"]


def test_ids_that_are_there_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.ids.npy").symlink_to("nowhere")
    with pytest.raises(grass.StoreExistsError, match=r"nothing at .*out\.ids\.npy"):
        grass.export_store(store(tmp_path / "s"), tmp_path / "out.npy", "npy")
    assert left_in(tmp_path) == ["out.ids.npy", "s"]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("kind", ["rows", "ids"])
def test_damaged_rows_never_leave(tmp_path: Path, format_: str, kind: str) -> None:
    source = store(tmp_path / "s")
    file = tmp_path / "s" / f"shard-00000.{kind}"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(grass.CorruptStoreError, match=f"shard 0 {kind} chunk 0 rows 0:23"):
        grass.export_store(source, tmp_path / "out", format_)
    assert left_in(tmp_path) == ["s"]


def test_an_unfinished_store_is_refused(tmp_path: Path) -> None:
    with grass.create_store(tmp_path / "s", columns(3)) as writer:
        writer.append(numbers(2, 3), [0, 1])
    with pytest.raises(
        grass.StoreError, match=r"expects a finished store, got <Store .*unfinished"
    ):
        grass.export_store(tmp_path / "s", tmp_path / "out", "npy")
    assert left_in(tmp_path) == ["s"]


def test_an_unknown_format_is_named(tmp_path: Path) -> None:
    with pytest.raises(grass.SpecError, match=r"export format must be .* mean 'safetensors'"):
        grass.export_store(tmp_path / "s", tmp_path / "out", "safetensor")
    with pytest.raises(grass.StoreNotFoundError):
        grass.export_store(tmp_path / "s", tmp_path / "out", "npy")


def fail(error: BaseException) -> Callable[[object], None]:
    def call(_: object) -> None:
        raise error

    return call


@pytest.mark.parametrize("format_", FORMATS)
def test_a_failure_leaves_nothing(
    tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = store(tmp_path / "s")
    with pytest.raises(grass.StoreError, match=r"export cannot write .*nowhere.* another place"):
        grass.export_store(source, tmp_path / "nowhere" / "out", format_)
    monkeypatch.setattr(os, "fsync", fail(OSError(28, "No space left on device")))
    with pytest.raises(grass.StoreError, match=r"No space left on device.*make room"):
        grass.export_store(source, tmp_path / "out", format_)
    monkeypatch.setattr(os, "fsync", fail(PermissionError(13, "Permission denied")))
    with pytest.raises(grass.StorePermissionError, match="Permission denied"):
        grass.export_store(source, tmp_path / "out", format_)
    monkeypatch.setattr(os, "fsync", fail(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        grass.export_store(source, tmp_path / "out", format_)
    assert left_in(tmp_path) == ["s"]


@pytest.mark.parametrize("format_", FORMATS)
def test_files_and_then_their_names_are_synced(
    tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, calls, sync = store(tmp_path / "s"), [], os.fsync
    place = tmp_path / "place"
    place.mkdir()

    def recorded(number: int) -> None:
        is_folder = os.path.samestat(os.fstat(number), place.stat())
        calls.append((os.fstat(number).st_ino, left_in(place) if is_folder else None))
        sync(number)

    monkeypatch.setattr(os, "fsync", recorded)
    paths = grass.export_store(source, place / "out.npy", format_)
    names = sorted(path.name for path in paths)
    assert calls[:-1] == [(path.stat().st_ino, None) for path in paths]
    # The folder that they were written in is still there; they are not.
    assert [name for name in calls[-1][1] if not name.endswith(".tmp")] == names
    assert left_in(place) == names


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("failing", ["rename", "sync"])
def test_names_that_are_not_durable_are_taken_back(
    tmp_path: Path, format_: str, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, rename = store(tmp_path / "s"), Path.rename

    def renamed(self: Path, path: Path) -> Path:
        if path.name == "out.npy":
            raise OSError(5, "Input/output error")
        return rename(self, path)

    if failing == "rename":
        monkeypatch.setattr(Path, "rename", renamed)
    else:
        monkeypatch.setattr(export, "_sync_folder", fail(OSError(5, "Input/output error")))
    with pytest.raises(grass.StoreError, match=r"export cannot write .*Input/output error"):
        grass.export_store(source, tmp_path / "out.npy", format_)
    assert left_in(tmp_path) == ["s"]


@pytest.mark.parametrize("format_", FORMATS)
def test_no_room_is_an_error_and_not_a_signal(tmp_path: Path, format_: str) -> None:
    source = store(tmp_path / "s")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(grass.StoreError, match=r"export cannot write .*too large.*make room"):
            grass.export_store(source, tmp_path / "out", format_)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_in(tmp_path) == ["s"]


@pytest.mark.parametrize("format_", FORMATS)
def test_what_appears_meanwhile_is_not_replaced(
    tmp_path: Path, format_: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = store(tmp_path / "s"), tmp_path / "out.npy"
    monkeypatch.setattr(grass.Store, "verify", lambda _: out.write_bytes(b"another's"))
    with pytest.raises(grass.StoreExistsError, match=r"nothing at .*out\.npy"):
        grass.export_store(source, out, format_)
    assert out.read_bytes() == b"another's"
    assert left_in(tmp_path) == ["out.npy", "s"]


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = store(tmp_path / "s")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'grass_rs\[parquet\]'"):
        grass.export_store(source, tmp_path / "out", "parquet")
    assert left_in(tmp_path) == ["s"]


def test_a_header_that_no_reader_takes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "_MOST_HEADER_BYTES", 200)
    with pytest.raises(grass.SpecError, match=r"header of at most 200 bytes, got .* export to npy"):
        grass.export_store(store(tmp_path / "s"), tmp_path / "out", "safetensors")
    assert left_in(tmp_path) == ["s"]


def test_rows_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    read = grass.Store.__getitem__

    def recorded(self: grass.Store, index: Any) -> Any:
        asked.append(index)
        return read(self, index)

    source = store(tmp_path / "s")
    monkeypatch.setattr(grass.Store, "__getitem__", recorded)
    grass.export_store(source, tmp_path / "out", "npy")
    assert asked == [slice(start, start + 5) for start in range(0, 23, 5)]
