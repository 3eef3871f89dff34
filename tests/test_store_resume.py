"""What `commit` returned for stays, whatever happens; the rest is cut off, and resuming leaves no trace."""

from __future__ import annotations

import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import grass_rs as grass
from stores import columns, files, numbers, write

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTHS = (20_000, 45_536)
"""256 KiB a row: 4 rows a chunk."""
ROWS = 60

WRITE = """
import sys
from pathlib import Path
import numpy as np
import grass_rs as grass
from stores import columns, numbers
from test_store_resume import ROWS, WIDTHS

path, step = Path(sys.argv[1]), int(sys.argv[2])
rows = numbers(ROWS, sum(WIDTHS))
writer = grass.create_store(path, columns(*WIDTHS), resume=True, commit_bytes=1 << 62)
for start in range(len(writer.committed_ids), ROWS, step):
    part = slice(start, start + step)
    writer.append(rows[part], np.arange(100, 100 + ROWS)[part])
    writer.commit()
    print(min(part.stop, ROWS), flush=True)
writer.finish()
"""


@pytest.mark.parametrize("commits", [0, 1, 3, 7, 11])
@pytest.mark.parametrize("step", [5, 1])
def test_a_killed_writer_is_resumed_byte_for_byte(
    tmp_path: Path,
    run_script: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    commits: int,
    step: int,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    path = tmp_path / "killed"
    with subprocess.Popen(
        [sys.executable, "-c", WRITE, str(path), str(step)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout
        # It goes on while this process reads, so the kill falls wherever it is by then.
        committed = [int(child.stdout.readline()) for _ in range(commits)]
        child.kill()
        committed += [int(line) for line in child.stdout.read().split()]
    assert child.returncode in {-signal.SIGKILL, 0}
    if committed:
        kept = grass.open_store(path)
        assert len(kept) >= committed[-1]
        np.testing.assert_array_equal(kept.ids, np.arange(100, 100 + len(kept)))
        kept.verify()
    run_script(WRITE, str(path), "7")
    whole = write(tmp_path / "whole", numbers(ROWS, sum(WIDTHS)), WIDTHS)
    assert files(path) == files(whole.path)


@given(cuts=st.lists(st.integers(1, 39), max_size=6), data=st.data())
def test_commits_closes_and_resumes_leave_no_trace(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("resume")
    rows = numbers(40, 9)
    bounds = sorted({0, 40, *cuts})
    writer = grass.create_store(folder / "pieces", columns(9), "int8", resume=True)
    for start, stop in pairwise(bounds):
        writer.append(rows[start:stop], np.arange(100 + start, 100 + stop))
        match data.draw(st.sampled_from(["nothing", "commit", "close"])):
            case "commit":
                writer.commit()
            case "close":
                writer.close()
                writer = grass.create_store(folder / "pieces", columns(9), "int8", resume=True)
                np.testing.assert_array_equal(writer.committed_ids, np.arange(100, 100 + stop))
    writer.finish()
    write(folder / "whole", rows, (9,), "int8")
    assert files(folder / "pieces") == files(folder / "whole")


def test_a_finished_store_takes_more_rows_and_keeps_the_old_ones(tmp_path: Path) -> None:
    rows = numbers(9, 9)
    before = files(write(tmp_path / "s", rows[:5], (9,)).path)
    with grass.create_store(tmp_path / "s", columns(9), resume=True) as writer:
        assert grass.open_store(tmp_path / "s").complete
        writer.append(rows[5:], [1, 2, 3, 4])
        assert not grass.open_store(tmp_path / "s").complete
        store = writer.finish(skipped_ids=[7])
    assert store.complete
    np.testing.assert_array_equal(store[:], rows)
    assert store.skipped_ids.tolist() == [7]
    after = files(store.path)
    assert all(after[name] == data for name, data in before.items() if name.startswith("shard"))
    with grass.create_store(tmp_path / "s", columns(9), resume=True) as writer:
        writer.append(rows[:1], [7])
        assert writer.finish().skipped_ids.tolist() == []


def test_leaving_the_context_commits_what_was_appended_and_does_not_finish(tmp_path: Path) -> None:
    rows = numbers(4, 9)

    def fail() -> None:
        with grass.create_store(tmp_path / "s", columns(9)) as writer:
            writer.append(rows, [1, 2, 3, 4])
            assert len(grass.open_store(tmp_path / "s")) == 0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    store = grass.open_store(tmp_path / "s")
    assert (len(store), store.complete) == (4, False)
    np.testing.assert_array_equal(store[:], rows)


def test_the_writer_commits_by_bytes_and_by_seconds(tmp_path: Path) -> None:
    for name, options, committed in [
        ("bytes", {"commit_bytes": 72}, 4),
        ("seconds", {"commit_seconds": 0.0}, 5),
        ("neither", {"commit_seconds": float("inf")}, 0),
    ]:
        writer = grass.create_store(tmp_path / name, columns(9), **options)
        writer.append(numbers(5, 9), np.arange(5))
        assert len(grass.open_store(tmp_path / name)) == committed, name
        np.testing.assert_array_equal(writer.committed_ids, np.arange(committed))
        writer.close()


def test_a_closed_writer_says_so(tmp_path: Path) -> None:
    writer = grass.create_store(tmp_path / "s", columns(9))
    writer.finish()
    writer.close()
    for call in (writer.commit, writer.finish, lambda: writer.append(numbers(1, 9), [1])):
        with pytest.raises(grass.StoreError, match="is closed: open the store again with resume"):
            call()


def test_resuming_with_another_plan_or_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    write(path, numbers(2, 7), (3, 4), fingerprints={"model": "m"})
    before = files(path)
    for given_columns, dtype, model, words in [
        (columns(3, 4), "int8", "m", "dtype float32 in the store, int8 given"),
        (columns(3, 5), "float32", "m", 'column "layer1": width 4 in the store, 5 given'),
        (columns(3), "float32", "m", "2 columns in the store, 1 given"),
        (columns(3, 4), "float32", "n", 'fingerprint "model": m in the store, n given'),
    ]:
        with pytest.raises(grass.StoreMismatchError, match=words) as caught:
            grass.create_store(
                path, given_columns, dtype, fingerprints={"model": model}, resume=True
            )
        assert isinstance(caught.value, ValueError)
        assert str(path) in str(caught.value)
    assert files(path) == before


HOLD = """
import os, sys
import grass_rs as grass
writer = grass.create_store(sys.argv[1], [grass.Column("a", 0, 3, {})])
print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_a_store_has_one_writer_and_a_dead_one_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "s"
    given_columns = [grass.Column("a", 0, 3, {})]
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout
        process = int(child.stdout.readline())
        with pytest.raises(grass.StoreLockedError, match=f"written by process {process}") as caught:
            grass.create_store(path, given_columns, resume=True)
        assert isinstance(caught.value, BlockingIOError)
        assert len(grass.open_store(path)) == 0
        child.kill()
    grass.create_store(path, given_columns, resume=True).close()


FORKED = """
import os, signal, sys
import numpy as np
import grass_rs as grass
from stores import columns, numbers

writer = grass.create_store(sys.argv[1], columns(3))
writer.append(numbers(2, 3), [0, 1])
writer.commit()
if os.fork() == 0:
    # A loader's worker, which outlives its parent until somebody closes its input.
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
signal.pause()
"""


def test_a_forked_child_does_not_hold_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    path = tmp_path / "s"
    with subprocess.Popen(
        [sys.executable, "-c", FORKED, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin
        assert parent.stdout
        assert parent.stdout.readline() == "forked\n"
        with pytest.raises(grass.StoreLockedError, match=f"written by process {parent.pid}"):
            grass.create_store(path, columns(3), resume=True)
        parent.kill()
        parent.wait()
        # The child still lives: its end of the pipe is open.
        with grass.create_store(path, columns(3), resume=True) as writer:
            assert writer.committed_ids.tolist() == [0, 1]


FULL = """
import resource, sys
import numpy as np
import grass_rs as grass
from stores import columns, numbers
from test_store_resume import ROWS, WIDTHS

rows = numbers(ROWS, sum(WIDTHS))
writer = grass.create_store(sys.argv[1], columns(*WIDTHS), commit_bytes=1 << 62)
writer.append(rows[:20], np.arange(100, 120))
writer.commit()
# Writing past this length fails, like writing to a full disk.
resource.setrlimit(resource.RLIMIT_FSIZE, (6 << 20, resource.RLIM_INFINITY))
try:
    writer.append(rows[20:30], np.arange(120, 130))
    writer.commit()
except grass.StoreError as error:
    print(error.errno, error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
try:
    writer.append(rows[30:], np.arange(130, 160))
except grass.StoreError as error:
    print(error)
writer.close()
"""


def test_a_failed_write_loses_nothing_that_was_committed(
    tmp_path: Path, run_script: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    path = tmp_path / "s"
    first, second = run_script(FULL, str(path)).splitlines()
    assert first.startswith("27 ")
    assert "what was committed is safe" in first
    assert "the writer" in second
    assert "stopped at an earlier error" in second
    store = grass.open_store(path)
    assert (len(store), store.complete) == (20, False)
    store.verify()
    run_script(WRITE, str(path), "7")
    whole = write(tmp_path / "whole", numbers(ROWS, sum(WIDTHS)), WIDTHS)
    assert files(path) == files(whole.path)
