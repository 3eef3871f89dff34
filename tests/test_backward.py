"""The backward pass of capture: what is handed over when, and what is let go of."""

from __future__ import annotations

import gc
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import grass_rs.capture.order
from capture_models import Through, squares
from grass_rs.capture import Capture, Factors, find_blocks
from grass_rs.capture.backward import (
    _Arrivals,
    _Streams,
    _without_targets_behind,
    hand_over_gradients,
)
from grass_rs.capture.linear import Layout, LinearCapture
from grass_rs.capture.order import OrderCheck
from grass_rs.errors import UnsupportedLayerError
from per_example_twin import RowSink, assert_captured_rightly

if TYPE_CHECKING:
    from collections.abc import Callable

    from grass_rs.capture import Block
    from grass_rs.capture.linear import Call

N, DEPTH = 6, 12


def deep(depth: int = DEPTH) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(4, 4), nn.Tanh())))


class Watched:
    """The gradients of the outputs of a model's linear layers, seen as they are made."""

    def __init__(self, model: nn.Module) -> None:
        self._gradients: list[weakref.ref[Tensor]] = []
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(self._watch)

    def _watch(self, _: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(lambda gradient: self._gradients.append(weakref.ref(gradient)))

    def alive(self) -> int:
        return sum(ref() is not None for ref in self._gradients)


def recorded(model: nn.Module, *inputs: Tensor) -> tuple[Tensor, list[Call]]:
    """Return the sum of the outputs, and the calls of linear layers."""
    linear = LinearCapture(model, find_blocks(model))
    handles = linear.attach()
    with linear.recording() as calls:
        total = model(*inputs).sum()
    for handle in handles:
        handle.remove()
    return total, calls


# Memory


def test_a_gradient_is_let_go_of_before_the_next_is_taken() -> None:
    model = deep()
    watched = Watched(model)
    total, calls = recorded(model, torch.randn(N, 4))
    taken: list[weakref.ref[Call]] = []
    alive: list[int] = []

    def take(call: Call, _: Tensor) -> None:
        assert all(ref() is None for ref in taken)
        taken.append(weakref.ref(call))
        alive.append(watched.alive())

    hand_over_gradients(total, calls, take)
    assert alive == [1] * DEPTH
    assert calls == []


def test_weak_references_see_what_autograd_alone_keeps() -> None:
    """What the test above relies on."""
    gradient = torch.ones(3)
    seen = weakref.ref(gradient)
    product = torch.ones(3, requires_grad=True) * gradient
    del gradient
    assert seen() is not None
    del product
    assert seen() is None


@pytest.mark.parametrize("batches", [1, 2, 3], ids=["weighted", "weighted again", "plain"])
def test_capture_holds_one_gradient_at_a_time(batches: int) -> None:
    model = deep()
    watched = Watched(model)
    alive: list[int] = []
    with Capture(model, squares, find_blocks(model)) as capture:
        for _ in range(batches):
            capture.run(torch.randn(N, 4), lambda *_: alive.append(watched.alive()))
    assert alive == [1] * DEPTH * batches


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_a_pass_is_left(fails: bool) -> None:
    total, calls = recorded(deep(), torch.randn(N, 4))
    left = [weakref.ref(call) for call in calls]

    def take(call: Call, _: Tensor) -> None:
        if fails and len(left) == DEPTH:
            left.append(weakref.ref(call))
            raise ValueError

    gc.collect()
    gc.disable()
    try:
        try:
            hand_over_gradients(total, calls, take)
        except ValueError:
            assert fails
        del total
        assert [ref() for ref in left if ref() is not None] == []
    finally:
        gc.enable()


def test_a_graph_that_lives_on_keeps_nothing_of_a_pass() -> None:
    total, calls = recorded(deep(), torch.randn(N, 4))

    def take(_: Call, __: Tensor) -> None:
        pass

    kept = weakref.ref(take)
    hand_over_gradients(total, calls, take, retain_graph=True)
    del take
    gc.collect()
    assert kept() is None
    total.backward()


# What is taken


def branches(model: Any, x: Tensor) -> Tensor:
    first = model.a(x)
    second = model.a(torch.tanh(first))
    # No call is behind this one, so that its gradient comes last.
    third = model.a(x.cos())
    return model.b(torch.tanh(second) * third)


def unreached(model: Any, x: Tensor) -> Tensor:
    first = model.a(x)
    second = model.a(torch.tanh(first))
    model.a(torch.tanh(second))
    return model.b(second)


def towers(model: Any, x: Tensor) -> Tensor:
    return model.a(x) * model.b(x.cos()) * model.a(x.sin())


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (branches, {"a": [2, 1, 0], "b": [3]}),
        (unreached, {"a": [1, 0], "b": [3]}),
        (towers, {"a": [2, 0], "b": [1]}),
    ],
)
def test_calls_of_a_block_are_taken_from_the_last_to_the_first(
    run: Callable[[Any, Tensor], Tensor], expected: dict[str, list[int]]
) -> None:
    """So that their sum has the same bits, whatever order autograd runs them in."""
    torch.manual_seed(0)
    model = Through(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    total, calls = recorded(model, torch.randn(N, 4))
    edges = [call.edge for call in calls]
    reference = torch.autograd.grad(total, edges, retain_graph=True, allow_unused=True)
    taken: dict[str, list[int]] = {}

    def take(call: Call, gradient: Tensor) -> None:
        (index,) = (i for i, edge in enumerate(edges) if edge is call.edge)
        assert torch.equal(gradient, reference[index])
        taken.setdefault(call.site.block.name, []).append(index)

    hand_over_gradients(total, calls, take)
    assert taken == expected


@pytest.mark.parametrize("run", [branches, unreached, towers])
def test_branches_are_captured_rightly(run: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Through(run, a=nn.Linear(4, 4), b=nn.Linear(4, 4)).double()
    assert_captured_rightly(model, squares, torch.randn(N, 4).double(), N, 1e-10)


def equilibrium(model: Any, x: Tensor) -> Tensor:
    """Differentiate a part of the model in a hook of its output, as deep equilibrium models do."""
    state = torch.tanh(model.a(x))
    fixed = state.detach().requires_grad_()
    again = model.a(torch.tanh(model.a(fixed)))

    def hook(gradient: Tensor) -> Tensor:
        (more,) = torch.autograd.grad(again, fixed, gradient, retain_graph=True)
        return gradient + more / 2

    state.register_hook(hook)
    return model.b(state)


def test_a_pass_inside_of_the_pass_is_not_taken() -> None:
    torch.manual_seed(0)
    model = Through(equilibrium, a=nn.Linear(4, 4), b=nn.Linear(4, 2)).double()
    assert_captured_rightly(model, squares, torch.randn(N, 4).double(), N, 1e-10)


def test_checkpoints_around_several_layers() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        for part in (model.a, model.a, model.b):
            x = checkpoint(part, x, use_reentrant=False)
        return x

    torch.manual_seed(0)
    part = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh())
    model = Through(run, a=part, b=nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)))
    assert_captured_rightly(model.double(), squares, torch.randn(N, 4).double(), N, 1e-10)


