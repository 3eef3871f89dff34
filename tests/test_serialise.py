"""Serialised structures: the bytes, and every lie that they can tell."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import grass_rs as grass
import reference
import specs

if TYPE_CHECKING:
    from collections.abc import Callable

GOLDEN = json.loads(
    (Path(__file__).parent / "golden" / "compressors.json").read_text(encoding="ascii")
)
SMALL = reference.to_bytes(specs.EXAMPLES["grass"])


@pytest.mark.parametrize("answer", GOLDEN, ids=lambda answer: answer["fingerprint"][:8])
def test_golden_bytes(answer: dict[str, Any]) -> None:
    data = bytes.fromhex(answer["bytes"])
    compressor = grass.compressor_from_bytes(data)
    assert type(compressor) is type(specs.build(answer["spec"]))
    assert compressor == specs.build(answer["spec"])
    assert compressor.spec == answer["spec"]
    assert compressor.fingerprint == answer["fingerprint"]
    assert compressor.to_bytes() == data
    np.testing.assert_allclose(compressor.to_dense(), answer["dense"], rtol=1e-5, atol=2e-6)
    assert np.array_equal(compressor.to_dense() != 0, np.array(answer["dense"]) != 0)


@given(spec=specs.any_spec)
def test_round_trip(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    data = compressor.to_bytes()
    assert data == reference.to_bytes(spec)
    loaded = grass.compressor_from_bytes(data)
    assert type(loaded) is type(compressor)
    assert loaded == compressor
    assert loaded.to_bytes() == data
    arguments = specs.inputs(spec, n=2)
    np.testing.assert_array_equal(loaded(*arguments), compressor(*arguments))


@pytest.mark.parametrize(
    "wrap", [bytearray, memoryview, lambda b: np.frombuffer(b, "u1"), bytes.hex]
)
def test_other_objects_than_bytes_are_refused_by_type(wrap: Callable[[bytes], Any]) -> None:
    with pytest.raises(TypeError, match="'bytes'"):
        grass.compressor_from_bytes(wrap(SMALL))


# Damage


def assert_refused(data: bytes) -> str:
    """Check that `data` does not load, and return the one line that says why."""
    with pytest.raises(grass.SpecError) as caught:
        grass.compressor_from_bytes(data)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    assert len(message) < 1000
    return message


def test_every_truncation_is_refused() -> None:
    for length in range(len(SMALL)):
        assert_refused(SMALL[:length])


def test_every_flipped_bit_is_refused() -> None:
    for position in range(len(SMALL) * 8):
        damaged = bytearray(SMALL)
        damaged[position // 8] ^= 1 << position % 8
        assert_refused(bytes(damaged))


@pytest.mark.parametrize("more", [b"\0", b"}", SMALL])
def test_trailing_bytes_are_refused(more: bytes) -> None:
    assert_refused(SMALL + more)


@given(data=st.binary(max_size=200))
@example(data=b"")
@example(data=reference.MAGIC)
def test_garbage_is_refused(data: bytes) -> None:
    assert_refused(data)


@given(text=st.binary(max_size=100) | st.text(max_size=100).map(str.encode))
@example(text=b"")
@example(text=b"{}")
@example(text=b"[]")
@example(text=b"null")
@example(text=b'{"type":"sjlt"}')
@example(text=b"[" * 100_000)
@example(text=b'{"mask":' * 50_000)
def test_garbage_with_a_valid_checksum_is_refused(text: bytes) -> None:
    assert_refused(reference.frame(text))


def test_other_versions_are_refused_by_number() -> None:
    for version in (0, 2, 2**32 - 1):
        text = reference.canonical_json(specs.EXAMPLES["sjlt"])
        assert str(version) in assert_refused(reference.frame(text, version))


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**32 - 1])
def test_wrong_length_is_refused(length: int) -> None:
    import zlib

    body = bytearray(SMALL[:-4])
    struct.pack_into("<I", body, len(reference.MAGIC) + 4, length)
    assert_refused(bytes(body) + struct.pack("<I", zlib.crc32(body)))


# Lies with a valid checksum

HOSTILE_VALUES = [
    0,
    -1,
    2**60,
    2**63,
    2**64 - 1,
    2**64,
    10**400,
    1.0,
    1e30,
    True,
    None,
    "8",
    [],
    {},
    [8],
]
HOSTILE_KEYS = [
    (name, key)
    for name in ("random_mask", "sjlt", "gaussian", "grass", "logra", "factgrass", "tile")
    for key in specs.EXAMPLES[name]
    if key != "seed"
]
HUGE_AND_RIGHT = {
    ("random_mask", "input_dim"): [2**60, 2**63],
    ("grass", "output_dim"): [2**60],
    ("factgrass", "output_dim"): [2**60],
}
"""The hostile values that are right: they need no memory until they are used."""


@pytest.mark.parametrize(("name", "key"), HOSTILE_KEYS)
def test_hostile_value_is_refused(name: str, key: str) -> None:
    for value in HOSTILE_VALUES:
        lie = specs.EXAMPLES[name] | {key: value}
        data = reference.frame(json.dumps(lie, sort_keys=True, separators=(",", ":")).encode())
        if value not in HUGE_AND_RIGHT.get((name, key), []):
            assert_refused(data)
            continue
        loaded = grass.compressor_from_bytes(data)
        assert loaded.to_bytes() == data
        with pytest.raises(grass.SpecError, match="max_bytes"):
            loaded.to_dense()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "0", None, [1], True])
@pytest.mark.parametrize(
    "name", ["random_mask", "sjlt", "gaussian", "grass", "logra", "factgrass", "tile"]
)
def test_hostile_seed_is_refused(name: str, seed: Any) -> None:
    lie = specs.EXAMPLES[name] | {"seed": seed}
    assert_refused(reference.to_bytes(lie))


@pytest.mark.parametrize("name", specs.EXAMPLES)
def test_missing_and_extra_keys_are_refused(name: str) -> None:
    spec = specs.EXAMPLES[name]
    for key in spec:
        assert key in assert_refused(
            reference.to_bytes({k: v for k, v in spec.items() if k != key})
        )
    assert "colour" in assert_refused(reference.to_bytes(spec | {"colour": 1}))


@pytest.mark.parametrize(
    "indices",
    [[], [1, 0], [0, 0], [0, 100], [-1], [0, 2**63], [2**64], [0.0], ["0"], [None], 3, "012", {}],
)
def test_hostile_indices_are_refused(indices: Any) -> None:
    lie = {"type": "mask", "indices": indices, "input_dim": 100}
    assert_refused(reference.to_bytes(lie))


@pytest.mark.parametrize(
    "nested",
    [
        specs.EXAMPLES["sjlt"],
        specs.EXAMPLES["grass"],
        specs.EXAMPLES["factgrass"],
        reference.mask([0, 1], 99),
        reference.random_mask(100, 23, 0),
        reference.random_mask(99, 24, 0),
        {"type": "random_mask"},
        {},
        24,
        None,
    ],
    ids=str,
)
def test_nested_spec_that_is_no_fitting_mask_is_refused(nested: Any) -> None:
    assert_refused(reference.to_bytes(specs.EXAMPLES["grass"] | {"mask": nested}))
    assert_refused(reference.to_bytes(specs.EXAMPLES["factgrass"] | {"mask_in": nested}))


@pytest.mark.parametrize("name", ["sjlT", "sjl", "", "tile ", "Mask", "../mask", "\u0000", 3, None])
def test_unknown_type_is_refused(name: Any) -> None:
    assert_refused(reference.to_bytes(specs.EXAMPLES["sjlt"] | {"type": name}))


@pytest.mark.parametrize(
    ("spelling", "message"),
    [
        (lambda text: text.replace(b":", b": ", 1), "canonical"),
        (lambda text: b" " + text, "canonical"),
        (lambda text: text + b"\n", "canonical"),
        (lambda text: text.replace(b'"seed":2', b'"seed":2,"seed":2'), "seed"),
        (lambda text: text.replace(b'"seed":2', b'"seed":2.0'), "2.0"),
        (lambda text: text.replace(b'"seed":2', b'"seed":0.2e1'), "2.0"),
        (lambda text: text.replace(b"sjlt", b"sj\\u006ct"), "canonical"),
        (
            lambda text: b"{" + b",".join(sorted(text[1:-1].split(b","), reverse=True)) + b"}",
            "canonical",
        ),
    ],
)
def test_other_spellings_are_refused(spelling: Callable[[bytes], bytes], message: str) -> None:
    text = reference.canonical_json(specs.EXAMPLES["sjlt"])
    other = spelling(text)
    assert other != text
    assert message in assert_refused(reference.frame(other))


HUGE = """
import resource, sys
import grass_rs as grass
limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 64 * 1024
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for line in sys.argv[1:]:
    try:
        loaded = grass.compressor_from_bytes(bytes.fromhex(line))
    except grass.SpecError:
        print("refused")
    else:
        repr(loaded), hash(loaded)
        try:
            loaded.to_dense()
        except grass.SpecError:
            print("loaded")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < limit, bytes.fromhex(line)
