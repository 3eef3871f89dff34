"""Stores of more shards than files may be open, of no more numbers, and of files that are none or others."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import numpy as np
import pytest

import grass_rs as grass
from grass_rs.store import repair_store, verify_store
from plain_store import PlainColumn, read_store, write_store
from stores import columns, files, numbers, write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

SHARDS = 620
COLUMNS = [PlainColumn(f"layer{i}", width, columns(3, 4)[i].spec) for i, width in enumerate((3, 4))]

FEW_FILES = """
import resource, sys
from pathlib import Path
import numpy as np
import grass_rs as grass

resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
folder = Path(sys.argv[1])
store = grass.open_store(folder / "many")
store.verify()
rows = store[:]
scores = store.score(np.ones((1, 7), np.float32), "graddot")
assert np.allclose(scores.values[0], rows.sum(axis=1), atol=1e-4)
backwards = store[np.arange(len(store))[::-1]]
assert (backwards == rows[::-1]).all()

def add(name, number):
    with grass.create_store(folder / name, store.columns, resume=True) as writer:
        writer.append(np.full((1, 7), 0.5), [number])
        writer.finish()
    changed = grass.open_store(folder / name)
    changed.verify()
    assert changed[-1:].tolist() == [[0.5] * 7]
    print(len(changed))


add("many", 10**6)
grass.merge_stores([folder / "many", folder / "other"], folder / "merged")
add("merged", 10**7)
"""


def write_shards(path: Path, ids: Sequence[Sequence[int]], skipped_ids: Sequence[int] = ()) -> None:
    """Write a finished store of one shard for each list of ids."""
    shards = {i: (numbers(len(part), 7, seed=i), part) for i, part in enumerate(ids)}
    write_store(path, COLUMNS, "float32", shards, skipped_ids=skipped_ids)


def test_more_shards_than_files_may_be_open(tmp_path: Path, run_script: Callable[..., str]) -> None:
    write_shards(tmp_path / "many", [[2 * i, 2 * i + 1] for i in range(SHARDS)])
    write_shards(tmp_path / "other", [[5000 + i] for i in range(SHARDS)])
    printed = run_script(FEW_FILES, str(tmp_path))
    assert printed.split() == [str(2 * SHARDS + 1), str(3 * SHARDS + 2)]


def evict_files(folder: Path) -> None:
    """Open so many other files of shards that none of those opened before stays open."""
    path = folder / "others"
    if not path.exists():
        write_shards(path, [[i] for i in range(40)])
    assert len(grass.open_store(path)[:]) == 40


def other_bytes(path: Path) -> None:
    """Put another file of the same length, with the same header, in the place of one."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    other.rename(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (other_bytes, "another file has taken its place"),
        (os.unlink, "the file is missing"),
    ],
)
@pytest.mark.parametrize("kind", ["rows", "ids"])
def test_a_file_that_was_changed_for_another_is_no_longer_read(
    tmp_path: Path, change: Callable[[Path], None], words: str, kind: str
) -> None:
    write_shards(tmp_path / "s", [[1, 2], [3, 4]])
    store = grass.open_store(tmp_path / "s")
    expected = store[:]
    change(tmp_path / f"s/shard-00001.{kind}")
    # It is open yet, and what it was.
    np.testing.assert_array_equal(store[:], expected)
    evict_files(tmp_path)
    reads = [store.verify, lambda: store[:] if kind == "rows" else store.ids]
    for read in reads:
        with pytest.raises(grass.CorruptStoreError, match=f"1 place: shard 1 {kind} .{words}"):
            read()


def test_a_store_opened_by_a_relative_path_is_read_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path / "s", [[1, 2], [3, 4]])
    monkeypatch.chdir(tmp_path)
    store = grass.open_store("s")
    expected = store[:]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    evict_files(tmp_path)
    np.testing.assert_array_equal(store[:], expected)