class Step:
    """A node of a graph that counts how often what is behind it is looked at."""

    def __init__(self, *behind: Step | None) -> None:
        self._behind = [(node, 0) for node in behind]
        self.looks = 0

    @property
    def next_functions(self) -> list[tuple[Step | None, int]]:
        self.looks += 1
        return self._behind


def test_each_node_is_looked_at_once_to_find_where_the_pass_ends() -> None:
    """Also where every head has the same long way back, to nothing or to a first layer."""
    leaf = Step(None)
    ways, targets, ends = [leaf], [], set()
    for begin in ([leaf], [Step(leaf)]):
        targets += [node for node in begin if node is not leaf]
        way = begin
        for _ in range(10):
            way = [*way, Step(None, way[-1], way[len(way) // 2])]
        ways += way[1:]
        heads = [Step(leaf, way[-1]) for _ in range(5)]
        targets += heads
        ends |= set(heads if begin == [leaf] else begin)
    assert _without_targets_behind(targets) == ends
    assert {step.looks for step in [*ways, *targets]} == {1}


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.LayerNorm(4)], ids=["factors", "rows"])
def test_a_sink_computes_as_written(layer: nn.Module) -> None:
    found = []

    def sink(*_: object) -> None:
        assert not torch.is_grad_enabled()
        found.append((weights @ weights).dtype)

    weights = torch.ones(2, 2)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        Capture(layer, squares, find_blocks(layer)) as capture,
    ):
        capture.run(torch.randn(N, 4), sink)
        assert (weights @ weights).dtype == torch.bfloat16
    assert found == [torch.float32]


# Errors and threads


@pytest.mark.parametrize(
    "error", [ValueError("mine"), KeyboardInterrupt(), UnsupportedLayerError()]
)
@pytest.mark.parametrize("position", [0, 1, DEPTH - 1])
def test_an_error_in_a_hook_comes_through_and_leaves_all_usable(
    error: BaseException, position: int
) -> None:
    model, batch = deep(), torch.randn(N, 4)
    blocks = find_blocks(model)
    before, after, seen = RowSink(N), RowSink(N), []

    def sink(block: Block, _: slice, __: Factors | Tensor) -> None:
        seen.append(block.name)
        if len(seen) == position + 1:
            raise error

    with Capture(model, squares, blocks) as capture:
        capture.run(batch, before)
        with pytest.raises(type(error)) as raised:
            capture.run(batch, sink)
        assert raised.value is error
        assert len(seen) == position + 1
        capture.run(batch, after)
    assert before.rows.keys() == after.rows.keys() == {block.name for block in blocks}
    assert all(torch.equal(before.rows[name], after.rows[name]) for name in before.rows)
    squares(model, batch).sum().backward()
    assert model[0].weight.grad is not None


