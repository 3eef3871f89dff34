"""Scores in a `.npy` file: the bits of those in memory, whatever stopped the call before."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import grass_rs as grass
from grass_rs import _native
from stores import DTYPES, ONE_COLUMN, numbers, write

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTHS = (30, 41)
METHODS = ("influence", "graddot", "gradcos")
QUERIES = numbers(6, 71, seed=1)
HEADER_BYTES = 44


class Stopped(Exception):  # noqa: N818 - no error
    pass


@pytest.fixture
def store(tmp_path: Path) -> grass.Store:
    return write(tmp_path / "s", numbers(90, 71), WIDTHS)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> grass.Store:
    """Return a store of 16 chunks, whose scores for `many_queries` are written in eight bands."""
    path = tmp_path_factory.mktemp("large") / "s"
    return write(path, numbers(8192, 512), (512,))


@pytest.fixture(scope="module")
def expected(large: grass.Store) -> bytes:
    """Return the bytes of all scores of `large` for `many_queries`."""
    return large.score(many_queries(), "graddot").values.tobytes()


def many_queries() -> np.ndarray:
    return numbers(4000, 512, seed=2)


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if file.is_file())


def assert_in_memory_equals(scores: grass.Scores, expected: grass.Scores) -> None:
    assert scores.values.tobytes() == expected.values.tobytes()
    np.testing.assert_array_equal(scores.ids, expected.ids)
    assert (scores.method, scores.damping) == (expected.method, expected.damping)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_the_file_has_the_bits_of_the_scores_in_memory(
    tmp_path: Path, dtype: str, method: str
) -> None:
    store = write(tmp_path / "s", numbers(90, 71), WIDTHS, dtype)
    out = tmp_path / "scores.npy"
    scores = store.score(QUERIES, method, 0.3, out=out)
    assert_in_memory_equals(scores, store.score(QUERIES, method, 0.3))
    assert isinstance(scores.values, np.memmap)
    assert not scores.values.flags.writeable
    assert not scores.ids.flags.writeable
    np.testing.assert_array_equal(np.load(out), scores.values)
    assert np.load(tmp_path / "scores.ids.npy").dtype == np.uint64
    assert names(tmp_path) == ["scores.ids.npy", "scores.npy"]


def test_queries_of_a_store_and_names_of_any_kind(
    tmp_path: Path, store: grass.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = store.score(QUERIES)
    queries = write(tmp_path / "q", QUERIES, WIDTHS)
    folder = tmp_path / "with spaces and \u03b2"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for out in ("plain.npy", folder / "more.dots.npy"):
        assert_in_memory_equals(store.score(queries, out=out), expected)
    assert names(folder) == ["more.dots.ids.npy", "more.dots.npy", "plain.ids.npy", "plain.npy"]


def test_a_finished_file_is_replaced_by_the_next(tmp_path: Path, store: grass.Store) -> None:
    out = tmp_path / "scores.npy"
    first = store.score(QUERIES, "graddot", out=out)
    kept = first.values.copy()
    second = store.score(QUERIES[:2], "gradcos", out=out)
    # What was mapped stays as it was: the name alone is given to the new file.
    np.testing.assert_array_equal(first.values, kept)
    assert_in_memory_equals(second, store.score(QUERIES[:2], "gradcos"))


def test_saved_and_ranked_scores_of_a_file_are_those_in_memory(
    tmp_path: Path, store: grass.Store
) -> None:
    scores, expected = store.score(QUERIES, out=tmp_path / "scores.npy"), store.score(QUERIES)
    for mapped, plain in zip(scores.top(7), expected.top(7), strict=True):
        np.testing.assert_array_equal(mapped, plain)
    scores.save(tmp_path / "saved.npz")
    assert_in_memory_equals(grass.Scores.load(tmp_path / "saved.npz"), expected)


def stopped_once_durable(out: Path) -> Callable[[int, int], None]:
    """Return what raises as soon as the journal has a record."""
    journal = out.with_name(f"{out.name}.progress")

    def tell(done: int, total: int) -> None:
        assert 0 <= done <= total
        if journal.exists() and journal.stat().st_size > HEADER_BYTES:
            raise Stopped

    return tell


def test_a_stopped_call_goes_on_where_it_was(
    tmp_path: Path, large: grass.Store, expected: bytes, num_threads: Callable[[int], None]
) -> None:
    out, queries = tmp_path / "scores.npy", many_queries()
    num_threads(1)
    call = (large._native, ONE_COLUMN, queries, "graddot", 0.0, out, 0.0)
    with pytest.raises(Stopped):
        _native.score_to_file(*call, stopped_once_durable(out))
    assert names(tmp_path) == ["scores.ids.npy.part", "scores.npy.part", "scores.npy.progress"]
    with pytest.raises(grass.ScoresFileError, match=r"scores\.npy\.part was begun by another call"):
        large.score(queries[:-1], "graddot", out=out)
    with pytest.raises(grass.ScoresFileError, match=r"scores\.npy\.part was begun by another call"):
        large.score(queries, "tracin", learning_rates=[2], out=out)
    told: list[tuple[int, int]] = []
    _native.score_to_file(*call, lambda *numbers: told.append(numbers))
    done, total = told[-1]
    assert 0 < done == total < 8192 * 2048
    assert np.load(out, mmap_mode="r").tobytes() == expected
    assert names(tmp_path) == ["scores.ids.npy", "scores.npy"]


KILLED = """
import sys
from pathlib import Path
import grass_rs as grass
from grass_rs import _native
from stores import ONE_COLUMN
from test_scores_file import HEADER_BYTES, many_queries

