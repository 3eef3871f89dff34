"""What more threads, and more parameters, do to the time of a call."""

from __future__ import annotations

import math
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

import grass_rs as grass
from rows import Row, medians, threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

EXPONENTS = range(16, 31, 2)
"""Of two: numbers of parameters. The last takes 4 GiB of memory."""
FLAT_FROM = 2**20
"""Below this, the input fits into a core's cache, and kept coordinates share cache lines."""
CACHES = 2**24
"""Values of an array larger than the caches."""
ROUNDS = 9


def measure() -> Iterator[Row]:
    """Measure all of them."""
    yield from _threads()
    yield from _python_threads()
    with threads(1):
        values = np.ones(2 ** EXPONENTS[-1], np.float32)
        yield from _parameters("GraSS", _grass, values)
        yield from _parameters("FactGraSS", _factgrass, values)


def _compute_bound() -> dict[str, Callable[[], Any]]:
    """Return calls that arithmetic bounds, on factors 8 x 512 x 2048."""
    inputs, grad_outputs = (np.ones((8, 512, 2048), np.float32) for _ in range(2))
    factgrass = grass.FactGraSS(2048, 2048, 4096, seed=0, mask_in=128, mask_out=128)
    tile = grass.TileSketch(2048, 2048, 4096, seed=0)
    return {
        "FactGraSS 8 x 512 x 2048": lambda: factgrass(inputs, grad_outputs),
        "tile 2 x 512 x 2048": lambda: tile(inputs[:2], grad_outputs[:2]),
    }


def _threads() -> Iterator[Row]:
    x = np.ones((32, 2**20), np.float32)
    calls = _compute_bound()
    for kind in ("cyclic", "iid"):
        sjlt = grass.SJLT(2**20, 4096, seed=0, kind=kind)
        calls[f"{kind} n=32 2^20 to 4096"] = partial(sjlt, x)
        calls[f"{kind} n=1 2^20 to 4096"] = partial(sjlt, x[0])

    def run(call: Callable[[], Any], number: int) -> None:
        grass.set_num_threads(number)
        call()

    with threads(2):
        for what, call in calls.items():
            two, one = medians(partial(run, call, 2), partial(run, call, 1))
            yield Row(f"{what}, 2 threads", two, "1 thread", one)


def _python_threads() -> Iterator[Row]:
    """Time two calls by two Python threads, each of them serial, against one after the other."""
    x = np.ones((2, 2**22), np.float32)
    sjlt = grass.SJLT(2**22, 4096, seed=0)
    calls = _compute_bound()
    calls["cyclic n=1 2^22 to 4096"] = lambda: sjlt(x)
    with threads(1), ThreadPoolExecutor(2) as pool:

        def together(call: Callable[[], Any]) -> None:
            for future in [pool.submit(call) for _ in range(2)]:
                future.result()

        def in_turn(call: Callable[[], Any]) -> None:
            for _ in range(2):
                call()

        for what, call in calls.items():
            both, turns = medians(partial(together, call), partial(in_turn, call))
            yield Row(f"{what}, 2 Python threads", both, "1 Python thread", turns)


def _grass(p: int, values: NDArray[np.float32]) -> tuple[Callable[[], Any], list[Any]]:
    grass_of_p = grass.GraSS(p, 4096, seed=0)
    x = values[:p]
    return lambda: grass_of_p(x), [x]


def _factgrass(p: int, values: NDArray[np.float32]) -> tuple[Callable[[], Any], list[Any]]:
    d, tokens = math.isqrt(p), 64
    factgrass = grass.FactGraSS(d, d, 4096, seed=0, mask_in=128, mask_out=128)
    factors = list(values[: 2 * tokens * d].reshape(2, 1, tokens, d))
    return lambda: factgrass(*factors), factors


def _parameters(
    name: str,
    make: Callable[[int, NDArray[np.float32]], tuple[Callable[[], Any], list[Any]]],
    values: NDArray[np.float32],
) -> Iterator[Row]:
    """Time calls on inputs that are in no cache, for more and more parameters, against reading all of the inputs."""
    others = np.ones(CACHES, np.float32)
    times = {}
    for exponent in EXPONENTS:
        call, inputs = make(2**exponent, values)
        call()
        calls: list[float] = []
        reads: list[float] = []
        for _ in range(ROUNDS):
            for run, taken in ((call, calls), (lambda read=inputs: [x.sum() for x in read], reads)):
                others.sum()
                start = time.perf_counter()
                run()
                taken.append(time.perf_counter() - start)
        times[2**exponent] = statistics.median(calls)
        what = f"{name} of p=2^{exponent}"
        yield Row(what, times[2**exponent], "reading its inputs", statistics.median(reads))
    largest = 2 ** EXPONENTS[-1]
    what, against = f"{name}, growth to p=2^{EXPONENTS[-1]}", f"p=2^{FLAT_FROM.bit_length() - 1}"
    yield Row(what, times[largest], against, times[FLAT_FROM])