class TellingLock:
    """A lock that tells when a second thread asks for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.asked = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.asked.set()
            self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_gradients_of_several_threads_are_taken_one_at_a_time_and_in_order() -> None:
    model = Through(branches, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    _, calls = recorded(model, torch.ones(N, 4))
    taken: list[float] = []
    lock = TellingLock()

    def take(_: Call, gradient: Tensor) -> None:
        index = float(gradient[0, 0])
        if index == 3:
            thread.start()
            assert lock.asked.wait(60)
        taken.append(index)

    arrivals = _Arrivals(calls, take)
    arrivals._lock = lock
    thread = threading.Thread(target=arrivals.put, args=(2, torch.full((N, 4), 2.0)))
    for index in (0, 1, 3):
        arrivals.put(index, torch.full((N, 4), float(index)))
    thread.join()
    assert taken == [3, 2, 1, 0]


def test_nothing_is_taken_from_threads_that_come_after_an_error() -> None:
    _, calls = recorded(deep(2), torch.ones(N, 4))
    taken: list[Call] = []
    arrivals = _Arrivals(calls, lambda call, _: taken.append(call))
    arrivals.close()
    arrivals.put(1, torch.ones(N, 4))
    arrivals.finish()
    assert taken == []


@dataclass
class OnGpu:
    """What the pass knows of a tensor on a GPU."""

    log: list[str]
    device: torch.device = torch.device("cuda:0")  # noqa: RUF009 - devices do not change

    def record_stream(self, stream: Stream) -> None:
        self.log.append(f"kept for {stream.name}")


@dataclass
class Stream:
    name: str
    log: list[str]

    def wait_stream(self, other: Stream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


def test_the_callers_stream_waits_for_the_models_and_keeps_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    callers, models = Stream("the caller's", log), Stream("the model's", log)
    current = callers
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: current)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: log.append(f"on {stream.name}"))
    tensor = OnGpu(log)
    streams = _Streams({tensor.device, torch.device("cpu")})
    streams.receive(tensor.device, tensor, tensor)
    streams.current_for(tensor)
    assert log == ["kept for the caller's", "kept for the caller's", "on the caller's"]
    log.clear()
    current = models
    streams.receive(tensor.device, tensor)
    streams.current_for(tensor)
    assert log == ["the caller's waits for the model's", "kept for the caller's", "on the caller's"]
    log.clear()
    streams.receive(torch.device("cpu"), torch.ones(1))
    with streams.current_for(torch.ones(1)):
        assert log == []


# The order of examples


def test_long_rows_in_another_order_are_refused_too() -> None:
    model = nn.Sequential(nn.Linear(8, 512))

    def run(x: Tensor) -> Tensor:
        order = x[:, 0, 0].argsort()
        return model[0](x[order])[order.argsort()]

    model.forward = run
    torch.manual_seed(0)
    shuffled = torch.randn(8, 40, 8)
    assert shuffled[0, 0].numel() * 64 * 40 > grass_rs.capture.order._COMPARED
    ordered = shuffled[shuffled[:, 0, 0].argsort()]
    with Capture(model, squares, find_blocks(model)) as capture:
        capture.run(ordered, RowSink(8))
        with pytest.raises(UnsupportedLayerError, match="in the order of the batch, but row"):
            capture.run(shuffled, RowSink(8))


@pytest.mark.parametrize(("tokens", "features"), [(16, 32), (1, 512), (500, 1), (3, 200), (2, 3)])
def test_few_numbers_are_compared_of_all_tokens_and_features(
    monkeypatch: pytest.MonkeyPatch, tokens: int, features: int
) -> None:
    monkeypatch.setattr(grass_rs.capture.order, "_COMPARED", 64)
    model = nn.Linear(2, features)
    _, (call,) = recorded(model, torch.randn(2, tokens, 2))
    check = OrderCheck({model: Layout(0)})
    gradient = torch.arange(2.0 * tokens * features).reshape(2, tokens, features)
    rows = check._rows(call, gradient, 2)
    assert rows is not None
    m = tokens * features
    assert min(m, 33) <= rows.shape[1] <= 64
    assert torch.equal(rows[1], rows[0] + m)
    if m > 64:
        assert rows.untyped_storage().nbytes() == rows.nbytes
    assert len((rows[0] // features).unique()) == min(tokens, rows.shape[1])
    assert len((rows[0] % features).unique()) == min(features, rows.shape[1])