def test_ids_that_are_there_twice_or_skipped_are_damage(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_shards(path, [[7, 2**64 - 1, 3], [8, 9], [5, 3, 7, 6]], skipped_ids=[4, 9])
    store = grass.open_store(path)
    for verify in (store.verify, lambda: verify_store(path)):
        with pytest.raises(grass.CorruptStoreError) as caught:
            verify()
        assert "damaged in 2 places: " in str(caught.value)
        assert "shard 1 ids chunk 0 rows 4:5 (id 9 of row 4 is one of the skipped" in str(
            caught.value
        )
        last = "shard 2 ids chunk 0 rows 6:8 (id 3 of row 6 is that of row 2 too, and 1 more"
        assert last in str(caught.value)
    assert repair_store(path).dropped_rows == 2
    assert verify_store(path).ids.tolist() == [7, 2**64 - 1, 3, 8, 9, 5, 6]


def test_a_skipped_id_with_a_row_is_repaired_by_not_skipping_it(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_shards(path, [[7, 3], [8, 9]], skipped_ids=[3, 4])
    with pytest.raises(grass.CorruptStoreError, match="id 3 of row 1 is one of the skipped"):
        verify_store(path)
    assert repair_store(path).dropped_rows == 0
    repaired = verify_store(path)
    assert repaired.complete
    assert repaired.skipped_ids.tolist() == [4]
    assert read_store(path).ids == [7, 3, 8, 9]


def make_folder(path: Path) -> None:
    path.mkdir()


def make_loop(path: Path) -> None:
    path.symlink_to(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(path))


@pytest.mark.parametrize(
    "name",
    [
        "shard-00000.rows",
        "shard-00000.ids",
        "shard-00000.log",
        "shard-00001.rows",
        "shard-00001.ids",
        "shard-00001.log",
        "manifest.json",
    ],
)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (make_folder, "it is a folder, not a file"),
        (os.mkfifo, "it is a pipe or a device, not a file"),
        (make_socket, "it is a pipe or a device, not a file"),
        (make_loop, "symbolic links"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_what_has_the_name_of_a_file_and_is_none(
    tmp_path: Path, make: Callable[[Path], None], words: str, name: str, *, finished: bool
) -> None:
    path = tmp_path / "s"
    with grass.create_store(path, columns(7)) as writer:
        writer.append(numbers(2, 7), [1, 2])
        writer.commit()
        if finished:
            writer.finish()
    write(tmp_path / "other", numbers(2, 7), (7,))
    (path / name).unlink(missing_ok=True)
    make(path / name)
    before = {file.name for file in path.iterdir()}
    calls = [
        lambda: grass.open_store(path),
        lambda: verify_store(path),
        lambda: repair_store(path),
        lambda: grass.create_store(path, columns(7), resume=True),
        lambda: grass.merge_stores([tmp_path / "other"], path),
        lambda: grass.merge_stores([path], tmp_path / "new"),
    ]
    # A loop leads to no manifest, and so to a folder that no store may be merged into.
    for call in calls:
        with pytest.raises(grass.StoreError, match=f"{name}.*{words}|a folder that is not empty"):
            call()
    assert {file.name for file in path.iterdir() if file.name[0] != "."} <= before


@pytest.mark.parametrize("name", ["manifest.copy.json", "manifest.json.tmp", "repair.json"])
def test_a_pipe_keeps_no_writer_waiting(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s"
    path.mkdir()
    os.mkfifo(path / name)
    with pytest.raises(grass.StoreError):
        grass.create_store(path, columns(7), resume=name != "manifest.json.tmp")


def test_a_lost_manifest_is_repaired_from_its_copy(tmp_path: Path) -> None:
    path = write(tmp_path / "s", numbers(5, 7), (3, 4)).path
    before = files(path)
    (path / "manifest.json").unlink()
    calls = [
        lambda: grass.open_store(path),
        lambda: verify_store(path),
        lambda: grass.create_store(path, columns(3, 4), resume=True),
    ]
    for call in calls:
        with pytest.raises(grass.CorruptStoreError, match=f"run grass-rs repair {path}$"):
            call()
    repair_store(path)
    assert files(path) == before


def test_a_store_without_numbers_for_more_shards(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write_store(path, COLUMNS, "float32", {99_999: (numbers(2, 7), [1, 2])})
    before = files(path)
    write(tmp_path / "other", numbers(2, 7), (3, 4))
    words = "s would need shards with numbers above 99999, .*: put the further rows"
    with pytest.raises(grass.StoreError, match=words) as caught:
        grass.merge_stores([tmp_path / "other"], path)
    assert type(caught.value) is grass.StoreError
    assert files(path) == before
    writer = grass.create_store(path, columns(3, 4), resume=True)
    with writer, pytest.raises(grass.StoreError, match=words) as caught:
        writer.append(numbers(1, 7), [3])
    assert type(caught.value) is grass.StoreError