"""


def test_small_bytes_that_declare_huge_things_need_no_memory(
    run_script: Callable[..., str],
) -> None:
    r = reference
    sizes = (2**31, 2**40, 2**60, 2**63 - 1)
    outcomes = {
        "loaded": [
            *(r.random_mask(p, kept, 1) for p in sizes for kept in (p, p // 2, 1)),
            *(r.sjlt(p, p, 1) for p in sizes[:-1]),
            *(r.sjlt(4, p, 1, kind="iid") for p in sizes[:-1]),
            *(r.grass(p, p // 8, 1) for p in sizes[:-1]),
            *(r.grass(p, 4, 1) for p in sizes),
            *(r.factgrass(p, 4, 4, 1, mask_in=p, mask_out=1) for p in sizes[:-2]),
            *(r.mask([0, p - 1], p) for p in sizes),
        ],
        # Their random streams would be longer than 2^62 numbers.
        "refused": [
            *(r.sjlt(p, p, 1, nnz=p) for p in sizes),
            *(r.gaussian(p, p, 1) for p in sizes),
            *(r.logra(p, p, p, p, 1) for p in sizes),
            *(r.factgrass(p, p, p, 1) for p in sizes),
            *(r.factgrass(p, 4, 4, 1, mask_in=p, mask_out=1) for p in sizes[-2:]),
            r.sjlt(sizes[-1], sizes[-1], 1),
            r.sjlt(4, sizes[-1], 1, kind="iid"),
            r.grass(sizes[-1], sizes[-1] // 8, 1),
        ],
    }
    for outcome, huge in outcomes.items():
        printed = run_script(HUGE, *(reference.to_bytes(spec).hex() for spec in huge))
        assert printed.split() == [outcome] * len(huge)
