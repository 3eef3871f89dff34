"""Tensors on their way to the host: in order, each once, none before it is there, none waited for."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from grass_rs.engine.transfer import CudaCopies, Transfer
from slow_copies import SlowCopies, SlowCopy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from torch import Tensor

SECONDS = 60
"""What takes longer than this hangs."""


def transfer_of(
    take: Callable[[list[NDArray[Any]], int], None], copies: SlowCopies | None = None
) -> Transfer[int]:
    transfer = Transfer(take)
    transfer._copies = SlowCopies() if copies is None else copies  # type: ignore[assignment]
    return transfer


def numbers(batch: int) -> list[Tensor]:
    """Return two tensors of a batch that differ from those of any other."""
    return [torch.full((batch % 3 + 1, 2), float(batch)), torch.full((batch % 3 + 1,), -batch)]


class Taken:
    """Notes what was taken, after checking that it had arrived."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.threads: set[int] = set()

    def __call__(self, arrays: list[NDArray[Any]], batch: int) -> None:
        for array, tensor in zip(arrays, numbers(batch), strict=True):
            np.testing.assert_array_equal(array, tensor.numpy())
        self.batches.append(batch)
        self.threads.add(threading.get_ident())


def test_batches_arrive_whole_once_and_in_order() -> None:
    taken = Taken()
    with transfer_of(taken) as transfer:
        for batch in range(20):
            transfer.send(numbers(batch), batch)
    assert taken.batches == list(range(20))
    assert len(taken.threads) == 1
    assert threading.get_ident() not in taken.threads


def test_a_copy_is_begun_while_the_batch_before_is_taken() -> None:
    begun = [threading.Event() for _ in range(3)]
    entered, taken = [threading.Event() for _ in range(3)], Taken()

    class Telling(SlowCopies):
        def begin(self, tensor: Tensor, memory: Tensor) -> SlowCopy:
            begun[self.begun // 2].set()  # two tensors a batch
            return super().begin(tensor, memory)

    def take(arrays: list[NDArray[Any]], batch: int) -> None:
        entered[batch].set()
        # Neither the next batch nor its copy waits for this one to be taken,
        if batch < 2:
            assert begun[batch + 1].wait(SECONDS)
        # whose memory is still its own.
        taken(arrays, batch)

    copies = Telling()
    with transfer_of(take, copies) as transfer:
        for batch in range(3):
            transfer.send(numbers(batch), batch)
            assert entered[batch].wait(SECONDS)
    assert taken.batches == [0, 1, 2]
    # No copy was waited for where the next one could be begun.
    order = [copies.log.index(step) for step in ("begin 0", "begin 2", "wait 2", "wait 4")]
    assert order == sorted(order)


def test_at_most_two_batches_are_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, taken = threading.Event(), Taken()
    result = Future.result

    def waits(future: Future[None]) -> None:
        waiting.set()
        result(future)

    class Counted(SlowCopies):
        def begin(self, tensor: Tensor, memory: Tensor) -> SlowCopy:
            if self.begun == 4:  # two tensors a batch, so this is the third batch
                waiting.set()
                assert taken.batches[:1] == [0]
            return super().begin(tensor, memory)

    def take(arrays: list[NDArray[Any]], batch: int) -> None:
        # Until the third batch is sent.
        assert waiting.wait(SECONDS)
        taken(arrays, batch)

    monkeypatch.setattr(Future, "result", waits)
    with transfer_of(take, Counted()) as transfer:
        for batch in range(5):
            transfer.send(numbers(batch), batch)
    assert taken.batches == list(range(5))


def test_tensors_of_the_cpu_are_handed_over_at_once_as_they_are() -> None:
    taken: list[int] = []

    def take(arrays: list[NDArray[Any]], batch: int) -> None:
        assert threading.get_ident() == here
        assert [array.ctypes.data for array in arrays] == [tensor.data_ptr() for tensor in tensors]
        taken.append(batch)

    here, threads = threading.get_ident(), threading.active_count()
    with Transfer(take) as transfer:
        for batch in range(3):
            tensors = numbers(batch)
            transfer.send(tensors, batch)
            assert taken == list(range(batch + 1))
            assert threading.active_count() == threads


def test_tensors_of_the_cpu_beside_those_of_a_gpu_are_not_copied() -> None:
    class Second(SlowCopies):
        def needed(self, tensor: Tensor) -> bool:
            return tensor.ndim == 1

    copies, taken, sent = Second(), Taken(), [numbers(batch) for batch in range(3)]
    places = []

    def take(arrays: list[NDArray[Any]], batch: int) -> None:
        places.append(arrays[0].ctypes.data)
        taken(arrays, batch)

    with transfer_of(take, copies) as transfer:
        for batch, tensors in enumerate(sent):
            transfer.send(tensors, batch)
    assert places == [tensors[0].data_ptr() for tensors in sent]
    assert copies.begun == len(taken.batches) == 3


# Errors


def send(transfer: Transfer[int], batches: int, *, then: BaseException | None = None) -> None:
    with transfer:
        for batch in range(batches):
            transfer.send(numbers(batch), batch)
        if then is not None:
            raise then


def failing(taken: Taken, error: BaseException) -> Callable[[list[NDArray[Any]], int], None]:
    """Take batch 0, and raise at batch 1."""

    def take(arrays: list[NDArray[Any]], batch: int) -> None:
        if batch == 1:
            raise error
        taken(arrays, batch)

    return take


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("batches", [2, 3, 10])
@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt()])
def test_an_error_in_taking_is_raised_and_ends_it(
    error: BaseException, batches: int, copied: bool
) -> None:
    taken, copies = Taken(), SlowCopies()
    take = failing(taken, error)
    with pytest.raises(type(error)) as raised:
        send(transfer_of(take, copies) if copied else Transfer(take), batches)
    assert raised.value is error
    assert taken.batches == [0]
    # Two tensors a batch: the fourth one is not begun any more.
    assert copies.begun <= 6


