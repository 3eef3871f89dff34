"""Death during `cache`, then the same command: equal byte for byte to an uninterrupted store."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import grass_rs as grass
from networks import loader_of, mlp, mlp_data

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

EXAMPLES = 60
BATCH = 7
HEADER = 4096
"""Bytes of a file of rows before its rows."""


@dataclass(frozen=True)
class Job:
    """What is cached, and how often it is committed."""

    examples: int = EXAMPLES
    batch: int = BATCH
    dim: int = 9
    layers: tuple[str, ...] = ("*",)
    dtype: str = "float32"
    commit_bytes: int = 600

    def loader(self) -> Iterable[Any]:
        return loader_of(*mlp_data(self.examples), batch_size=self.batch)

    def cache(
        self, path: Path, loader: Iterable[Any] | None = None, loss: object = "cross_entropy"
    ) -> grass.Store:
        model = mlp()
        plan = grass.Plan.for_model(model, dim=self.dim, layers=self.layers)
        return grass.Attributor(model, loss, plan).cache(
            self.loader() if loader is None else loader,
            path,
            self.dtype,
            progress=False,
            commit_bytes=self.commit_bytes,
            commit_seconds=3600.0,
        )


# One number a row, in 2 bytes: the ids, or the records of the commits, become the largest file.
NARROW = {"batch": 50, "dim": 1, "layers": ("2",), "dtype": "float16"}
JOBS = {
    "rows": Job(),  # 72 bytes a row: commits every 9 rows
    "ids": Job(examples=1000, commit_bytes=600, **NARROW),  # commits every 300 rows
    "log": Job(examples=300, commit_bytes=1, **NARROW),  # commits every row
}


def die(path: Path, job: Job, way: str, number: int) -> None:
    """Cache, and die: asked for one batch more than `number`, or when a file outgrows `number` bytes."""
    if way == "batches":
        job.cache(path, first_batches(job.loader(), number))
    # The system ends the process amid the write, after as much of it as fits.
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
    sys.dont_write_bytecode = True
    job.cache(path)


def first_batches(loader: Iterable[Any], count: int) -> Iterator[Any]:
    """Yield some batches; what asks for the next has appended all of them, and is killed."""
    for seen, batch in enumerate(loader):
        if seen == count:
            break
        yield batch
    os.kill(os.getpid(), signal.SIGKILL)


def run_until_death(path: Path, name: str, way: str, number: int) -> None:
    code = (
        "import sys; from test_cache_resume import *\n"
        "die(Path(sys.argv[1]), JOBS[sys.argv[2]], sys.argv[3], int(sys.argv[4]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), name, way, str(number)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    expected = {"batches": signal.SIGKILL, "bytes": signal.SIGXFSZ}[way]
    assert done.returncode == -expected, done.stderr


def files(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(path.iterdir()) if f.name[0] != "."}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Return the files of every job that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    return {name: files(job.cache(folder / name).path) for name, job in JOBS.items()}


def check_committed(path: Path, committed: int) -> None:
    begun = grass.open_store(path)
    assert not begun.complete
    np.testing.assert_array_equal(begun.ids, np.arange(committed))
    begun.verify()


@pytest.mark.parametrize(
    ("name", "way", "number", "committed"),
    [
        ("rows", "batches", 0, None),  # before there is a store
        ("rows", "batches", 1, 0),  # 7 rows appended
        ("rows", "batches", 3, 18),  # 21
        ("rows", "batches", 9, 54),  # all 60
        ("rows", "bytes", HEADER - 1, 0),
        ("rows", "bytes", HEADER + 100, 0),  # in the second row of the first commit
        ("rows", "bytes", HEADER + (9 + 1) * 72, 9),  # after the first row of the second
        ("rows", "bytes", HEADER + 54 * 72 - 1, 45),  # before the last byte of the sixth
        ("rows", "bytes", HEADER + 60 * 72 - 1, 54),  # in the commit of finishing
        ("ids", "bytes", 7000, 600),  # the rows of the third commit are there, of their ids some
        ("log", "bytes", 5010, 250),  # rows and ids are there, and half of the record
    ],
)
def test_a_cache_that_died_is_finished_byte_for_byte(
    tmp_path: Path,
    whole: dict[str, dict[str, bytes]],
    *,
    name: str,
    way: str,
    number: int,
    committed: int | None,
) -> None:
    path = tmp_path / "died"
    run_until_death(path, name, way, number)
    if way == "bytes":
        assert max(len(data) for data in files(path).values()) == number
    if committed is None:
        assert not path.exists()
    else:
        check_committed(path, committed)
    assert JOBS[name].cache(path).complete
    assert files(path) == whole[name]


def test_a_cache_that_died_again_and_again_is_finished_byte_for_byte(
    tmp_path: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    path = tmp_path / "died"
    run_until_death(path, "rows", "bytes", 100)
    with pytest.raises(grass.StoreNotFoundError):  # died in the manifest
        grass.open_store(path)
    for way, number, committed in [
        ("batches", 2, 9),
        ("bytes", HEADER + 30 * 72, 27),
        ("batches", 7, 45),
    ]:
        run_until_death(path, "rows", way, number)
        check_committed(path, committed)
    assert JOBS["rows"].cache(path).complete
    assert files(path) == whole["rows"]


@pytest.mark.usefixtures("rows_arrive")
@pytest.mark.parametrize("name", JOBS)
def test_rows_that_are_copied_from_a_device_make_the_same_store(
    tmp_path: Path, whole: dict[str, dict[str, bytes]], name: str
) -> None:
    assert files(JOBS[name].cache(tmp_path / "s").path) == whole[name]


@pytest.mark.usefixtures("rows_arrive")
def test_what_came_before_an_interrupt_is_kept(
    tmp_path: Path, whole: dict[str, dict[str, bytes]]
) -> None:
    job = JOBS["rows"]

    def interrupted() -> Iterator[Any]:
        for number, batch in enumerate(job.loader()):
            if number == 4:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        job.cache(tmp_path / "s", interrupted())
    check_committed(tmp_path / "s", 4 * BATCH)
    assert job.cache(tmp_path / "s").complete
    assert files(tmp_path / "s") == whole["rows"]


@pytest.mark.usefixtures("rows_arrive")
def test_only_missing_examples_are_captured_again(tmp_path: Path) -> None:
    job = JOBS["rows"]
    whole = job.cache(tmp_path / "whole")
    captured: list[int] = []

    def failing(model: object, data: object) -> object:
        from torch.nn import functional

        if len(captured) == 4:
            raise KeyboardInterrupt
        if len(data[0]) == BATCH:
            captured.append(1)
        return functional.cross_entropy(model(data[0]), data[1], reduction="none")

    with pytest.raises(KeyboardInterrupt):
        job.cache(tmp_path / "s", loss=failing)
    begun = len(grass.open_store(tmp_path / "s"))
    assert 0 < begun < EXAMPLES
    calls = []

    def counting(model: object, data: object) -> object:
        from torch.nn import functional

        calls.append(len(data[0]))
        return functional.cross_entropy(model(data[0]), data[1], reduction="none")

    store = job.cache(tmp_path / "s", loss=counting)
    np.testing.assert_array_equal(store[:], whole[:])
    # Besides the checks of the first batch, every batch that was missing once.
    assert calls.count(EXAMPLES % BATCH) == 1
    assert calls.count(BATCH) == (EXAMPLES - begun) // BATCH + 1


@pytest.mark.parametrize("copies", ["CudaCopies", "SlowCopies"])
def test_a_full_disk_loses_nothing_that_was_cached(
    tmp_path: Path, whole: dict[str, dict[str, bytes]], copies: str
) -> None:
    """The system refuses to let a file grow, as a full disk does."""
    code = (
        "import resource, sys; from test_cache_resume import *\n"
        "from grass_rs.engine import transfer; from grass_rs.engine.transfer import CudaCopies\n"
        f"from slow_copies import SlowCopies; transfer.CudaCopies = {copies}\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({HEADER + 40 * 72}, resource.RLIM_INFINITY))\n"
        "JOBS['rows'].cache(Path(sys.argv[1]))"
    )
    path = tmp_path / "full"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, str(path)],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    message = done.stderr.splitlines()[-1]
    assert message.startswith("grass_rs.errors.StoreError: cannot write")
    assert message.endswith("what was committed is safe")
    check_committed(path, 36)
    assert JOBS["rows"].cache(path).complete
    assert files(path) == whole["rows"]
