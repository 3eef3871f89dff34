"""Several processes write one store: killed, resumed, in any order, it has the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import grass_rs as grass
from stores import columns, files, numbers, write

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTHS = (2_000, 6_192)
"""32 KiB a row: 32 rows a chunk."""
ROWS = 200
IDS = np.random.default_rng(7).permutation(1000)[:ROWS]
"""Of the rows: neither sorted nor dense."""

WRITE = """
import os, signal, sys
from pathlib import Path
import numpy as np
import grass_rs as grass
from stores import columns, numbers
from test_store_writers import IDS, ROWS, WIDTHS

path, writer, writers, die_after = Path(sys.argv[1]), *map(int, sys.argv[2:])
rows = numbers(ROWS, sum(WIDTHS))
store = grass.create_store(path, columns(*WIDTHS), resume=True, writer=writer, writers=writers)
done = set(store.committed_ids.tolist())
mine = [row for row in range(writer, ROWS, writers) if IDS[row] not in done]
for count, row in enumerate(mine):
    if count == die_after:
        os.kill(os.getpid(), signal.SIGKILL)
    store.append(rows[row : row + 1], IDS[row : row + 1])
    if count % 3 == 2:
        store.commit()
print(store.finish().complete)
"""


@pytest.fixture(autouse=True)
def _stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")


def start(path: Path, writer: int, writers: int, die_after: int = -1) -> subprocess.Popen[str]:
    arguments = [str(path), *map(str, (writer, writers, die_after))]
    return subprocess.Popen(
        [sys.executable, "-c", WRITE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(child: subprocess.Popen[str], status: int = 0) -> str:
    printed, errors = child.communicate(timeout=120)
    assert child.returncode == status, errors
    return printed.strip()


def check_whole(path: Path) -> None:
    store = grass.open_store(path)
    store.verify()
    assert store.complete
    order = np.argsort(store.ids)
    np.testing.assert_array_equal(store.ids[order], np.sort(IDS))
    np.testing.assert_array_equal(store[order], numbers(ROWS, sum(WIDTHS))[np.argsort(IDS)])


def test_writers_at_once_make_the_bytes_of_one_after_the_other(tmp_path: Path) -> None:
    at_once, plain = tmp_path / "at once", tmp_path / "plain"
    # Nobody has created the store; one writer is killed in its rows, and begun again.
    children = [start(at_once, w, 4, 20 if w == 2 else -1) for w in (2, 0, 3, 1)]
    end(children[0], -signal.SIGKILL)
    again = start(at_once, 2, 4)
    said = [end(child) for child in [*children[1:], again]]
    assert said.count("True") >= 1
    for writer in range(4):
        assert end(start(plain, writer, 4)) == str(writer == 3)
    assert files(at_once) == files(plain)
    check_whole(at_once)


def test_another_number_of_writers_finishes_what_killed_ones_began(tmp_path: Path) -> None:
    path = tmp_path / "s"
    for child in [start(path, w, 3, 15) for w in range(3)]:
        end(child, -signal.SIGKILL)
    assert len(grass.open_store(path)) == 45
    # The rows are dealt anew, so a writer meets rows that another one of before had committed.
    assert end(start(path, 1, 2)) == "False"
    assert end(start(path, 0, 2)) == "True"
    check_whole(path)


HOLD = """
import os, sys, threading
import grass_rs as grass
from stores import columns
writer, writers = map(int, sys.argv[2:])
held = grass.create_store(sys.argv[1], columns(3), resume=True, writer=writer, writers=writers)
print(os.getpid(), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(("writer", "writers"), [(1, 3), (0, 1), (0, 2)])
def test_the_process_that_is_in_the_way_is_named(tmp_path: Path, writer: int, writers: int) -> None:
    path = tmp_path / "s"
    options: dict[str, Any] = {"resume": True, "writer": writer, "writers": writers}
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), "1", "3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout
        process = int(child.stdout.readline())
        with pytest.raises(grass.StoreLockedError, match=f"written by process {process}:"):
            grass.create_store(path, columns(3), **options)
        grass.create_store(path, columns(3), resume=True, writer=2, writers=3).close()
        child.kill()
    grass.create_store(path, columns(3), **options).close()


