"""One self-contained HTML page about scores: images in, no script and no outside resource."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from grass_rs.errors import NonFiniteError, ShapeError, UnsupportedArrayError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

    from numpy.typing import NDArray


@dataclass(frozen=True)
class Example:
    """A training example or a query, as a picture."""

    id: int
    """Id of the example in its store."""
    image: NDArray[np.uint8]
    """(height, width) grey or (height, width, 3) colour."""
    label: str
    """What it shows."""


@dataclass(frozen=True)
class Match:
    """A training example and its score for a query."""

    example: Example
    """The training example."""
    score: float
    """Positive = training on it lowers the query's loss."""

    @property
    def shown(self) -> str:
        """The score for reading: its sign and three digits, more where it is 1,000 or larger."""
        return f"{self.score:+,.0f}" if abs(self.score) >= 100 else f"{self.score:+.3g}"


@dataclass(frozen=True)
class Query:
    """A query with the training examples that moved it most."""

    example: Example
    """The query."""
    predicted: str
    """What the model says it is."""
    helpful: Sequence[Match]
    """Largest scores, best first."""
    harmful: Sequence[Match]
    """Smallest scores, worst first."""


@dataclass(frozen=True)
class Bar:
    """The mean LDS of one way to score.

    Raises
    ------
    NonFiniteError
        If the mean or its error is NaN or infinite: it cannot be drawn.

    """

    name: str
    """Way to score."""
    mean: float
    """Mean over the queries."""
    error: float
    """Standard error of the mean."""

    def __post_init__(self) -> None:
        """Check that the bar can be drawn."""
        if not (math.isfinite(self.mean) and math.isfinite(self.error)):
            msg = (
                f"Bar expects a finite mean and error, got {self.mean} +- {self.error} for "
                f"{self.name!r}: average only queries whose LDS is a number"
            )
            raise NonFiniteError(msg)


@dataclass(frozen=True)
class Setting:
    """One setting that the numbers depend on."""

    name: str
    """Its name."""
    value: str
    """Its value in this run."""
    meaning: str
    """What it does."""


@dataclass(frozen=True)
class Report:
    """Everything on the page."""

    title: str
    """Heading of the page."""
    summary: str
    """One paragraph under the heading."""
    queries: Sequence[Query]
    """Queries to show."""
    bars: Sequence[Bar]
    """Bars of the LDS chart."""
    lds_note: str
    """One paragraph on how the LDS was measured."""
    reading: Sequence[str]
    """Paragraphs on what sign and scale of a score mean."""
    settings: Sequence[Setting]
    """Every setting and the seed."""


def write_report(report: Report, path: str | PathLike[str]) -> None:
    """Write the page of `render_report` to `path`, in UTF-8.

    Raises
    ------
    ShapeError, UnsupportedArrayError
        If an image is not one that `Example` describes.
    OSError
        If the file cannot be written.

    """
    Path(path).write_text(render_report(report), encoding="utf-8")


def render_report(report: Report) -> str:
    """Return the page as HTML.

    Raises
    ------
    ShapeError, UnsupportedArrayError
        If an image is not one that `Example` describes.

    """
    reading = "\n".join(f"<p>{escape(text)}</p>" for text in report.reading)
    queries = "\n".join(_query(query) for query in report.queries)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escape(report.title)}</h1>
<p>{escape(report.summary)}</p>
<h2>Which training examples helped and harmed</h2>
{queries}
<h2>What a score means</h2>
{reading}
<h2>How good the scores are (LDS)</h2>
<p>{escape(report.lds_note)}</p>
{_chart(report.bars)}
<h2>Settings</h2>
{_settings(report.settings)}
</main>
</body>
</html>
"""


def _query(query: Query) -> str:
    """Return one query with its rows of helpful and harmful training examples."""
    example = query.example
    verdict = "right" if query.predicted == example.label else "wrong"
    return f"""<article>
