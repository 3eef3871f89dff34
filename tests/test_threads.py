"""What must not matter: threads, batches, forks, other Python threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

import grass_rs as grass
import reference
import specs

if TYPE_CHECKING:
    from collections.abc import Callable

# Wide and high enough that the work is shared between threads, with ragged ends on every side.
LARGE = {
    "mask": reference.mask(list(range(0, 70_001, 3)), 70_001),
    "random_mask": reference.random_mask(70_001, 30_000, 1),
    "sjlt": reference.sjlt(70_001, 999, 2, nnz=3),
    "sjlt_few_buckets": reference.sjlt(70_001, 7, 2),
    "sjlt_iid": reference.sjlt(70_001, 1001, 3, kind="iid"),
    "gaussian": reference.gaussian(3001, 129, 4),
    "rademacher": reference.gaussian(3001, 129, 5, kind="rademacher"),
    "grass": reference.grass(70_001, 5001, 6),
    "logra": reference.logra(301, 203, 17, 13, 7),
    "factgrass": reference.factgrass(301, 203, 1001, 8),
    "tile": reference.tile(301, 1203, 1000, 9),
}
every_large_compressor = pytest.mark.parametrize("spec", LARGE.values(), ids=LARGE)


def bits(result: np.ndarray) -> bytes:
    """Return the bytes of a result: -0.0 and 0.0 differ."""
    return np.ascontiguousarray(result).tobytes()


@every_large_compressor
@pytest.mark.parametrize("rows", [1, 2, 37])
def test_number_of_threads_does_not_matter(
    num_threads: Callable[[int], None], spec: dict[str, Any], rows: int
) -> None:
    compressor = specs.build(spec)
    arguments = specs.inputs(spec, rows, tokens=19)
    results = set()
    for threads in (1, 2, 3, 5):
        num_threads(threads)
        assert grass.num_threads() == threads
        results.add(bits(compressor(*arguments)))
    assert len(results) == 1


@pytest.mark.parametrize("kind", ["cyclic", "iid"])
def test_number_of_threads_does_not_matter_for_one_long_row(
    num_threads: Callable[[int], None], kind: str
) -> None:
    # Of several segments, which the threads share.
    spec = reference.sjlt(1_100_003, 998, 2, nnz=2, kind=kind)
    (row,) = specs.inputs(spec, 1)
    compressor = specs.build(spec)
    results = set()
    for threads in (1, 2, 3, 5):
        num_threads(threads)
        results.add(bits(compressor(row)))
    assert len(results) == 1


@every_large_compressor
def test_rows_one_by_one_equal_the_batch(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    arguments = specs.inputs(spec, 37, tokens=19)
    batch = compressor(*arguments)
    for row in range(37):
        one = compressor(*(x[row : row + 1] for x in arguments))
        assert bits(one[0]) == bits(batch[row])


@given(spec=specs.any_spec, cut=st.integers(0, 9))
def test_batch_split_does_not_matter(spec: dict[str, Any], cut: int) -> None:
    compressor = specs.build(spec)
    arguments = specs.inputs(spec, n=9)
    parts = [compressor(*(x[part] for x in arguments)) for part in (slice(cut), slice(cut, None))]
    assert bits(np.concatenate(parts)) == bits(compressor(*arguments))


@pytest.mark.parametrize("threads", [0, -1, 1.5, 2.0, "2", None, 2**70, -(2**70)])
def test_bad_number_of_threads_is_refused(threads: Any) -> None:
    before = grass.num_threads()
    with pytest.raises(grass.SpecError) as caught:
        grass.set_num_threads(threads)
    expected = f"set_num_threads expects a whole number from 1 to 1024, got {threads!r}"
    assert str(caught.value).startswith(expected)
    assert "\n" not in str(caught.value)
    assert grass.num_threads() == before


def test_any_integer_type_is_a_number_of_threads(num_threads: Callable[[Any], None]) -> None:
    num_threads(np.int64(2))
    assert grass.num_threads() == 2


READ_VARIABLE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import grass_rs as grass
print(grass.num_threads())
for warning in caught:
    print(f"{warning.category.__name__}: {warning.message}")
"""


