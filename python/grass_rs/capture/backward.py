"""The backward pass: the gradient of each linear layer's output, handed over as soon as it is there.

`torch.autograd.grad` returns gradients at the end of its pass, and so keeps them all until then. Here
hooks take each one as it reaches its layer, and the pass lets go of it with its next step.
"""

from __future__ import annotations

import contextlib
import threading
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.autograd.graph import get_gradient_edge

from grass_rs.capture.model_state import without_autocast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager

    from torch import Tensor
    from torch.autograd.graph import Node

    from grass_rs.capture.linear import Call

__all__ = ["hand_over_gradients"]


def hand_over_gradients(
    total: Tensor,
    calls: list[Call],
    take: Callable[[Call, Tensor], None],
    *,
    retain_graph: bool = False,
) -> None:
    """Run a backward pass and hand over the gradient of the output of each call that it reaches.

    What a call holds is let go of with its gradient; of the calls behind which there is no other
    call the gradients come last, all together. Weight gradients are not computed.

    Parameters
    ----------
    total
        What is differentiated, a scalar of its own node, such as a sum.
    calls
        Calls of linear layers in their order. The list is emptied.
    take
        Gets a call and its gradient, for calls of one block from the last to the first. It runs
        without gradients and autocast, in one thread at a time, which need not be the caller's, and
        on CUDA on the stream that was current when the pass began. What it raises ends the pass.
    retain_graph
        Whether there will be another pass.

    """
    nodes = [call.edge.node for call in calls]
    edges = [call.edge for call in calls]
    last = _without_targets_behind(nodes)
    arrivals = _Arrivals(calls, take)
    calls.clear()
    handles = [get_gradient_edge(total).node.register_prehook(arrivals.begin)]
    try:
        for index, edge in enumerate(edges):
            if edge.node not in last:
                hook = partial(arrivals.arrive, index, edge.output_nr)
                handles.append(edge.node.register_prehook(hook))
        # The pass ends at these, so that their own hooks would not run.
        ends = [index for index, node in enumerate(nodes) if node in last]
        found = torch.autograd.grad(
            total, [edges[index] for index in ends], allow_unused=True, retain_graph=retain_graph
        )
        # As in hooks, where autograd sees to it.
        with torch.no_grad():
            for index, gradient in zip(ends, found, strict=True):
                arrivals.put(index, gradient)
            arrivals.finish()
    finally:
        # The graph may live on.
        for handle in handles:
            handle.remove()
        arrivals.close()


class _Arrivals:
    """Calls that wait for their gradients, and how they are taken.

    Autograd runs the part of a graph on each device in a thread of its own, so that gradients may
    come in any order and at the same time.
    """

    def __init__(self, calls: Iterable[Call], take: Callable[[Call, Tensor], None]) -> None:
        self._calls = dict(enumerate(calls))
        self._waiting: dict[str, list[int]] = {}
        for index, call in self._calls.items():
            self._waiting.setdefault(call.site.block.name, []).append(index)
        self._gradients: dict[int, Tensor] = {}
        self._take = take
        self._streams = _Streams({call.inputs.device for call in self._calls.values()})
        self._task: int | None = None
        self._lock = threading.Lock()

    def begin(self, _gradients: tuple[Tensor, ...]) -> None:
        """Note which pass this is: a hook of the root's node."""
        self._task = _current_pass()

    def arrive(self, index: int, output: int, gradients: tuple[Tensor | None, ...]) -> None:
        """Put the gradient of an output of a call's node: a hook of the node."""
        # A model may differentiate parts of its graph in its own hooks, with gradients of its own.
        if _current_pass() == self._task:
            self.put(index, gradients[output])

    def put(self, index: int, gradient: Tensor | None) -> None:
        """Take a call's gradient, once those of the block's later calls were taken."""
        with self._lock:
            if gradient is None or index not in self._calls:
                return
            call = self._calls[index]
            self._streams.receive(gradient.device, call.inputs, gradient)
            self._gradients[index] = gradient
            waiting = self._waiting[call.site.block.name]
            while waiting and waiting[-1] in self._gradients:
                self._deliver(waiting.pop())

    def finish(self) -> None:
        """Take the gradients that waited for those of calls that none has reached."""
        with self._lock:
            for waiting in self._waiting.values():
                for index in reversed(waiting):
                    if index in self._gradients:
                        self._deliver(index)

    def close(self) -> None:
        """Take nothing any more: after an error, threads of other devices may still be on their way."""
        with self._lock:
            self._calls.clear()
            self._gradients.clear()

    def _deliver(self, index: int) -> None:
        call, gradient = self._calls.pop(index), self._gradients.pop(index)
        with self._streams.current_for(gradient), without_autocast(gradient.device):
            self._take(call, gradient)


class _Streams:
    """The CUDA streams that were current when a pass began: what it hands over is used on them.

    Autograd runs each node on the stream of its forward pass, which a model may choose, so that one
    stream a device has to wait for what comes, and keep its memory.
    """

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._streams = {
            device: torch.cuda.current_stream(device) for device in devices if device.type == "cuda"
        }

    def receive(self, device: torch.device, *tensors: Tensor) -> None:
        """Make the device's stream wait for tensors of the stream that is current now."""
        stream = self._streams.get(device)
        if stream is None:
            return
        current = torch.cuda.current_stream(device)
        if current != stream:
            stream.wait_stream(current)
        for tensor in tensors:
            tensor.record_stream(stream)

    def current_for(self, tensor: Tensor) -> AbstractContextManager[object]:
        """Make the stream of the tensor's device the current one."""
        stream = self._streams.get(tensor.device)
        return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


def _current_pass() -> int:
    """Return the number of the backward pass that this thread is in."""
    return torch._C._current_graph_task_id()  # noqa: SLF001 - as PyTorch's checkpoints do


def _without_targets_behind(nodes: Iterable[Node]) -> set[Node]:
    """Return the nodes from which no other of them is reached.

    Takes one look at each node of the graph behind.
    """
    targets = set(nodes)
    reaching: dict[Node, bool] = {}
    last = set()
    for start in targets:
        path = [(start, iter(start.next_functions))]
        found = False
        while path and not found:
            for node, _ in path[-1][1]:
                if node is None:
                    continue
                if node in targets or reaching.get(node, False):
                    found = True
                    break
                if node not in reaching:
                    # Until a target is found behind it; a graph has no cycles.
                    reaching[node] = False
                    path.append((node, iter(node.next_functions)))
                    break
            else:
                path.pop()
        reaching.update((node, True) for node, _ in path[1:])
        if not found:
            last.add(start)
    return last
