"""A store gives back what was written, to the precision of its dtype, and refuses what does not fit."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import grass_rs as grass
from stores import DTYPES, INTERRUPTED, columns, files, numbers, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WIDTHS = (3, 5, 4)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[grass.Store, np.ndarray]:
    """Return a store of 23 rows, and the rows."""
    rows = numbers(23, 12)
    return write(tmp_path_factory.mktemp("shared") / "s", rows, WIDTHS), rows


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_come_back_rounded_as_the_dtype_rounds(tmp_path: Path, dtype: str) -> None:
    rows = numbers(200, 12) * 50
    store = write(tmp_path / "s", rows, WIDTHS, dtype)
    assert store.dtype == dtype
    match dtype:
        case "float32":
            expected = rows
        case "float16":
            expected = rows.astype(np.float16).astype(np.float32)
        case "bfloat16":
            expected = torch.from_numpy(rows).bfloat16().float().numpy()
        case _:
            parts = [rows[:, c.offset : c.offset + c.width] for c in columns(*WIDTHS)]
            scales = [np.abs(part).max(axis=1, keepdims=True) / np.float32(127) for part in parts]
            expected = np.concatenate(
                [np.rint(part / scale) * scale for part, scale in zip(parts, scales, strict=True)],
                axis=1,
            )
    np.testing.assert_array_equal(store[:], expected)


def test_a_store_says_what_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "s"
    fingerprints = {"plan": "p", "model": "m"}
    with grass.create_store(path, columns(*WIDTHS), "int8", fingerprints=fingerprints) as writer:
        assert (writer.path, writer.width) == (path, 12)
        writer.append(numbers(7, 12), np.arange(7)[::-1])
        store = writer.finish(skipped_ids=[12, 9])
    assert (len(store), store.path, store.width, store.dtype) == (7, path, 12, "int8")
    assert store.complete
    assert list(store.columns) == columns(*WIDTHS)
    assert store.fingerprints == fingerprints
    np.testing.assert_array_equal(store.ids, np.arange(7)[::-1])
    np.testing.assert_array_equal(store.skipped_ids, [9, 12])
    assert repr(store) == f"<Store {str(path)!r}: complete, 7 rows of 12 int8>"
    with pytest.raises(ValueError, match="read-only"):
        store.ids[0] = 1


def test_numpy_reads_rows_without_this_library(tmp_path: Path) -> None:
    rows = numbers(9, 12)
    write(tmp_path / "s", rows, WIDTHS)
    mapped = np.memmap(tmp_path / "s/shard-00000.rows", "<f4", "r", offset=4096, shape=(9, 12))
    np.testing.assert_array_equal(mapped, rows)
    write(tmp_path / "i", rows, WIDTHS, "int8")
    row = np.dtype([("scales", "<f4", 3), ("numbers", "i1", 12)])
    packed = np.memmap(tmp_path / "i/shard-00000.rows", row, "r", offset=4096, shape=(9,))
    scales = np.repeat(packed["scales"], WIDTHS, axis=1)
    np.testing.assert_array_equal(packed["numbers"] * scales, grass.open_store(tmp_path / "i")[:])


@given(index=st.slices(23) | st.integers(-23, 22) | st.lists(st.integers(-23, 22), max_size=9))
def test_indexing_equals_that_of_an_array(
    shared: tuple[grass.Store, np.ndarray], index: Any
) -> None:
    store, rows = shared
    expected = rows[np.array(index, dtype=int) if isinstance(index, list) else index]
    result = store[index]
    np.testing.assert_array_equal(result, expected)
    assert result.dtype == np.float32
    result[...] = 0
    np.testing.assert_array_equal(store[index], expected)


def test_masks_numpy_numbers_and_unsigned_arrays_index_too(
    shared: tuple[grass.Store, np.ndarray],
) -> None:
    store, rows = shared
    mask = np.arange(23) % 3 == 0
    np.testing.assert_array_equal(store[mask], rows[mask])
    np.testing.assert_array_equal(store[np.int8(-1)], rows[-1])
    np.testing.assert_array_equal(store[np.array([22, 0], dtype=np.uint64)], rows[[22, 0]])
    assert [row.tolist() for row in store] == rows.tolist()


@pytest.mark.parametrize("index", [23, -24, [0, 23], np.uint64(2**64 - 1), 2**40])
def test_rows_out_of_range_are_refused(shared: tuple[grass.Store, np.ndarray], index: Any) -> None:
    with pytest.raises(IndexError, match="out of range for 23 rows"):
        shared[0][index]


@pytest.mark.parametrize("index", [1.0, "x", None, (0, 1), [[0]], np.ones(22, bool), True])
def test_other_indices_are_refused(shared: tuple[grass.Store, np.ndarray], index: Any) -> None:
    with pytest.raises(grass.UnsupportedArrayError, match="expects a row number, a slice"):
        shared[0][index]


def test_any_floats_and_strides_are_taken(tmp_path: Path) -> None:
    rows = numbers(6, 24)
    given_rows = [
        rows[:, ::2].astype(np.float64),
        np.asfortranarray(rows[:, ::2]),
        torch.from_numpy(rows)[:, ::2],
        rows[:, ::2].tolist(),
    ]
    with grass.create_store(tmp_path / "s", columns(12)) as writer:
        for start, part in enumerate(given_rows):
            writer.append(part, torch.arange(6 * start, 6 * start + 6))
        store = writer.finish()
    np.testing.assert_array_equal(store[:], np.tile(rows[:, ::2], (4, 1)))


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn],
    ids=str,
)
def test_tensors_of_any_float_dtype_are_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    rows = torch.from_numpy(numbers(6, 12)).to(dtype).requires_grad_()
    store = write(tmp_path / "s", rows, (12,))
    np.testing.assert_array_equal(store[:], rows.detach().to(torch.float32).numpy())
    writer = grass.create_store(tmp_path / "n", columns(12))
    writer.append(torch._neg_view(rows.detach().float()), range(6))
    np.testing.assert_array_equal(writer.finish()[:], -store[:])


def test_appending_nothing_is_fine(tmp_path: Path) -> None:
    with grass.create_store(tmp_path / "s", columns(3)) as writer:
        writer.append(np.zeros((0, 3)), [])
        store = writer.finish()
    assert store[:].shape == (0, 3)
    assert store.ids.shape == (0,)
    store.verify()


def bad_appends() -> Iterator[tuple[Any, Any, type[Exception], str]]:
    rows = np.zeros((2, 3))
    yield rows[:, :2], [1, 2], grass.ShapeError, r"rows of shape \(n, 3\), got \(2, 2\)"
    yield rows[0], [1], grass.ShapeError, r"rows of shape \(n, 3\), got \(3,\)"
    yield rows, [1], grass.ShapeError, r"one id a row, got rows of shape \(2, 3\) and ids"
    yield rows, [[1, 2]], grass.DataError, r"whole numbers of shape \(n,\), got shape \(1, 2\)"
    yield rows, [1.0, 2.0], grass.DataError, "whole numbers .* of float64"
    yield rows, [1, -2], grass.DataError, "whole numbers from 0, got -2"
    yield rows, [1, 1], grass.DataError, "id 1 is twice among the new ids"
    yield rows, [1, 77], grass.DataError, "id 77 is in the store already"
    yield rows.astype(complex), [1, 2], grass.UnsupportedArrayError, "got complex128"
    yield [[0, 0, 0], [0, 0]], [1, 2], grass.ShapeError, "got a list of no one shape"
    yield rows, [[1], [2, 3]], grass.DataError, "got a list that is no array"
    tensor = torch.zeros((2, 3))
    yield tensor.to_sparse(), [1, 2], grass.UnsupportedArrayError, "got a Tensor that is no array"
    yield tensor.to("meta"), [1, 2], grass.UnsupportedArrayError, "got a Tensor that is no array"
    yield tensor > 0, [1, 2], grass.UnsupportedArrayError, "float numbers, got bool"
    yield tensor.cfloat().conj(), [1, 2], grass.UnsupportedArrayError, "is no array"
    yield [tensor.bfloat16()[0]], [1], grass.UnsupportedArrayError, "is no array"
    yield tensor[:, :2], [1, 2], grass.ShapeError, r"got \(2, 2\)"


@pytest.mark.parametrize(("rows", "ids", "error", "words"), list(bad_appends()))
def test_bad_rows_and_ids_are_refused_and_nothing_is_lost(
    tmp_path: Path, rows: Any, ids: Any, error: type[Exception], words: str
) -> None:
    writer = grass.create_store(tmp_path / "s", columns(3))
    writer.append(np.ones((1, 3)), [77])
    with pytest.raises(error, match=words) as caught:
        writer.append(rows, ids)
    assert "\n" not in str(caught.value)
    writer.append(np.zeros((2, 3)), [1, 2])
    np.testing.assert_array_equal(writer.finish().ids, [77, 1, 2])


def test_a_value_that_the_dtype_cannot_hold_is_refused(tmp_path: Path) -> None:
    writer = grass.create_store(tmp_path / "s", columns(3), "float16")
    with pytest.raises(grass.DataError, match=r'row of id 5 has -7e4 in column "layer0".*6.5504e4'):
        writer.append([[0, 0, 0], [0, -7e4, 0]], [4, 5])
    writer.close()


def test_a_skipped_id_with_a_row_is_refused(tmp_path: Path) -> None:
    writer = grass.create_store(tmp_path / "s", columns(3))
    writer.append(np.ones((1, 3)), [77])
    with pytest.raises(grass.DataError, match="id 77 is in the store although it was skipped"):
        writer.finish(skipped_ids=[77])
    writer.close()


def bad_specs() -> Iterator[tuple[Any, dict[str, Any], str]]:
    gap = [grass.Column("a", 0, 3, {}), grass.Column("b", 4, 3, {})]
    yield [], {}, "there is none"
    yield gap, {}, "column 'b' has offset 4, expected 3"
    yield [grass.Column("a", 0, 0, {})], {}, '"a" has width 0'
    yield [grass.Column("a", 0, 1, {}), grass.Column("a", 1, 1, {})], {}, '"a" is there twice'
    yield [grass.Column("a", 0, 2**40, {})], {}, "bytes long, expected at most 4 GiB"
    yield [grass.Column("a", 0, 1, {"x": {1}})], {}, "not made of JSON values"
    yield [grass.Column("a", 0, 1, {"x": np.nan})], {}, "not made of JSON values"
    yield columns(3), {"dtype": "float61"}, "store dtype must be one of .* did you mean 'float16'"
    yield columns(3), {"commit_bytes": 0}, "commit_bytes must be a whole number from 1 .* got 0"
    yield columns(3), {"commit_seconds": -1.0}, "commit_seconds must be at least 0, got -1"
    yield columns(3), {"writer": 2, "writers": 2}, "1 to 100000 writers .* got writer 2 of 2"
    yield columns(3), {"writer": -1}, "writer must be a whole number from 0 to 99999, got -1"
    yield columns(3), {"writers": 100_001}, "writers must be a whole number from 1 to 100000, got"
    yield columns(3), {"commit_seconds": np.nan}, "commit_seconds must be at least 0, got NaN"


@pytest.mark.parametrize(("given_columns", "options", "words"), list(bad_specs()))
def test_what_no_store_can_be_made_of_is_refused(
    tmp_path: Path, given_columns: Any, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(grass.SpecError, match=words):
        grass.create_store(tmp_path / "s", given_columns, **options)
    assert not (tmp_path / "s").exists()


def test_a_store_is_never_created_over_anything(tmp_path: Path) -> None:
    write(tmp_path / "s", numbers(1, 3), (3,))
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("x")
    (tmp_path / "empty").mkdir()
    before = files(tmp_path / "s")
    for name, words in [("s", "a store"), ("file", "a file"), ("full", "not empty")]:
        with pytest.raises(grass.StoreExistsError, match=words) as caught:
            grass.create_store(tmp_path / name, columns(3))
        assert isinstance(caught.value, FileExistsError)
    assert files(tmp_path / "s") == before
    assert [f.name for f in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    write(tmp_path / "empty", numbers(1, 3), (3,))


def test_opening_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path, words in [("none", "nothing"), ("file", "a file"), (".", "a folder without one")]:
        with pytest.raises(grass.StoreNotFoundError, match=f"found {words}") as caught:
            grass.open_store(tmp_path / path)
        assert isinstance(caught.value, FileNotFoundError)
    with pytest.raises(grass.StoreNotFoundError) as caught:
        grass.create_store(tmp_path / "no/such", columns(3))
    assert caught.value.errno == 2


FORBIDDEN = """
import os, sys
import grass_rs as grass