def test_an_id_of_two_writers_is_named(tmp_path: Path) -> None:
    def writer(number: int) -> grass.StoreWriter:
        return grass.create_store(tmp_path / "s", columns(3), resume=True, writer=number, writers=2)

    first, second = writer(0), writer(1)
    first.append(numbers(2, 3), [1, 2])
    second.append(numbers(2, 3), [3, 2])
    assert not first.finish().complete
    with pytest.raises(grass.DataError, match="id 2 is in the rows of two writers"):
        second.finish()
    second.close()
    assert not grass.open_store(tmp_path / "s").complete


def test_odd_names_and_links_to_folders_are_fine(tmp_path: Path) -> None:
    odd = tmp_path / "späces and 漢字 \N{SNOWMAN}"
    odd.mkdir()
    (tmp_path / "link").symlink_to(odd)
    rows = numbers(4, 3)
    for path in (odd / "a store", tmp_path / "link" / "b"):
        np.testing.assert_array_equal(write(path, rows, (3,))[:], rows)
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "to real").symlink_to(real)
    with grass.create_store(tmp_path / "to real", columns(3), writers=2) as writer:
        writer.append(rows, [1, 2, 3, 4])
        with pytest.raises(grass.StoreLockedError):
            grass.create_store(real, columns(3), resume=True, writers=2)
        writer.finish()
    grass.create_store(real, columns(3), resume=True, writer=1, writers=2).finish()
    np.testing.assert_array_equal(grass.open_store(real)[:], rows)
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    with pytest.raises(grass.StoreExistsError):
        grass.create_store(tmp_path / "broken", columns(3))


READ = """
import os, sys, threading
import grass_rs as grass
from stores import columns

if os.geteuid() == 0:
    os.seteuid(65534)  # root may write anywhere, nobody may not
store = grass.open_store(sys.argv[1])
store.verify()
assert len(store[:]) == 4
for resume in (True, False):
    try:
        grass.create_store(sys.argv[1] + ("" if resume else "-new"), columns(3), resume=resume)
    except grass.StorePermissionError as error:
        print(error.errno)
"""