def test_environment_variable_sets_the_number(
    run_script: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRASS_NUM_THREADS", "3")
    assert run_script(READ_VARIABLE) == "3\n"


@pytest.mark.parametrize("value", ["abc", "0", "-2", "1.5", str(2**64)])
def test_bad_environment_variable_is_one_warning_and_all_cores(
    run_script: Callable[..., str], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.delenv("GRASS_NUM_THREADS", raising=False)
    all_cores = run_script(READ_VARIABLE)
    assert int(all_cores) >= 1
    monkeypatch.setenv("GRASS_NUM_THREADS", value)
    warning = (
        f"RuntimeWarning: GRASS_NUM_THREADS expects a whole number from 1 to 1024, got {value!r}: "
        f"all cores are used\n"
    )
    assert run_script(READ_VARIABLE) == all_cores + warning


def test_many_python_threads_at_once(num_threads: Callable[[int], None]) -> None:
    num_threads(2)
    jobs = []
    for name, spec in LARGE.items():
        arguments = specs.inputs(spec, 5, seed=len(name))
        expected = bits(specs.build(spec)(*arguments))
        # Fresh: the threads meet at its first use.
        jobs.append((specs.build(spec), arguments, expected))
    start = threading.Barrier(8)

    def work(worker: int) -> list[bool]:
        start.wait()
        same = []
        for step in range(len(jobs)):
            compressor, arguments, expected = jobs[(step + worker) % len(jobs)]
            # Changing the number of threads under running calls must not disturb them.
            grass.set_num_threads(1 + (worker + step) % 3)
            same.append(bits(compressor(*arguments)) == expected)
        return same

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(work, range(8)))
    assert len(outcomes) == 8
    assert all(all(same) for same in outcomes)


FORK = """
import os, signal, sys, threading, warnings
import numpy as np
import grass_rs as grass

warnings.simplefilter("ignore", DeprecationWarning)  # of fork itself, beside threads
grass.set_num_threads(3)
x = np.random.default_rng(0).standard_normal((64, 20_000), dtype=np.float32)
compressors = [grass.SJLT(20_000, 1000, seed=1, nnz=2), grass.GraSS(20_000, 4000, seed=2)]
expected = [c(x).tobytes() for c in compressors]
busy = sys.argv[1] == "busy"
stop = threading.Event()

def work():
    while not stop.is_set():
        compressors[0](x)

workers = [threading.Thread(target=work) for _ in range(2 * busy)]
for worker in workers:
    worker.start()
for generation in range(5):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # a child that hangs is killed
        same = [c(x).tobytes() for c in compressors] == expected
        grandchild = os.fork()
        if grandchild == 0:
            signal.alarm(60)
            os._exit(0 if [c(x).tobytes() for c in compressors] == expected else 1)
        status = os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1])
        os._exit(0 if same and status == 0 else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, status
    assert [c(x).tobytes() for c in compressors] == expected
stop.set()
for worker in workers:
    worker.join()
print("same")
"""


@pytest.mark.parametrize("parent", ["idle", "busy"])
def test_forked_children_compute_the_same(run_script: Callable[..., str], parent: str) -> None:
    assert run_script(FORK, parent) == "same\n"


class CompressedRows(Dataset[torch.Tensor]):
    """Rows that are compressed where they are loaded."""

    def __init__(self) -> None:
        self.compressor = grass.SJLT(70_001, 999, seed=2)
        self.rows = specs.inputs(self.compressor.spec, 8)[0]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> torch.Tensor:
        batch = torch.from_numpy(np.repeat(self.rows[index : index + 1], 8, axis=0))
        return self.compressor(batch)[0]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_data_loader_workers_compute_the_same(
    num_threads: Callable[[int], None], context: str
) -> None:
    num_threads(2)
    dataset = CompressedRows()
    expected = dataset.compressor(dataset.rows)
    loader = DataLoader(
        dataset, batch_size=2, num_workers=2, multiprocessing_context=context, timeout=100
    )
    loaded = torch.cat(list(loader))
    assert bits(loaded.numpy()) == bits(expected)
