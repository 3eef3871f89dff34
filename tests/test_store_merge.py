"""Merging stores: the union of their rows, whatever interrupts it."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

import grass_rs as grass
from stores import DTYPES, columns, files, numbers, write

if TYPE_CHECKING:
    from pathlib import Path

WIDTHS = (3, 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_merge_scores_like_one_store(tmp_path: Path, dtype: str) -> None:
    rows, queries = numbers(30, 8), numbers(4, 8, 1)
    ids = np.random.default_rng(2).permutation(100)[:30]
    parts = [slice(0, 7), slice(7, 8), slice(8, 30)]
    paths = [tmp_path / f"part {number}" for number in range(3)]
    for path, part in zip(paths, parts, strict=True):
        write(path, rows[part], WIDTHS, dtype, ids=ids[part])
    before = [files(path) for path in paths]
    merged = grass.merge_stores(paths, tmp_path / "merged")
    assert [files(path) for path in paths] == before
    merged.verify()
    assert merged.complete
    whole = write(tmp_path / "whole", rows, WIDTHS, dtype, ids=ids)
    np.testing.assert_array_equal(merged.ids, ids)
    np.testing.assert_array_equal(merged[:], whole[:])
    for method in ("graddot", "gradcos"):
        expected = whole.score(queries, method).values
        np.testing.assert_array_equal(merged.score(queries, method).values, expected)
    again = grass.merge_stores(map(str, paths), str(tmp_path / "merged"))
    assert len(again) == 30


def test_a_merge_adds_to_a_finished_store(tmp_path: Path) -> None:
    rows = numbers(9, 8)
    for name, part in [("old", slice(0, 4)), ("new", slice(4, 9))]:
        with grass.create_store(tmp_path / name, columns(*WIDTHS)) as writer:
            writer.append(rows[part], np.arange(9)[part])
            writer.finish(skipped_ids=[50, 60 + part.start])
    merged = grass.merge_stores([tmp_path / "new"], tmp_path / "old")
    np.testing.assert_array_equal(merged[:], rows)
    assert merged.skipped_ids.tolist() == [50, 60, 64]


def test_what_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one", numbers(2, 8), WIDTHS).path
    wide = write(tmp_path / "wide", numbers(2, 9), (3, 6), ids=[7, 8]).path
    same_ids = write(tmp_path / "ids", numbers(2, 8, 1), WIDTHS, ids=[5, 101]).path
    with grass.create_store(tmp_path / "unfinished", columns(*WIDTHS)) as writer:
        writer.append(numbers(1, 8), [9])
    to = tmp_path / "merged"
    for sources, error, words in [
        ([], grass.StoreError, "there is no source: give at least one"),
        ([tmp_path / "none"], grass.StoreNotFoundError, "no store at"),
        ([one, wide], grass.StoreMismatchError, 'column "layer1": width 6 in the store, 5 given'),
        ([one, same_ids], grass.DataError, "id 101 is in two of the stores"),
        ([one, tmp_path / "unfinished"], grass.StoreError, "unfinished: finish it first"),
    ]:
        with pytest.raises(error, match=words) as caught:
            grass.merge_stores(sources, to)
        assert "\n" not in str(caught.value)
        with pytest.raises(grass.StoreNotFoundError):
            grass.open_store(to)
    with pytest.raises(grass.StoreError, match="it is a source too"):
        grass.merge_stores([one], tmp_path / "." / "one")
    with (
        grass.create_store(tmp_path / "held", columns(*WIDTHS), resume=True),
        pytest.raises(grass.StoreLockedError),
    ):
        grass.merge_stores([one], tmp_path / "held")
    with (one / "shard-00000.rows").open("r+b") as file:
        file.seek(4100)
        file.write(b"\x55")
    with pytest.raises(grass.CorruptStoreError, match="shard 0 rows chunk 0 rows 0:2 ") as caught:
        grass.merge_stores([one], to)
    assert str(one) in str(caught.value)


MERGE = """
import resource, signal, sys
import grass_rs as grass

# The system ends the process amid a write, after as much of it as fits.
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
grass.merge_stores(sys.argv[3:], sys.argv[2])
"""


@pytest.mark.parametrize("length", [100, 5000, 60_000])
def test_a_merge_that_died_is_finished_byte_for_byte(tmp_path: Path, length: int) -> None:
    sources = []
    for number, count in enumerate((100, 2000)):
        ids = np.arange(count) + 5000 * number
        sources.append(write(tmp_path / f"{number}", numbers(count, 8), WIDTHS, ids=ids).path)
    grass.merge_stores(sources, tmp_path / "whole")
    path = tmp_path / "died"
    arguments = [str(length), str(path), *map(str, sources)]
    done = subprocess.run(
        [sys.executable, "-B", "-c", MERGE, *arguments],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == -signal.SIGXFSZ, done.stderr
    with pytest.raises(grass.StoreNotFoundError):
        grass.open_store(path)
    assert len(grass.merge_stores(sources, path)) == 2100
    assert files(path) == files(tmp_path / "whole")