def test_a_store_in_a_read_only_folder_is_read_and_not_written(
    run_script: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Not a folder of pytest's: those are closed to other users altogether.
    folder = Path(tmp_path_factory.mktemp("made")).parents[2] / f"read-only-{os.getpid()}"
    folder.mkdir()
    try:
        store = write(folder / "s", numbers(4, 3), (3,))
        for file in (*store.path.iterdir(), store.path, folder):
            file.chmod(0o555 if file.is_dir() else 0o444)
        assert run_script(READ, str(store.path)) == "13\n13\n"
        store.path.chmod(0o755)
        folder.chmod(0o755)
    finally:
        shutil.rmtree(folder)


KINDS = ("rows", "ids", "log")


@pytest.mark.parametrize("swapped", [("rows",), ("ids",), ("log",), KINDS])
@pytest.mark.parametrize("model", ["m", "n"])
def test_files_of_another_store_are_found(
    tmp_path: Path, swapped: tuple[str, ...], model: str
) -> None:
    for name, seed, marked in [("s", 0, "m"), ("other", 1, model)]:
        write(
            tmp_path / name,
            numbers(40, 8192, seed),
            WIDTHS,
            ids=np.arange(40) + 100 * seed,
            fingerprints={"model": marked},
        )
    for kind in swapped:
        shutil.copyfile(tmp_path / f"other/shard-00000.{kind}", tmp_path / f"s/shard-00000.{kind}")
    if "log" in swapped or (model != "m" and "rows" in swapped):
        with pytest.raises(grass.CorruptStoreError, match="shard 0"):
            grass.open_store(tmp_path / "s")
        return
    store = grass.open_store(tmp_path / "s")
    with pytest.raises(grass.CorruptStoreError, match="shard 0"):
        store.verify()
    with pytest.raises(grass.CorruptStoreError, match="shard 0"):
        store.score(numbers(1, 8192), "graddot")


@pytest.mark.parametrize("gone", [("rows",), ("ids",), ("log",), KINDS])
def test_a_shard_that_is_gone_is_missed(tmp_path: Path, gone: tuple[str, ...]) -> None:
    for number in range(2):
        with grass.create_store(
            tmp_path / "s", columns(3), resume=True, writer=number, writers=2
        ) as writer:
            writer.append(numbers(3, 3), np.arange(3) + 10 * number)
            writer.finish()
    for kind in gone:
        (tmp_path / f"s/shard-00001.{kind}").unlink()
    with pytest.raises(grass.CorruptStoreError, match=f"shard 1 {gone[0]} .the file is missing"):
        grass.open_store(tmp_path / "s")


def test_a_shard_that_is_not_of_the_store_is_found(tmp_path: Path) -> None:
    write(tmp_path / "s", numbers(3, 3), (3,))
    for kind in KINDS:
        shutil.copyfile(tmp_path / f"s/shard-00000.{kind}", tmp_path / f"s/shard-00003.{kind}")
    with pytest.raises(grass.CorruptStoreError, match="does not list this shard"):
        grass.open_store(tmp_path / "s")


def deep(levels: int) -> dict[str, Any]:
    """Return objects inside one another, made without recursion."""
    spec: dict[str, Any] = {}
    for _ in range(levels):
        spec = {"a": spec}
    return spec


def column(**changes: Any) -> dict[str, Any]:
    """Return the argument for one column with changes."""
    return {
        "columns": [grass.Column(**{"name": "a", "offset": 0, "width": 3, "spec": {}, **changes})]
    }


SURROGATE = "\ud800"

REFUSED: list[tuple[dict[str, Any], str]] = [
    *(
        (
            {"commit_bytes": value},
            "commit_bytes must be a whole number from 1 to 18446744073709551615",
        )
        for value in (2**70, 1.5, True, "x", None, -1)
    ),
    *(
        ({"commit_seconds": value}, "commit_seconds must be (a number from|at least) 0, got")
        for value in (float("nan"), -1, -(10**400), -float("inf"), "x", True, None, 1j)
    ),
    *(
        ({"writer": value, "writers": 2}, "writer must be a whole number from 0 to 99999, got")
        for value in (0.0, "0", True, None, 2**70)
    ),
    *(
        ({"writers": value}, "writers must be a whole number from 1 to 100000, got")
        for value in (1.5, "2", True, None, 2**70, 0)
    ),
    *(
        ({"fingerprints": value}, "fingerprints must be a mapping of str to str, got")
        for value in (
            {1: "a"},
            {"a": 1},
            {"a": None},
            {"a": SURROGATE},
            {SURROGATE: "a"},
            ["a"],
            "ab",
            3,
        )
    ),
    *(({"resume": value}, "resume must be True or False, got") for value in ("no", 1, None)),
    *(({"dtype": value}, "store dtype must be one of") for value in (None, 3, ["int8"])),
    *(
        ({"path": value}, "path must be a str or a path that the system can name, got")
        for value in ("a\0b", SURROGATE, b"x", 3, None)
    ),
    *(({"columns": value}, "expected a sequence of Column") for value in (None, 3)),
    *(({"columns": value}, "expected a Column whose name is text") for value in ([1], "ab", ["a"])),
    *(
        (column(name=value), "expected a Column whose name is text")
        for value in (1, None, SURROGATE)
    ),
    *(
        (column(width=value), "width of column 'a' must be a whole number")
        for value in (3.5, True, -3, 2**70, "3", None)
    ),
    *((column(offset=value), "column 'a' has offset .*, expected 0") for value in ("0", None, -1)),
    *(
        (column(spec=value), "column 'a' has a spec that is not made of JSON values")
        for value in (deep(100_000), {"a": object()}, {("a",): 1}, {"a": float("nan")})
    ),
    *(
        (column(spec=value), "a spec that is not a JSON object")
        for value in ([1], None, {"a": SURROGATE})
    ),
    (column(spec=deep(70)), "more than 64 levels"),
    ({"columns": [*columns(3), grass.Column("layer0", 3, 3, {})]}, '"layer0" is there twice'),
]


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_an_argument_of_no_use_is_one_clear_line(
    tmp_path: Path, changes: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(grass.SpecError, match=words) as caught:
        grass.create_store(**{"path": "s", "columns": columns(3), **changes})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_arguments_may_be_of_any_type_of_their_kind(tmp_path: Path) -> None:
    for number, seconds in enumerate((float("inf"), 10**400, np.float32(2), 0)):
        writer = grass.create_store(
            tmp_path / str(number),
            (column for column in columns(3)),  # type: ignore[arg-type]
            resume=np.bool_(True),  # type: ignore[arg-type]  # noqa: FBT003 - a bool of NumPy
            commit_bytes=np.int64(1),  # type: ignore[arg-type]
            commit_seconds=seconds,
            writer=np.uint8(1),  # type: ignore[arg-type]
            writers=np.int32(2),  # type: ignore[arg-type]
        )
        writer.append(numbers(2, 3), [1, 2])
        writer.close()
        np.testing.assert_array_equal(grass.open_store(tmp_path / str(number)).ids, [1, 2])