def test_a_copy_that_fails_ends_the_taking() -> None:
    class Broken(SlowCopies):
        def begin(self, tensor: Tensor, memory: Tensor) -> SlowCopy:
            copy = super().begin(tensor, memory)
            if copy.number == 2:  # the first of the second batch
                copy.memory = torch.empty(0, 7)
            return copy

    taken = Taken()
    with pytest.raises(RuntimeError, match="size"):
        send(transfer_of(taken, Broken()), 3)
    assert taken.batches == [0]


@pytest.mark.parametrize("error", [ValueError("later"), KeyboardInterrupt()])
def test_what_was_sent_before_an_error_is_taken(error: BaseException) -> None:
    taken, shut = Taken(), threading.Event()

    class Late(SlowCopies):
        def begin(self, tensor: Tensor, memory: Tensor) -> SlowCopy:
            if self.begun == 3:  # the last of the second batch
                shut.set()
            return super().begin(tensor, memory)

    def take(arrays: list[NDArray[Any]], batch: int) -> None:
        assert shut.wait(SECONDS)
        taken(arrays, batch)

    with pytest.raises(type(error)) as raised:
        send(transfer_of(take, Late()), 2, then=error)
    assert raised.value is error
    assert taken.batches == [0, 1]


@pytest.mark.parametrize(
    ("second", "raised_first"), [(ValueError("second"), True), (KeyboardInterrupt(), False)]
)
def test_the_first_of_two_errors_is_raised_unless_the_second_is_an_interrupt(
    second: BaseException, raised_first: bool
) -> None:
    first, taken = ValueError("first"), Taken()
    with pytest.raises((ValueError, KeyboardInterrupt)) as raised:
        send(transfer_of(failing(taken, first)), 2, then=second)
    assert raised.value is (first if raised_first else second)
    assert taken.batches == [0]


# CUDA itself


def test_a_copy_waits_for_the_work_before_it_and_keeps_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    stream = SimpleNamespace(wait_stream=lambda other: log.append(f"wait for {other}"))
    done = SimpleNamespace(record=lambda where: log.append(f"record {where is stream}"))
    streams_of: list[torch.device] = []

    def new_stream(device: torch.device) -> Any:
        streams_of.append(device)
        return stream

    @contextmanager
    def on(where: Any) -> Iterator[None]:
        log.append(f"enter {where is stream}")
        yield
        log.append("leave")

    def copy(_: Any, *, non_blocking: bool) -> None:
        log.append(f"copy {non_blocking}")

    monkeypatch.setattr(torch.cuda, "Stream", new_stream)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the model's on {device}")
    monkeypatch.setattr(torch.cuda, "Event", lambda *, blocking: done if blocking else None)
    tensor: Any = SimpleNamespace(
        device=torch.device("cuda:1"),
        record_stream=lambda where: log.append(f"keep {where is stream}"),
    )
    memory: Any = SimpleNamespace(copy_=copy)
    copies = CudaCopies()
    for _ in range(2):
        assert copies.begin(tensor, memory) is done
        expected = (
            "wait for the model's on cuda:1, enter True, copy True, record True, leave, keep True"
        )
        assert ", ".join(log) == expected
        log.clear()
    assert streams_of == [tensor.device]


def test_copies_go_to_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    tensor = torch.ones(3, 2, dtype=torch.bool)
    monkeypatch.setattr(torch, "empty", lambda shape, **how: asked.update(how, shape=shape))
    CudaCopies().memory(tensor)
    expected = {"shape": (3, 2), "dtype": torch.bool, "device": "cpu", "pin_memory": True}
    assert asked == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_copies_of_a_gpu_come_after_the_work_before_them() -> None:
    taken: list[NDArray[Any]] = []
    with Transfer(lambda arrays, _: taken.append(arrays[0].copy())) as transfer:
        for batch in range(8):
            busy = torch.ones(2048, 2048, device="cuda")
            for _ in range(20):
                busy = busy @ busy / 2048
            transfer.send([busy[:3] * batch], None)
            del busy
    for batch, array in enumerate(taken):
        np.testing.assert_array_equal(array, np.full((3, 2048), float(batch), dtype=np.float32))
    memory = CudaCopies().memory(torch.ones(3, device="cuda"))
    assert memory.is_pinned()
