"""The random words of the CUDA sources: the golden files' own, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cuda_on_cpu.emulator import guarded, guarded_empty, launch
from grass_rs._backends.cuda.launch import Kernel, Launch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="ascii"))


def words_and_draws(
    numbers: Sequence[tuple[int, int, int]], ranges: Sequence[int]
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Return words (seed, stream, n) as common.cuh computes them, and draws below ranges from them."""
    columns = zip(*numbers, strict=True)
    given = [guarded(np.array(c, d)) for c, d in zip(columns, ("u8", "u4", "u8"), strict=True)]
    words, draws = (guarded_empty((len(numbers),), np.uint32) for _ in range(2))
    args = [*given, guarded(np.array(ranges, np.uint32)), np.uint32(len(numbers)), words, draws]
    blocks = -(-len(numbers) // 32)
    launch(Launch(Kernel("words.cu", "words", ()), (blocks, 1, 1), (32, 1, 1), 0), args)
    return words, draws


def test_published_words() -> None:
    """Those of a counter with a stream: the last of its four numbers is 0."""
    checked = 0
    for answer in golden("philox"):
        k, c = answer["key"], answer["counter"]
        if c[3]:
            continue
        seed, m = k[0] | k[1] << 32, c[0] | c[1] << 32
        words, _ = words_and_draws([(seed, c[2], 4 * m + place) for place in range(4)], [1] * 4)
        assert words.tolist() == answer["output"]
        checked += 1
    assert checked == 1


def test_golden_words() -> None:
    answers = golden("words")
    words, _ = words_and_draws(
        [(a["seed"], a["stream"], a["n"]) for a in answers], [1] * len(answers)
    )
    assert words.tolist() == [answer["word"] for answer in answers]
    assert len(answers) == 208


def test_golden_bits() -> None:
    answers = golden("bits")
    numbers = [(a["seed"], a["stream"], a["n"] // 32) for a in answers]
    words, _ = words_and_draws(numbers, [1] * len(answers))
    bits = [
        word >> answer["n"] % 32 & 1 for word, answer in zip(words.tolist(), answers, strict=True)
    ]
    assert bits == [answer["bit"] for answer in answers]
    assert len(answers) == 496


def test_golden_draws() -> None:
    """Those of one word; masks and wider ranges are drawn on the host."""
    answers = [a for a in golden("draws") if a["stream"] != 1 and a["range"] < 2**32]
    numbers = [(a["seed"], a["stream"], a["n"]) for a in answers]
    _, draws = words_and_draws(numbers, [answer["range"] for answer in answers])
    assert draws.tolist() == [answer["draw"] for answer in answers]
    assert len(answers) == 120
