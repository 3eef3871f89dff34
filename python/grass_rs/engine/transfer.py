"""From the devices to the host: what a batch gave travels while the next batches are computed."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from numpy.typing import NDArray
    from torch import Tensor
    from typing_extensions import Self

__all__ = ["Copy", "CudaCopies", "Transfer"]

_ON_THE_WAY = 2
"""Most batches whose copies were begun and that are not taken: one is taken as the next is copied."""

T = TypeVar("T")


class Copy(Protocol):
    """A copy that was begun."""

    def synchronize(self) -> None:
        """Wait until it is made."""


class CudaCopies:
    """The calls of CUDA that a transfer needs."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def needed(self, tensor: Tensor) -> bool:
        """Whether the tensor is in a GPU's memory."""
        return tensor.is_cuda

    def memory(self, tensor: Tensor) -> Tensor:
        """Return memory for a copy of the tensor: pinned, as only so a copy is asynchronous.

        PyTorch keeps what is let go of for the next one who asks for as much.
        """
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)

    def begin(self, tensor: Tensor, memory: Tensor) -> Copy:
        """Begin a copy that waits for what is enqueued now, and that nothing enqueued later waits for."""
        device = tensor.device
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        stream = self._streams[device]
        stream.wait_stream(torch.cuda.current_stream(device))
        # Who waits lets others have the processor.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(stream):
            memory.copy_(tensor, non_blocking=True)
            done.record(stream)
        tensor.record_stream(stream)
        return done


class Transfer(Generic[T]):
    """Hands tensors over as NumPy arrays: one batch after the other, each exactly once.

    Tensors of the CPU are handed over at once, as they are. A batch with tensors of a GPU is copied to
    pinned memory by a stream of its own, and waited for and handed over by another thread: the kernels
    of the next batches do not wait for the copy, nor does the thread that enqueues them wait for what
    becomes of the arrays, unless that is two batches behind.

    Use it as a context manager. On leaving, also by an exception, what was sent is taken first. An
    error in taking ends the taking, and is raised by a later `send` or on leaving, in place of errors
    that came after it, but not of an interrupt.

    Parameters
    ----------
    take
        Gets the arrays of a batch and the note that was sent with them; they are only its own until it
        returns.

    """

    def __init__(self, take: Callable[[list[NDArray[Any]], T], None]) -> None:
        self._take = take
        self._copies = CudaCopies()
        self._sent: deque[Future[None]] = deque()
        # The thread begins with the first copy.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grass_rs transfer")
        self._failed = False

    def __enter__(self) -> Self:
        return self

    def send(self, tensors: Sequence[Tensor], note: T) -> None:
        """Send the tensors of a batch, which must not change any more.

        Raises
        ------
        BaseException
            What `take` raised, for an earlier batch too.

        """
        if not any(map(self._copies.needed, tensors)):
            self._take([tensor.cpu().numpy() for tensor in tensors], note)
            return
        if len(self._sent) == _ON_THE_WAY:
            self._sent.popleft().result()
        begun = [self._begin(tensor) for tensor in tensors]
        self._sent.append(self._thread.submit(self._receive, begun, note))

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        for sent in self._sent:
            earlier = sent.exception()
            if earlier is not None and (error is None or isinstance(error, Exception)):
                raise earlier from None

    def _begin(self, tensor: Tensor) -> tuple[Tensor, Copy | None]:
        if not self._copies.needed(tensor):
            return tensor.cpu(), None
        memory = self._copies.memory(tensor)
        return memory, self._copies.begin(tensor, memory)

    def _receive(self, begun: Sequence[tuple[Tensor, Copy | None]], note: T) -> None:
        if self._failed:
            return
        try:
            for _, copy in begun:
                if copy is not None:
                    copy.synchronize()
            self._take([memory.numpy() for memory, _ in begun], note)
        except BaseException:
            self._failed = True
            raise
