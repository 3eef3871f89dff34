"""`kill -9` during `cache`, then the same command: equal byte for byte to an uninterrupted store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import grass_rs as grass
from networks import loader_of, mlp, mlp_data

EXAMPLES = 60
BATCH = 7


def _cache(path: Path, loss: object = "cross_entropy", dtype: str = "float32") -> grass.Store:
    model = mlp()
    attributor = grass.Attributor(model, loss, grass.Plan.for_model(model, dim=9))
    return attributor.cache(
        loader_of(*mlp_data(EXAMPLES), batch_size=BATCH),
        path,
        dtype,
        progress=False,
        commit_bytes=600,
    )


def _kill_in_batch(path: Path, batch: int, when: str) -> None:
    """Cache, and die by SIGKILL before the n-th batch is captured, or while it is being written."""
    seen = 0

    def loss(model: object, data: object) -> object:
        nonlocal seen
        from torch.nn import functional

        inputs, targets = data
        if len(inputs) == BATCH:
            seen += 1
            if when == "before" and seen > batch:
                os.kill(os.getpid(), signal.SIGKILL)
        return functional.cross_entropy(model(inputs), targets, reduction="none")

    if when == "while":
        # Dies at whatever the writing thread is doing once so many bytes of rows are there.
        threading.Thread(target=_die_at_size, args=(path, batch * 300), daemon=True).start()
    _cache(path, loss)


def _die_at_size(path: Path, size: int) -> None:
    rows = path / "shard-00000.rows"
    while not (rows.exists() and rows.stat().st_size > 4096 + size):
        pass
    os.kill(os.getpid(), signal.SIGKILL)


def _files(path: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(path.iterdir()) if f.name != ".lock"}


@pytest.mark.parametrize("when", ["before", "while"])
@pytest.mark.parametrize("batch", [1, 3, 4, 7])
def test_a_killed_cache_is_finished_byte_for_byte(tmp_path: Path, batch: int, when: str) -> None:
    _cache(tmp_path / "whole")
    path = tmp_path / "killed"
    code = (
        f"import test_cache_resume as t; t._kill_in_batch(t.Path({str(path)!r}), {batch}, {when!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    begun = grass.open_store(path)
    assert not begun.complete
    assert len(begun) < EXAMPLES
    store = _cache(path)
    assert store.complete
    assert _files(path) == _files(tmp_path / "whole")


def test_only_missing_examples_are_captured_again(tmp_path: Path) -> None:
    whole = _cache(tmp_path / "whole")
    captured: list[int] = []

    def failing(model: object, data: object) -> object:
        from torch.nn import functional

        if len(captured) == 4:
            raise KeyboardInterrupt
        if len(data[0]) == BATCH:
            captured.append(1)
        return functional.cross_entropy(model(data[0]), data[1], reduction="none")

    with pytest.raises(KeyboardInterrupt):
        _cache(tmp_path / "s", failing)
    begun = len(grass.open_store(tmp_path / "s"))
    assert 0 < begun < EXAMPLES
    calls = []

    def counting(model: object, data: object) -> object:
        from torch.nn import functional

        calls.append(len(data[0]))
        return functional.cross_entropy(model(data[0]), data[1], reduction="none")

    store = _cache(tmp_path / "s", counting)
    np.testing.assert_array_equal(store[:], whole[:])
    # Besides the checks of the first batch, every batch that was missing once.
    assert calls.count(EXAMPLES % BATCH) == 1
    assert calls.count(BATCH) == (EXAMPLES - begun) // BATCH + 1