if os.geteuid() == 0:
    os.seteuid(65534)  # root may write anywhere, nobody may not
try:
    grass.create_store(sys.argv[1], [grass.Column("a", 0, 3, {})])
except grass.StorePermissionError as error:
    assert isinstance(error, PermissionError)
    assert error.errno == 13, error.errno
    print(error)
"""


def test_a_read_only_folder_is_refused(run_script: Callable[..., str]) -> None:
    # Not a folder of pytest's: those are closed to other users altogether.
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o555)
        printed = run_script(FORBIDDEN, str(folder / "s"))
    finally:
        shutil.rmtree(folder)
    assert "choose a folder that you may write" in printed
    assert str(folder / "s") in printed


def test_verify_lists_all_damage(tmp_path: Path) -> None:
    # 64 KiB a row: 16 rows a chunk.
    store = write(tmp_path / "s", numbers(150, 16_384), (16_384,))
    store.verify()
    with (tmp_path / "s/shard-00000.rows").open("r+b") as file:
        for row in (3, 140):
            file.seek(4096 + row * 65_536 + 11)
            file.write(b"\x55")
    with (tmp_path / "s/shard-00000.ids").open("r+b") as file:
        file.seek(8 * 70)
        file.write(b"\xff")
    for reader in (store, grass.open_store(tmp_path / "s")):
        with pytest.raises(grass.CorruptStoreError, match="damaged in 3 places") as caught:
            reader.verify()
        for place in (
            "shard 0 rows chunk 0 rows 0:16 ",
            "shard 0 ids chunk 4 rows 64:80 ",
            "shard 0 rows chunk 8 rows 128:144 ",
        ):
            assert place in str(caught.value)
        with pytest.raises(grass.CorruptStoreError, match="ids chunk 4"):
            reader.ids  # noqa: B018 - reading is what raises


def test_all_damage_of_a_store_that_is_not_opened_is_listed(tmp_path: Path) -> None:
    from grass_rs.store import verify_store

    # 64 KiB a row: 16 rows a chunk.
    whole = write(tmp_path / "s", numbers(150, 16_384), (16_384,))
    assert len(verify_store(tmp_path / "s")) == 150
    os.truncate(whole.path / "shard-00000.rows", 4096 + 149 * 65_536)
    with (whole.path / "shard-00000.rows").open("r+b") as file:
        file.seek(4096 + 70 * 65_536)
        file.write(b"\x55")
    (whole.path / "shard-00000.ids").unlink()
    with pytest.raises(grass.CorruptStoreError, match=r"damaged in 2 places: shard 0 rows .* ids "):
        grass.open_store(whole.path)
    with pytest.raises(grass.CorruptStoreError, match=r"3 places: .* ids .* chunk 4 rows 64:80 "):
        verify_store(whole.path)
    with pytest.raises(grass.StoreNotFoundError):
        verify_store(tmp_path / "none")


def test_ctrl_c_stops_reading_rows(tmp_path: Path, run_script: Callable[..., str]) -> None:
    # Two chunks, each mapped again for every other row.
    rows = np.ones((2**19 + 1, 1), np.float32)
    store = write(tmp_path / "s", rows, (1,), "int8")
    script = INTERRUPTED.format(
        before="numbers = np.tile(np.array([0, 2**19], np.uint64), 2**25)",
        call="store._native.read_rows(numbers)",
    )
    printed = run_script(script, str(store.path))
    assert printed == "interrupted (1, 1) [100]\n"


def test_a_store_that_lost_bytes_is_not_opened(tmp_path: Path) -> None:
    write(tmp_path / "s", numbers(5, 3), (3,))
    os.truncate(tmp_path / "s/shard-00000.rows", 4096 + 59)
    (tmp_path / "s/shard-00000.log").write_bytes(b"x" * 20)
    with pytest.raises(
        grass.CorruptStoreError, match=r"4156 bytes for 5 rows, got 4155.*shard 0 log"
    ):
        grass.open_store(tmp_path / "s")


def test_differences_of_columns_and_fingerprints_are_named() -> None:
    from grass_rs.store import check_same_columns, check_same_fingerprints

    check_same_columns("s", columns(3, 4), columns(3, 4))
    with pytest.raises(grass.StoreMismatchError, match='"layer1": width 4 in the store, 5 given'):
        check_same_columns("s", columns(3, 4), columns(3, 5))
    with pytest.raises(grass.StoreMismatchError, match='"layer0": seed 0 in the store, 7 given'):
        check_same_columns(
            "s", columns(3), [grass.Column("layer0", 0, 3, {"type": "sjlt", "seed": 7})]
        )
    check_same_fingerprints("s", {"plan": "a"}, {"plan": "a"})
    with pytest.raises(grass.StoreMismatchError, match='"plan": a in the store, none given'):
        check_same_fingerprints("s", {"plan": "a"}, {})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_rows_that_are_not_finite_are_refused_by_id(tmp_path: Path, dtype: str, bad: float) -> None:
    rows = numbers(3, 5).astype(np.float64)
    rows[1, 2] = bad
    with grass.create_store(tmp_path / "s", columns(5), dtype) as writer:
        with pytest.raises(grass.NonFiniteError, match="row of id 8"):
            writer.append(rows, [7, 8, 9])
        writer.append(rows[[0, 2]], [7, 9])
        assert writer.finish().ids.tolist() == [7, 9]