store, out = grass.open_store(sys.argv[1]), Path(sys.argv[2])
journal = out.with_name(out.name + ".progress")
grass.set_num_threads(1)

def tell(done, total):
    if journal.exists() and journal.stat().st_size > HEADER_BYTES:
        print(done, flush=True)

_native.score_to_file(store._native, ONE_COLUMN, many_queries(), "graddot", 0.0, out, 0.0, tell)
"""


@pytest.mark.parametrize("lines", [1, 3])
def test_a_killed_call_goes_on_where_it_was(
    tmp_path: Path,
    large: grass.Store,
    expected: bytes,
    monkeypatch: pytest.MonkeyPatch,
    lines: int,
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    out, queries = tmp_path / "scores.npy", many_queries()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(large.path), str(out)], stdout=subprocess.PIPE
    ) as child:
        assert child.stdout
        # It goes on while this process reads, so the kill falls wherever it is by then.
        durable = [child.stdout.readline() for _ in range(lines)]
        child.kill()
    assert child.returncode in {-signal.SIGKILL, 0}
    assert durable[0]
    unfinished = (tmp_path / "scores.npy.part").exists()
    told: list[tuple[int, int]] = []
    _native.score_to_file(
        large._native,
        ONE_COLUMN,
        queries,
        "graddot",
        0.0,
        out,
        5.0,
        lambda *numbers: told.append(numbers),
    )
    done, total = told[-1]
    assert done == total
    assert not unfinished or total < 8192 * 2048
    assert np.load(out, mmap_mode="r").tobytes() == expected
    assert names(tmp_path) == ["scores.ids.npy", "scores.npy"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"out": "scores.npz"}, grass.SpecError, "out expects a file NAME.npy, got 'scores.npz'"),
        ({"out": "a.npy", "top_k": 3}, grass.SpecError, "writes all scores, got top_k=3"),
        ({"out": "a.npy", "damping": [0.1]}, grass.SpecError, "one damping with out, got .0.1."),
        ({"out": "a.npy", "damping": -1}, grass.SpecError, "at least 0, got -1"),
        ({"out": "a.npy", "damping": "x"}, grass.SpecError, "at least 0, got 'x'"),
        ({"out": "none/a.npy"}, grass.ScoresFileError, "check that its folder is there"),
        ({"out": "folder.npy"}, grass.ScoresFileError, "name a file in it"),
    ],
)
def test_bad_arguments_are_refused_and_leave_no_file(
    tmp_path: Path,
    store: grass.Store,
    monkeypatch: pytest.MonkeyPatch,
    *,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    (tmp_path / "folder.npy").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=words) as caught:
        store.score(QUERIES, **options)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_missing_folder_has_the_number_of_the_system(tmp_path: Path, store: grass.Store) -> None:
    with pytest.raises(OSError, match="No such file") as caught:
        store.score(QUERIES, out=tmp_path / "none" / "a.npy")
    assert caught.value.errno == 2


def test_bad_queries_leave_no_file(tmp_path: Path, store: grass.Store) -> None:
    queries = QUERIES.copy()
    queries[3, 3] = np.nan
    with pytest.raises(grass.NonFiniteError, match="query 3"):
        store.score(queries, out=tmp_path / "a.npy")
    assert names(tmp_path) == []


FULL = """
import resource, signal, sys
import numpy as np
import grass_rs as grass

store = grass.open_store(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.score(np.ones((600, 71)), out=sys.argv[2])
except grass.ScoresFileError as error:
    print(error.errno, str(error).rpartition(": ")[2].partition(",")[0])
"""


def test_a_disk_that_refuses_the_file_is_one_line(
    tmp_path: Path, run_script: Callable[..., str], store: grass.Store
) -> None:
    printed = run_script(FULL, str(store.path), str(tmp_path / "scores.npy"))
    assert printed == "27 raise the file size limit and make the same call again\n"
    assert names(tmp_path) == []
