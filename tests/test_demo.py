"""The demo: its result at a small and at full size."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from grass_rs.cli.demo.digits import digit_image, split_digits
from grass_rs.cli.demo.pipeline import DemoResult, DemoSettings, run_demo
from grass_rs.cli.demo.present import demo_bars, demo_queries, demo_report, demo_text
from grass_rs.errors import DataError
from grass_rs.evaluate import Recipe
from grass_rs.report import render_report
from grass_rs.store import open_store

if TYPE_CHECKING:
    from pathlib import Path

SMALL = DemoSettings(
    train_size=150, query_size=20, dim=64, models=6, recipe=Recipe(epochs=4, batch_size=20)
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(SMALL, tmp_path_factory.mktemp("small") / "demo.grass")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> DemoResult:
    return run_demo(DemoSettings(), tmp_path_factory.mktemp("full") / "demo.grass")


def test_split_shares_no_digit() -> None:
    digits = split_digits(1200, 597, seed=0)
    both = torch.cat([digits.train_inputs, digits.query_inputs])
    # All 1,797 are there once: scikit-learn's set has no two equal digits.
    assert len(torch.unique(both, dim=0)) == len(both) == 1797
    with pytest.raises(
        DataError, match=r"at most 1797 digits, got train_size 1200 \+ query_size 598"
    ):
        split_digits(1200, 598, seed=0)


def test_ink_is_dark() -> None:
    image = digit_image(torch.tensor([0.0, 1.0, 0.5] + [0.0] * 61))
    assert image.dtype == np.uint8
    assert image.shape == (8, 8)
    assert image[0, :3].tolist() == [255, 0, 128]


def test_the_same_seed_gives_the_same_bits(small: DemoResult, tmp_path: Path) -> None:
    again = run_demo(SMALL, tmp_path / "demo.grass")
    np.testing.assert_array_equal(again.scores.values, small.scores.values)
    np.testing.assert_array_equal(again.scores.ids, small.scores.ids)
    for name, values in small.lds.items():
        np.testing.assert_array_equal(again.lds[name], values)
    assert demo_text(again) == demo_text(small)
    other = run_demo(replace(SMALL, seed=1), tmp_path / "other.grass")
    assert not np.array_equal(other.scores.values, small.scores.values)


def test_a_finished_store_is_used_again(small: DemoResult, tmp_path: Path) -> None:
    path = tmp_path / "demo.grass"
    run_demo(SMALL, path)
    written = {file.name: file.stat().st_mtime_ns for file in path.glob("[!.]*")}
    assert "manifest.json" in written
    again = run_demo(SMALL, path)
    assert {file.name: file.stat().st_mtime_ns for file in path.glob("[!.]*")} == written
    np.testing.assert_array_equal(again.scores.values, small.scores.values)
    # The store of uncompressed gradients is gone, and so is its Fisher.
    assert sorted(tmp_path.iterdir()) == [path, path.with_name("demo.grass.fisher")]


def test_queries_show_the_extreme_scores(small: DemoResult) -> None:
    queries = demo_queries(small)
    assert len(queries) == len({query.example.id for query in queries}) == 6
    hardest = [small.query_losses[query.example.id] for query in queries[:3]]
    assert hardest == sorted(small.query_losses, reverse=True)[:3]
    for query in queries:
        row = small.scores.values[query.example.id]
        assert [match.score for match in query.helpful] == sorted(row, reverse=True)[:6]
        assert [match.score for match in query.harmful] == sorted(row)[:6]
        assert query.example.label == str(int(small.digits.query_labels[query.example.id]))
        for match in (*query.helpful, *query.harmful):
            assert match.score == row[match.example.id]
            assert match.example.label == str(int(small.digits.train_labels[match.example.id]))


def test_report_names_every_setting(small: DemoResult) -> None:
    report = demo_report(small)
    shown = {setting.name: setting.value for setting in report.settings}
    assert shown["seed"] == "0"
    assert shown["damping"] == "0.4"
    values = " ".join(shown.values())
    for source in (SMALL, SMALL.recipe):
        for field in fields(source):
            if field.name != "recipe":
                assert str(getattr(source, field.name)) in values
    html = render_report(report)
    assert all(f"{bar.mean:.3f}" in html for bar in demo_bars(small))


def test_text_says_what_was_found(small: DemoResult) -> None:
    text = demo_text(small)
    for bar in demo_bars(small):
        assert f"{bar.name:<12}  {bar.mean:6.3f} +- {bar.error:.3f}" in text
    best = demo_queries(small)[0].helpful[0]
    assert f"#{best.example.id} a {best.example.label} {best.shown}" in text


def test_full_demo_keeps_its_promise(full: DemoResult) -> None:
    """Rows of at most 1/6 of the parameters keep at least 92% of the LDS."""
    assert full.parameters == 17_226
    assert len(full.store) == 1200
    assert full.store.width * 6 <= full.parameters
    assert full.scores.damping == 0.4
    bars = {bar.name: bar for bar in demo_bars(full)}
    assert bars["FactGraSS"].mean >= 0.92 * bars["uncompressed"].mean
    assert bars["uncompressed"].mean > 0.45
    assert abs(bars["random"].mean) < 4 * bars["random"].error
    assert full.train_accuracy > 0.98


def test_command_writes_report_and_store(full: DemoResult, tmp_path: Path) -> None:
    """The command, in a process of its own, finds the very same."""
    done = subprocess.run(
        [sys.executable, "-m", "grass_rs", "demo"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(demo_text(full))
    page = (tmp_path / "demo_report.html").read_text(encoding="utf-8")
    assert page == render_report(demo_report(full))
    np.testing.assert_array_equal(open_store(tmp_path / "demo-seed0.grass")[:], full.store[:])