<figure class="query">
{_image(example, f"query {example.id}, a {example.label}")}
<figcaption>query {example.id}<br>true <b>{escape(example.label)}</b>,
predicted <b class="{verdict}">{escape(query.predicted)}</b> ({verdict})</figcaption>
</figure>
<div>
{_matches("Most helpful", query.helpful)}
{_matches("Most harmful", query.harmful)}
</div>
</article>"""


def _matches(heading: str, matches: Sequence[Match]) -> str:
    """Return one row of training examples with ids, labels and scores."""
    figures = "\n".join(
        f"<figure>{_image(m.example, f'training example {m.example.id}, a {m.example.label}')}"
        f"<figcaption>id {m.example.id}, a <b>{escape(m.example.label)}</b><br>"
        f"<data value='{m.score!r}'>{m.shown}</data></figcaption></figure>"
        for m in matches
    )
    return f'<h3>{heading}</h3>\n<div class="row">\n{figures}\n</div>'


def _image(example: Example, description: str) -> str:
    data = base64.b64encode(_png(example.image)).decode("ascii")
    return f'<img src="data:image/png;base64,{data}" alt="{escape(description)}">'


def _png(image: NDArray[np.uint8]) -> bytes:
    """Encode an image as PNG: one zlib stream of unfiltered rows."""
    if image.dtype != np.uint8:
        msg = f"an image expects uint8 from 0 (black) to 255 (white), got {image.dtype}: convert it"
        raise UnsupportedArrayError(msg)
    if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)) or image.size == 0:
        msg = (
            f"an image expects (height, width) or (height, width, 3), got {image.shape}: "
            f"put the colours last and leave no axis empty"
        )
        raise ShapeError(msg)
    height, width = image.shape[:2]
    colour_type = 0 if image.ndim == 2 else 2
    header = struct.pack(">IIBBBBB", width, height, 8, colour_type, 0, 0, 0)
    filtered = np.insert(image.reshape(height, -1), 0, 0, axis=1)  # 0 = this row has no filter
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(filtered.tobytes(), 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in chunks
    )


_ROW, _LEFT, _WIDTH, _RIGHT = 44, 170, 400, 110  # of the chart, in pixels


def _chart(bars: Sequence[Bar]) -> str:
    """Return the LDS bars with error bars of one standard error, as an accessible SVG."""
    low = min([0.0, *(bar.mean - bar.error for bar in bars)])
    high = max([0.1, *(bar.mean + bar.error for bar in bars)])

    def x(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * _WIDTH

    def bar_at(top: int, bar: Bar) -> str:
        left, right = sorted((x(0), x(bar.mean)))
        middle = top + _ROW / 2
        ends = x(bar.mean - bar.error), x(bar.mean + bar.error)
        return f"""<text x="{_LEFT - 12}" y="{middle + 5}" text-anchor="end">{escape(bar.name)}</text>
<rect x="{left:.1f}" width="{right - left:.1f}" y="{top + 9}" height="{_ROW - 18}"/>
<path d="M{ends[0]:.1f} {middle - 6}v12M{ends[0]:.1f} {middle}H{ends[1]:.1f}m0 -6v12"/>
<text x="{max(ends[1], x(0)) + 10:.1f}" y="{middle + 5}">{bar.mean:.3f} ± {bar.error:.3f}</text>"""

    rows = "\n".join(bar_at(index * _ROW, bar) for index, bar in enumerate(bars))
    told = "; ".join(f"{bar.name}: {bar.mean:.3f} ± {bar.error:.3f}" for bar in bars)
    height = len(bars) * _ROW
    return f"""<svg viewBox="0 0 {_LEFT + _WIDTH + _RIGHT} {height}" role="img"
aria-labelledby="lds-title lds-desc">
<title id="lds-title">Mean LDS of each way to score</title>
<desc id="lds-desc">{escape(told)}. Error bars are one standard error over the queries.</desc>
{rows}
<line class="axis" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{height}"/>
</svg>"""


def _settings(settings: Sequence[Setting]) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(s.name)}</th><td>{escape(s.value)}</td>'
        f"<td>{escape(s.meaning)}</td></tr>"
        for s in settings
    )
    return f"""<table>
<thead><tr><th scope="col">setting</th><th scope="col">value</th><th scope="col">meaning</th></tr>
</thead>
<tbody>
{rows}
</tbody>
</table>"""


_STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfb; --ink: #1d2329; --quiet: #68717a; --rule: #dcdfe0;
  --bar: #3f7d58; --good: #2f7a4d; --bad: #b3402e }
@media (prefers-color-scheme: dark) { :root { --paper: #15191d; --ink: #e4e7e9; --quiet: #98a2ab;
  --rule: #343b41; --bar: #5da57b; --good: #6cc08d; --bad: #ee8a76 } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 56rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.7rem; line-height: 1.2 }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; border-bottom: 1px solid var(--rule) }
h3 { font-size: .85rem; margin: 0 0 .25rem; color: var(--quiet); font-weight: 600 }
p { max-width: 44rem }
article { display: flex; flex-wrap: wrap; gap: 2rem; padding: 1rem 0; border-top: 1px solid var(--rule) }
article:first-of-type { border-top: 0 }
figure { margin: 0; text-align: center }
figcaption { font-size: .8rem; line-height: 1.35; font-variant-numeric: tabular-nums }
figcaption data { color: var(--quiet) }
img { width: 56px; image-rendering: pixelated; border: 1px solid var(--rule) }
.query { width: 11rem } .query img { width: 112px }
.row { display: flex; flex-wrap: wrap; gap: .75rem; margin-bottom: .75rem } .row figure { width: 5.5rem }
.right { color: var(--good) } .wrong { color: var(--bad) }
svg { display: block; width: 100%; max-width: 43rem; font-size: 14px }
svg text { fill: var(--ink) } svg rect { fill: var(--bar) }
svg path { fill: none; stroke: var(--ink); stroke-width: 1.5 } svg .axis { stroke: var(--quiet) }
table { border-collapse: collapse; font-size: .9rem }
th, td { text-align: left; vertical-align: top; padding: .3rem 1rem .3rem 0; border-top: 1px solid var(--rule) }
thead th { border: 0; color: var(--quiet) }
td:nth-child(2) { font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
"""
