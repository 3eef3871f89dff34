"""The demo's result as text for the terminal and as a report."""

from __future__ import annotations

import platform
from dataclasses import replace
from textwrap import fill
from typing import TYPE_CHECKING

import numpy as np
import torch

from grass_rs._native import build_info
from grass_rs.cli.demo.digits import digit_image
from grass_rs.report import Bar, Example, Match, Query, Report, Setting

if TYPE_CHECKING:
    from collections.abc import Sequence

    from grass_rs.cli.demo.pipeline import DemoResult

_SHOWN_QUERIES = 3  # of the hardest, and as many of the easy ones
_SHOWN_MATCHES = 6


def demo_queries(result: DemoResult) -> list[Query]:
    """Return the held-out digits with the largest losses and the first others, with matches."""
    hardest = np.argsort(-result.query_losses, kind="stable")[:_SHOWN_QUERIES]
    others = np.setdiff1d(np.arange(len(result.query_losses)), hardest)[:_SHOWN_QUERIES]
    scores, digits = result.scores, result.digits
    count = min(_SHOWN_MATCHES, scores.values.shape[1])
    helpful = scores.top(count)
    harmful_ids, negated = replace(scores, values=-scores.values).top(count)

    def match(row: int, score: float) -> Match:
        image = digit_image(digits.train_inputs[row])
        return Match(Example(row, image, str(int(digits.train_labels[row]))), score)

    def query(row: int) -> Query:
        image = digit_image(digits.query_inputs[row])
        return Query(
            Example(row, image, str(int(digits.query_labels[row]))),
            str(result.predicted[row]),
            [
                match(int(i), float(s))
                for i, s in zip(helpful[0][row], helpful[1][row], strict=True)
            ],
            [match(int(i), -float(s)) for i, s in zip(harmful_ids[row], negated[row], strict=True)],
        )

    return [query(int(row)) for row in (*hardest, *others)]


def demo_bars(result: DemoResult) -> list[Bar]:
    """Return the mean LDS of each way to score, with its standard error over the queries."""
    return [
        Bar(name, float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))))
        for name, values in result.lds.items()
    ]


def demo_text(result: DemoResult) -> str:
    """Return what the demo prints."""
    lines = [_wrapped(_summary(result)), ""]
    for query in demo_queries(result):
        example = query.example
        lines += [
            f"held-out digit {example.id}: a {example.label}, predicted {query.predicted}",
            f"  most helpful  {_listed(query.helpful)}",
            f"  most harmful  {_listed(query.harmful)}",
        ]
    lines += ["", f"LDS, mean +- standard error over {len(result.query_losses)} held-out digits"]
    lines += [f"  {bar.name:<12}  {bar.mean:6.3f} +- {bar.error:.3f}" for bar in demo_bars(result)]
    lines += [_kept(result), "", *map(_wrapped, _reading(result))]
    return "\n".join(lines)


def demo_report(result: DemoResult) -> Report:
    """Return the same, and every setting, as a report."""
    return Report(
        title="Which training digits made the network say this?",
        summary=_summary(result),
        queries=demo_queries(result),
        bars=demo_bars(result),
        lds_note=(
            f"{result.settings.models} networks were retrained on random halves of the training "
            f"set. For each held-out digit, the linear datamodeling score is the rank correlation "
            f"between the summed scores of the half a network saw and minus its loss. Bars are "
            f"means over {len(result.query_losses)} held-out digits with one standard error. "
            f"{_kept(result)}"
        ),
        reading=_reading(result),
        settings=_settings(result),
    )


def _summary(result: DemoResult) -> str:
    store, settings = result.store, result.settings
    accuracy = float((result.predicted == result.digits.query_labels.numpy()).mean())
    return (
        f"An MLP 64-128-64-10 with {result.parameters:,} parameters, trained on "
        f"{settings.train_size:,} handwritten digits, gets {result.train_accuracy:.1%} of them and "
        f"{accuracy:.1%} of {settings.query_size:,} held-out digits right. Its FactGraSS store "
        f"holds {len(store):,} rows of {store.width:,} numbers: "
        f"1/{result.parameters / store.width:.1f} of the gradients' size."
    )


def _wrapped(paragraph: str) -> str:
    return fill(paragraph, width=100, break_on_hyphens=False)


def _listed(matches: Sequence[Match]) -> str:
    return "  ".join(f"#{m.example.id} a {m.example.label} {m.shown}" for m in matches)


def _kept(result: DemoResult) -> str:
    share = result.lds["FactGraSS"].mean() / result.lds["uncompressed"].mean()
    return f"FactGraSS keeps {share:.1%} of the LDS of uncompressed gradients."


def _reading(result: DemoResult) -> list[str]:
    return [
        (
            "Sign: a positive score means that training on the digit lowers the loss on the "
            "held-out digit (it helps); a negative one that it raises the loss (it harms)."
        ),
        (
            "Scale: score / n, with n training examples, is a first-order estimate of how much "
            "the held-out loss rises when the digit is left out of the training set. The "
            "empirical Fisher stands for the curvature there, so trust order and ratios more "
            "than the size: over the retrained networks, measured changes were "
            f"{result.slope:.2f} times the predicted ones."
        ),
    ]


def _settings(result: DemoResult) -> list[Setting]:
    settings, recipe = result.settings, result.settings.recipe
    columns = ", ".join(f"{c.name}: {c.width}" for c in result.store.columns)
    return [
        Setting("seed", str(settings.seed), "split, initialisations, orders, halves, compressors"),
        Setting("training digits", str(settings.train_size), "drawn from scikit-learn's 1,797"),
        Setting("held-out digits", str(settings.query_size), "drawn from the rest"),
        Setting("method", result.scores.method, "score = g_query (F + lambda)^-1 g_train, a layer"),
        Setting("damping", str(result.scores.damping), "lambda in units of tr(F) / n of the layer"),
        Setting("compressor", f"FactGraSS, dim {settings.dim}", "numbers kept a layer, at most"),
        Setting("row", f"{result.store.width} ({columns})", "numbers stored a training digit"),
        Setting("dtype", result.store.dtype, "of the stored numbers"),
        Setting("retrained networks", str(settings.models), "each on a random half"),
        Setting("epochs", str(recipe.epochs), "passes over the training set, or over the half"),
        Setting("batch size", str(recipe.batch_size), "examples a step"),
        Setting("optimizer", recipe.optimizer, "of every network"),
        Setting("learning rate", f"{recipe.learning_rate}, cosine to 0", "size of the first steps"),
        Setting("momentum", str(recipe.momentum), "share of the last step that is kept"),
        Setting("weight decay", str(recipe.weight_decay), "pull of every parameter to zero"),
        Setting(
            "versions",
            f"grass_rs {build_info()['version']}, torch {torch.__version__}, "
            f"numpy {np.__version__}, Python {platform.python_version()}",
            "that made this page",
        ),
    ]
