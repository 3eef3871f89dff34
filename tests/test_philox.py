"""The random words: published answers, and the golden files that Rust and CUDA read too."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reference

GOLDEN = Path(__file__).parent / "golden"
generate = runpy.run_path(str(GOLDEN / "generate.py"))


def golden(name: str) -> list[dict[str, Any]]:
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="ascii"))


def test_twin_gives_published_answers() -> None:
    answers = golden("philox")
    assert len(answers) == 3
    for answer in answers:
        words = reference.philox4x32_10(answer["key"], answer["counter"])
        assert words == answer["output"]


@pytest.mark.parametrize("name", sorted(generate["GOLDEN"]))
def test_golden_file_is_what_the_twin_writes(name: str) -> None:
    assert (GOLDEN / f"{name}.json").read_text(encoding="ascii") == generate["text"](name)


def test_every_golden_file_has_a_generator() -> None:
    files = {path.stem for path in GOLDEN.glob("*.json")}
    assert files == set(generate["GOLDEN"])
    assert len(files) == 7


def test_draws_are_uniform() -> None:
    count, bound = 20_000, 10
    draws = [reference.draw(3, reference.BUCKET, bound, n) for n in range(count)]
    wide = [reference.draw_wide(3, reference.MASK, bound, n) for n in range(count)]
    for numbers in (draws, wide):
        observed = np.bincount(numbers, minlength=bound)
        chi_square = np.sum((observed - count / bound) ** 2) / (count / bound)
        # 99.99% quantile of chi square with 9 degrees of freedom.
        assert chi_square < 33.8


def test_draws_stay_below_their_bound() -> None:
    for bound in (1, 2, 2**32, 2**32 + 1, 2**64 - 1):
        assert all(0 <= reference.draw(0, reference.BUCKET, bound, n) < bound for n in range(200))
