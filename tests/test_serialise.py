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
    assert loaded == compressor
    arguments = specs.inputs(spec, n=2)
    np.testing.assert_array_equal(loaded(*arguments), compressor(*arguments))


@pytest.mark.parametrize("wrap", [bytes, bytearray, memoryview, lambda b: np.frombuffer(b, "u1")])
def test_bytes_like_objects_are_bytes_or_refused_by_type(wrap: Callable[[bytes], Any]) -> None:
    try:
        loaded = grass.compressor_from_bytes(wrap(SMALL))
    except TypeError:
        assert wrap is not bytes
    else:
        assert loaded.to_bytes() == SMALL


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
    for name in ("random_mask", "sjlt", "gaussian", "grass", "logra", "factgrass")
    for key in specs.EXAMPLES[name]
    if key != "seed"
]


@pytest.mark.parametrize(("name", "key"), HOSTILE_KEYS)
def test_hostile_value_is_refused(name: str, key: str) -> None:
    for value in HOSTILE_VALUES:
        lie = specs.EXAMPLES[name] | {key: value}
        data = reference.frame(json.dumps(lie, sort_keys=True, separators=(",", ":")).encode())
        if type(value) is not int or not 0 < value < 2**64:
            assert_refused(data)
            continue
        try:
            loaded = grass.compressor_from_bytes(data)
        except grass.SpecError:
            continue
        # Large dimensions may be right; they need no memory until they are used.
        assert loaded.to_bytes() == data
        with pytest.raises(grass.SpecError, match="max_bytes"):
            loaded.to_dense()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, "0", None, [1], True])
@pytest.mark.parametrize("name", ["random_mask", "sjlt", "gaussian", "grass", "logra", "factgrass"])
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
    "spelling",
    [
        lambda text: text.replace(b":", b": ", 1),
        lambda text: b" " + text,
        lambda text: text + b"\n",
        lambda text: text.replace(b'"seed":2', b'"seed":2,"seed":2'),
        lambda text: text.replace(b'"seed":2', b'"seed":2.0'),
        lambda text: text.replace(b'"seed":2', b'"seed":0.2e1'),
        lambda text: text.replace(b"sjlt", b"sj\\u006ct"),
        lambda text: b"{" + b",".join(sorted(text[1:-1].split(b","), reverse=True)) + b"}",
    ],
)
def test_other_spellings_are_refused_or_lead_to_the_same_bytes(
    spelling: Callable[[bytes], bytes],
) -> None:
    text = reference.canonical_json(specs.EXAMPLES["sjlt"])
    other = spelling(text)
    assert other != text
    try:
        loaded = grass.compressor_from_bytes(reference.frame(other))
    except grass.SpecError:
        return
    assert loaded.to_bytes() == reference.frame(text)


HUGE = """
import resource, sys
import grass_rs as grass
limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 64 * 1024
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for line in sys.argv[1:]:
    try:
        loaded = grass.compressor_from_bytes(bytes.fromhex(line))
    except grass.SpecError:
        continue
    finally:
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < limit, bytes.fromhex(line)
    try:
        loaded.to_dense()
    except grass.SpecError:
        pass
    repr(loaded), hash(loaded)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < limit, bytes.fromhex(line)
print("small")
"""


def test_small_bytes_that_declare_huge_things_need_no_memory(
    run_script: Callable[..., str],
) -> None:
    r = reference
    huge = [
        size
        for p in (2**31, 2**40, 2**60, 2**63 - 1)
        for size in (
            r.random_mask(p, p, 1),
            r.random_mask(p, p // 2, 1),
            r.random_mask(p, 1, 1),
            r.sjlt(p, p, 1),
            r.sjlt(p, p, 1, nnz=p),
            r.sjlt(4, p, 1, kind="iid"),
            r.gaussian(p, p, 1),
            r.grass(p, p // 8, 1),
            r.grass(p, 4, 1),
            r.logra(p, p, p, p, 1),
            r.factgrass(p, p, p, 1),
            r.factgrass(p, 4, 4, 1, mask_in=p, mask_out=1),
            r.mask([0, p - 1], p),
        )
    ]
    printed = run_script(HUGE, *(reference.to_bytes(spec).hex() for spec in huge))
    assert printed == "small\n"
