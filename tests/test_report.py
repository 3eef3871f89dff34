"""The report page: parsed as HTML, its images decoded, its chart measured, its text escaped."""

from __future__ import annotations

import base64
import re
import struct
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from grass_rs.errors import NonFiniteError, ShapeError, UnsupportedArrayError
from grass_rs.report import (
    Bar,
    Example,
    Match,
    Query,
    Report,
    Setting,
    render_report,
    write_report,
)

if TYPE_CHECKING:
    from pathlib import Path

RNG = np.random.default_rng(5)
HOSTILE = "<script>alert(\"1\")</script> & 'quoted'"
VOID = {"meta", "img", "br", "rect", "path", "line"}


def example(number: int, label: str = "7") -> Example:
    return Example(number, RNG.integers(0, 256, (8, 6), dtype=np.uint8), label)


def report(text: str = "plain") -> Report:
    query = Query(
        example(900, text),
        text,
        [Match(example(1, text), 12345.6), Match(example(2), 1.25)],
        [Match(example(3), -0.125)],
    )
    return Report(
        title=text,
        summary=text,
        queries=[query],
        bars=[Bar(text, 0.5, 0.01), Bar("random", -0.02, 0.01)],
        lds_note=text,
        reading=[text, "second"],
        settings=[Setting(text, text, text), Setting("seed", "11", "where it starts")],
    )


class Page(HTMLParser):
    """Collects elements and text, and checks that every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def decode_png(data: bytes) -> np.ndarray[Any, Any]:
    """Decode what PNG calls 8-bit grey or colour with unfiltered rows, checking every CRC."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        tag, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", data, at + 8 + length) == (zlib.crc32(tag + body),)
        chunks[tag] = body
        at += length + 12
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert (depth, rest) == (8, [0, 0, 0])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    shape = {0: (height, width), 2: (height, width, 3)}[colour]
    return rows[:, 1:].reshape(shape)


def images_of(page: Page) -> list[np.ndarray[Any, Any]]:
    prefix = "data:image/png;base64,"
    sources = [attrs["src"] or "" for attrs in page.all("img")]
    assert all(source.startswith(prefix) for source in sources)
    return [decode_png(base64.b64decode(source.removeprefix(prefix))) for source in sources]


def test_shows_every_value() -> None:
    page = Page(render_report(report()))
    for text in ("query 900", "id 1", "id 2", "id 3", "+12,346", "+1.25", "-0.125", "second", "11"):
        assert text in page.text
    assert page.text.index("Most helpful") < page.text.index("Most harmful")


def test_images_come_back_exactly() -> None:
    grey, colour = example(1), Example(2, RNG.integers(0, 256, (4, 9, 3), dtype=np.uint8), "x")
    flipped = Example(3, grey.image[::-1, ::2], "strided")
    query = Query(grey, "7", [Match(colour, 1.0)], [Match(flipped, -1.0)])
    got = images_of(Page(render_report(replace(report(), queries=[query]))))
    assert len(got) == 3
    for image, expected in zip(got, (grey.image, colour.image, flipped.image), strict=True):
        np.testing.assert_array_equal(image, expected)


def test_everything_is_escaped() -> None:
    page = Page(render_report(report(HOSTILE)))
    assert not page.all("script")
    # Title, heading, two paragraphs, reading, labels and predictions, chart, settings.
    assert page.text.count(HOSTILE) >= 11
    assert HOSTILE in (page.all("img")[0]["alt"] or "")


def test_needs_nothing_outside_itself() -> None:
    html = render_report(report())
    page = Page(html)
    assert {"script", "link", "iframe", "object"}.isdisjoint(tag for tag, _ in page.elements)
    for _, attrs in page.elements:
        assert "href" not in attrs
        assert (attrs.get("src") or "data:").startswith("data:")
        assert not any(name.startswith("on") for name in attrs)
    assert "url(" not in html
    assert "@import" not in html
    assert "http" not in html


def test_chart_is_to_scale_and_described() -> None:
    bars = [Bar("a", 0.5, 0.02), Bar("b", 0.25, 0.04), Bar("c", -0.1, 0.01)]
    page = Page(render_report(replace(report(), bars=bars)))
    svg = page.all("svg")[0]
    assert svg["role"] == "img"
    ids = (svg["aria-labelledby"] or "").split()
    assert ids == [page.all("title")[1]["id"], page.all("desc")[0]["id"]]
    assert "a: 0.500 ± 0.020; b: 0.250 ± 0.040; c: -0.100 ± 0.010" in page.text
    zero = float(page.all("line")[0]["x1"] or "")
    widths = [float(attrs["width"] or "") for attrs in page.all("rect")]
    unit = widths[0] / 0.5
    np.testing.assert_allclose(widths, [abs(bar.mean) * unit for bar in bars], atol=0.1)
    lefts = [float(attrs["x"] or "") for attrs in page.all("rect")]
    np.testing.assert_allclose(lefts, [zero, zero, zero - widths[2]], atol=0.11)
    for attrs, bar in zip(page.all("path"), bars, strict=True):
        left, right = re.findall(r"[MH]([\d.]+)", attrs["d"] or "")[1:]
        np.testing.assert_allclose(float(left), zero + (bar.mean - bar.error) * unit, atol=0.2)
        np.testing.assert_allclose(float(right), zero + (bar.mean + bar.error) * unit, atol=0.2)


def test_same_report_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    same = report()
    write_report(same, path)
    assert path.read_bytes().decode("utf-8") == render_report(same)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (np.zeros((8, 8)), UnsupportedArrayError, "expects uint8.*got float64"),
        (np.zeros(8, np.uint8), ShapeError, r"got \(8,\)"),
        (np.zeros((8, 8, 4), np.uint8), ShapeError, r"got \(8, 8, 4\)"),
        (np.zeros((0, 8), np.uint8), ShapeError, r"got \(0, 8\)"),
    ],
)
def test_wrong_images(image: Any, error: type[Exception], message: str) -> None:
    query = Query(Example(1, image, "x"), "x", [], [])
    with pytest.raises(error, match=message):
        render_report(replace(report(), queries=[query]))


@pytest.mark.parametrize(("mean", "error"), [(float("nan"), 0.0), (0.0, float("inf"))])
def test_bars_are_finite(mean: float, error: float) -> None:
    with pytest.raises(NonFiniteError, match=r"finite mean and error.*'mine'"):
        Bar("mine", mean, error)
