"""Many readers of one store at once: Python threads, processes, and what tells how far a call is."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import grass_rs as grass
from grass_rs import _native
from stores import ONE_COLUMN, numbers, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READERS = 8
QUERIES = numbers(16, 512, seed=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> grass.Store:
    return write(tmp_path_factory.mktemp("readers") / "s", numbers(4000, 512), (512,))


@pytest.fixture
def patient_threads() -> Iterator[None]:
    """Let no thread take the GIL from another that does not give it up."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("patient_threads")
def test_threads_score_at_once_while_others_run(
    store: grass.Store, num_threads: Callable[[int], None]
) -> None:
    num_threads(2)
    expected = store.score(QUERIES, "graddot").values.tobytes()
    counted, over = 0, False
    start = threading.Barrier(READERS)

    def count() -> None:
        nonlocal counted
        while not over:
            counted += 1
            time.sleep(0)  # gives the GIL to whoever waits for it

    def read(_: int) -> bool:
        start.wait()
        # Whether the other thread is given a processor at once is not ours to say.
        for _ in range(200):
            before = counted
            values = store.score(QUERIES, "graddot").values
            # Nobody but a call without the GIL lets the other thread count here.
            moved = counted > before
            assert values.tobytes() == expected
            if moved:
                return True
        return False

    counter = threading.Thread(target=count)
    counter.start()
    try:
        with ThreadPoolExecutor(READERS) as pool:
            assert all(pool.map(read, range(READERS)))
    finally:
        over = True
        counter.join()


SCORED = """
import sys
import numpy as np
import grass_rs as grass
from stores import ONE_COLUMN, numbers

sys.stdin.read(1)
store = grass.open_store(sys.argv[1])
scores = store.score(numbers(16, 512, seed=1), "graddot", top_k=20)
sys.stdout.buffer.write(scores.values.tobytes() + scores.ids.tobytes())
"""


def test_processes_score_at_once(store: grass.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=":")
    command = [sys.executable, "-c", SCORED, str(store.path)]
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(READERS)
    ]
    for child in children:
        assert child.stdin
        child.stdin.write(b"go")
        child.stdin.flush()
    results = {child.communicate(timeout=100)[0] for child in children}
    expected = store.score(QUERIES, "graddot", top_k=20)
    assert results == {expected.values.tobytes() + expected.ids.tobytes()}


def in_this_thread(call: Callable[[], object]) -> object:
    return call()


def in_another_thread(call: Callable[[], object]) -> object:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result()


anywhere = pytest.mark.parametrize("run", [in_this_thread, in_another_thread])


@anywhere
def test_a_call_tells_how_far_it_is(
    store: grass.Store, run: Callable[[Callable[[], object]], object]
) -> None:
    told: list[tuple[int, int]] = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))

    for call in (
        lambda: _native.score_store(store._native, ONE_COLUMN, QUERIES, "graddot", [], None, tell),
        lambda: _native.score_store(
            store._native, ONE_COLUMN, QUERIES, "influence", [0.4, 1.0], 3, tell
        ),
    ):
        told.clear()
        run(call)
        dones = [done for done, _ in told]
        assert dones == sorted(dones)
        assert told[-1][0] == told[-1][1] >= 4000 * 512 * 4


@anywhere
def test_what_is_told_can_stop_the_call(
    store: grass.Store, run: Callable[[Callable[[], object]], object]
) -> None:
    def refuse(done: int, total: int) -> None:
        raise LookupError(done, total)

    with pytest.raises(LookupError):
        run(
            lambda: _native.score_store(
                store._native, ONE_COLUMN, QUERIES, "graddot", [], None, refuse
            )
        )
    assert np.isfinite(store.score(QUERIES, "graddot").values).all()


@anywhere
def test_a_bar_is_shown_on_stderr(
    store: grass.Store,
    run: Callable[[Callable[[], object]], object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for call, name in (
        (lambda: store.score(QUERIES, "graddot", progress=True), "score s: 100%"),
        (lambda: store.score(QUERIES, out=tmp_path / "a.npy", progress=True), "score s: 100%"),
    ):
        run(call)
        captured = capsys.readouterr()
        assert name in captured.err
        assert captured.out == ""
    store.score(QUERIES, "graddot")
    assert capsys.readouterr().err == ""
