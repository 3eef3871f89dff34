"""Compressors in plain torch operations equal the native core's, and torch tensors of devices without kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import grass_rs as grass
import reference
import specs
from grass_rs._backends import pure_torch, torch_device
from grass_rs._backends.dispatch import backend_of, backend_of_both
from grass_rs._backends.pure_torch import factors as factor_maps
from grass_rs._backends.pure_torch import gaussian, philox, sjlt, sums

if TYPE_CHECKING:
    from collections.abc import Callable

every_compressor = pytest.mark.parametrize("spec", specs.EXAMPLES.values(), ids=specs.EXAMPLES)
FACTORISED = ["logra", "factgrass", "tile"]
CPU = torch.device("cpu")


def compress(compressor: Any, *arguments: torch.Tensor, bias: bool = False) -> torch.Tensor:
    if len(arguments) == 1:
        return pure_torch.compress_rows(compressor._native, *arguments)
    return pure_torch.compress_factors(compressor._native, *arguments, bias)


def tensors(spec: dict[str, Any], n: int = 5, tokens: int = 3) -> list[torch.Tensor]:
    return [torch.from_numpy(x) for x in specs.inputs(spec, n, tokens=tokens)]


def integers(spec: dict[str, Any], n: int = 5) -> list[torch.Tensor]:
    """Return arguments whose sums are exact in float32."""
    return [(4 * x).round() for x in tensors(spec, n)]


def is_exact(spec: dict[str, Any]) -> bool:
    """Return whether whole numbers give whole numbers: the entries are signs, up to one scale."""
    return spec["type"] != "logra" and spec.get("kind") != "normal"


def use_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut even small inputs into pieces, and few rows into blocks."""
    for module in (sjlt, gaussian, factor_maps):
        monkeypatch.setattr(module, "PIECE", sjlt._SIGN_BLOCK)
    monkeypatch.setattr(sums, "_ROW_BYTES", 4096)


# Equal to the native core


def assert_equals_native(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    arguments = integers(spec)
    result = compress(compressor, *arguments)
    if is_exact(spec):
        assert torch.equal(result, compressor(*arguments))
    else:
        matrix = compressor.to_dense()
        specs.assert_compressed(result.numpy(), matrix, *(x.numpy() for x in arguments))


@given(spec=specs.any_spec)
def test_any_compressor_equals_the_native_core(spec: dict[str, Any]) -> None:
    assert_equals_native(spec)


@given(spec=specs.any_spec)
def test_pieces_do_not_matter(spec: dict[str, Any]) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_small_pieces(monkeypatch)
        assert_equals_native(spec)


@pytest.mark.parametrize("kind", ["cyclic", "iid"])
@pytest.mark.parametrize(
    ("p", "k", "nnz"), [(600_001, 1, 1), (700_000, 30, 3), (300_000, 90_000, 1)]
)
def test_wide_inputs_equal_the_native_core(kind: str, p: int, k: int, nnz: int) -> None:
    assert p > sums.PIECE
    compressor = grass.SJLT(p, k, seed=2**64 - 1, nnz=nnz, kind=kind)
    x = torch.from_numpy(np.random.default_rng(0).integers(-3, 4, (2, p)).astype(np.float32))
    assert torch.equal(compress(compressor, x), compressor(x))


def test_many_tiles_equal_the_native_core() -> None:
    compressor = grass.TileSketch(700, 500, 64, seed=1)
    rng = np.random.default_rng(0)
    a, g = (
        torch.from_numpy(rng.integers(-2, 3, (2, 70, width)).astype(np.float32))
        for width in (700, 500)
    )
    assert 2 * sums.PIECE < 70 * 16 * (700 * 500 // 64)  # numbers in the factors of all tiles
    assert torch.equal(compress(compressor, a, g), compressor(a, g))


@every_compressor
def test_results_equal_the_dense_matrix(spec: dict[str, Any]) -> None:
    arguments = tensors(spec)
    result = compress(specs.build(spec), *arguments)
    assert result.dtype == torch.float32
    specs.assert_compressed(result.numpy(), reference.dense(spec), *(x.numpy() for x in arguments))


@every_compressor
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes_are_read_as_float32(spec: dict[str, Any], dtype: torch.dtype) -> None:
    compressor = specs.build(spec)
    arguments = [x.to(dtype) for x in tensors(spec)]
    result = compress(compressor, *arguments)
    assert result.dtype == torch.float32
    assert torch.equal(result, compress(compressor, *(x.float() for x in arguments)))


@pytest.mark.parametrize("name", FACTORISED)
@given(data=st.data())
def test_bias_equals_a_column_of_ones(name: str, data: st.DataObject) -> None:
    strategy = {"logra": specs.logras, "factgrass": specs.factgrasses, "tile": specs.tiles}[name]
    spec = data.draw(strategy())
    a, g = tensors(spec)
    a[..., -1] = 1
    compressor = specs.build(spec)
    assert torch.equal(compress(compressor, a[..., :-1], g, bias=True), compress(compressor, a, g))


@every_compressor
@pytest.mark.parametrize("n", [0, 1])
def test_no_row_and_one_row(spec: dict[str, Any], n: int) -> None:
    compressor = specs.build(spec)
    arguments = integers(spec, n)
    result = compress(compressor, *arguments)
    assert result.shape == (n, compressor.output_dim)
    torch.testing.assert_close(result, compressor(*arguments), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FACTORISED)
@pytest.mark.parametrize("bias", [False, True])
def test_no_tokens_give_zeros(name: str, *, bias: bool) -> None:
    compressor = specs.build(specs.EXAMPLES[name])
    a, g = tensors(compressor.spec, tokens=0)
    result = compress(compressor, a[..., bias:], g, bias=bias)
    assert torch.equal(result, torch.zeros(5, compressor.output_dim))


@pytest.mark.parametrize("name", FACTORISED)
def test_layer_of_a_bias_alone(name: str) -> None:
    make = {
        "logra": lambda: grass.LoGra(1, 7, 1, 3, seed=0),
        "factgrass": lambda: grass.FactGraSS(1, 7, 3, seed=0),
        "tile": lambda: grass.TileSketch(1, 7, 4, seed=0),
    }[name]
    compressor, g = make(), torch.randn(4, 2, 7)
    result = compress(compressor, torch.empty(4, 2, 0), g, bias=True)
    torch.testing.assert_close(result, compressor(torch.ones(4, 2, 1), g), rtol=1e-5, atol=1e-5)


@every_compressor
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
        lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
        lambda x: torch.complex(torch.zeros_like(x), -x).conj().imag,
        lambda x: x[:1].expand(5, *x.shape[1:]),
    ],
    ids=["transposed", "stepped", "negative", "broadcast"],
)
def test_layout_does_not_matter(
    spec: dict[str, Any], layout: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    compressor = specs.build(spec)
    views = [layout(x) for x in tensors(spec)]
    plain = [view.clone(memory_format=torch.contiguous_format) for view in views]
    assert torch.equal(compress(compressor, *views), compress(compressor, *plain))


@every_compressor
def test_non_finite_values_stay_in_their_row(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    first, *rest = tensors(spec)
    expected = compress(compressor, first, *rest)
    first = first.clone()
    first[1] = torch.nan
    result = compress(compressor, first, *rest)
    assert torch.equal(result[[0, 2, 3, 4]], expected[[0, 2, 3, 4]])
    assert torch.equal(result[1].isnan(), compressor(first, *rest)[1].isnan())


@pytest.mark.parametrize("kind", ["cyclic", "iid"])
def test_one_infinity_reaches_one_output(kind: str) -> None:
    compressor = grass.SJLT(100, 12, seed=0, kind=kind)
    x = torch.ones(1, 100)
    x[0, 7] = torch.inf
    result = compress(compressor, x)
    assert torch.equal(result, compressor(x))
    assert result.isfinite().sum() == 11


@every_compressor
def test_a_row_alone_has_the_bits_it_has_in_a_batch(
    monkeypatch: pytest.MonkeyPatch, spec: dict[str, Any]
) -> None:
    use_small_pieces(monkeypatch)
    compressor = specs.build(spec)
    arguments = tensors(spec, n=40)
    together = compress(compressor, *arguments)
    alone = torch.cat([compress(compressor, *(x[i : i + 1] for x in arguments)) for i in range(40)])
    if spec["type"] in {"gaussian", "logra"}:
        # Sums in float64: their order is the matrix product's, which leaves at most the last bit to chance.
        torch.testing.assert_close(alone, together, rtol=2e-7, atol=2e-7)
    else:
        assert torch.equal(alone, together)


@every_compressor
def test_no_autograd_graph_and_no_change_of_inputs(spec: dict[str, Any]) -> None:
    arguments = tensors(spec)
    kept = [x.clone() for x in arguments]
    result = compress(specs.build(spec), *(x.requires_grad_() for x in arguments))
    assert not result.requires_grad
    assert all(map(torch.equal, arguments, kept))


@pytest.mark.parametrize("name", ["gaussian", "logra", "factgrass", "tile"])
def test_autocast_does_not_narrow_products(name: str) -> None:
    compressor = specs.build(specs.EXAMPLES[name])
    arguments = tensors(compressor.spec)
    with torch.autocast("cpu", torch.bfloat16):
        result = compress(compressor, *arguments)
    assert torch.equal(result, compress(compressor, *arguments))


# Order of the sums


class Recorder(TorchDispatchMode):
    """Records the names of the operations."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@every_compressor
def test_nothing_is_added_by_atomics(spec: dict[str, Any]) -> None:
    # On CUDA, these add in the order in which threads come; index_put does not, where each index comes once.
    with Recorder() as recorder:
        compress(specs.build(spec), *tensors(spec))
    assert {"index_select", "index", "mm", "bmm"} & recorder.seen
    atomic = ("index_add", "scatter", "put_", "histc", "bincount", "segment_reduce", "sum", "mean")
    found = {name for name in recorder.seen if name.startswith(atomic)}
    assert found == set()


@given(n=st.integers(1, 4), m=st.integers(1, 70), h=st.integers(1, 3))
def test_sum_in_order(n: int, m: int, h: int) -> None:
    parts = torch.from_numpy(np.random.default_rng(m).integers(-9, 9, (n, m, h)).astype(np.float32))
    assert torch.equal(sums.sum_in_order(parts.clone()), parts.sum(1))


# Random words


@given(
    seed=specs.seeds,
    number=st.integers(1, 9),
    start=st.integers(0, 2**40),
    count=st.integers(0, 70),
)
def test_words_and_signs_equal_twin(seed: int, number: int, start: int, count: int) -> None:
    stream = philox.Stream(seed, number, CPU)
    span = range(start, start + count)
    assert stream.words(start, start + count).tolist() == [
        reference.word(seed, number, n) for n in span
    ]
    assert stream.signs(start, start + count).tolist() == [
        reference.sign(seed, number, n) for n in span
    ]


@given(seed=specs.seeds, bound=st.integers(1, 2**32), start=st.integers(0, 2**40))
def test_draws_equal_twin(seed: int, bound: int, start: int) -> None:
    drawn = philox.Stream(seed, philox.BUCKET, CPU).draws(bound, start, start + 9)
    expected = [reference.draw(seed, philox.BUCKET, bound, start + i) for i in range(9)]
    assert drawn.tolist() == expected


@pytest.mark.parametrize("spec", [reference.sjlt(8, 2**31, 0), reference.tile(8, 8, 2**31, 0)])
def test_too_many_outputs_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(grass.SpecError, match="output_dim"):
        compress(specs.build(spec), *tensors(spec, n=0))


# Memory

MEMORY = """
import resource, sys
import torch
import grass_rs as grass
from grass_rs._backends import pure_torch
compressor = eval(sys.argv[1])
rows = [torch.ones(4, int(width)) if len(sys.argv) == 3 else torch.ones(1, 64, int(width)) for width in sys.argv[2:]]
call = pure_torch.compress_rows if len(rows) == 1 else pure_torch.compress_factors
small = grass.SJLT(64, 16, seed=0)
pure_torch.compress_rows(small._native, torch.ones(1, 64))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
call(compressor._native, *rows, *([False] if len(rows) == 2 else []))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize(
    ("call", "widths"),
    [
        ("grass.SJLT(6_000_000, 4096, seed=0)", [6_000_000]),
        ("grass.SJLT(6_000_000, 4096, seed=0, kind='iid')", [6_000_000]),
        ("grass.Gaussian(3_000_000, 4, seed=0)", [3_000_000]),
        ("grass.TileSketch(4096, 2048, 1024, seed=0)", [4096, 2048]),
    ],
    ids=["cyclic", "iid", "gaussian", "tile"],
)
def test_memory_does_not_grow_with_the_input(
    run_script: Callable[..., str], call: str, widths: list[int]
) -> None:
    # A copy of the rows takes 96 or 48 MB, the structure of the tile's gradient as much.
    assert int(run_script(MEMORY, call, *map(str, widths))) < 90 * 2**20


# Tensors of other devices


def through_device(compressor: Any, *arguments: torch.Tensor, out: Any = None) -> torch.Tensor:
    """Compress as on a device without kernels."""
    name = type(compressor).__name__
    if len(arguments) == 1:
        return torch_device.compress_rows(compressor._native, name, *arguments, out)
    return torch_device.compress_factors(compressor._native, name, *arguments, bias=False, out=out)


@every_compressor
def test_one_row_or_token_and_out(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    arguments = [x[:, 0] if x.ndim == 3 else x[0] for x in tensors(spec)]
    result = through_device(compressor, *arguments)
    expected = compressor(*arguments)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    out = torch.empty_like(expected)
    assert through_device(compressor, *arguments, out=out) is out
    assert torch.equal(out, result)


@pytest.mark.parametrize("shape", [(), (3, 99), (99,), (2, 3, 100)])
def test_wrong_shape_is_refused_as_on_the_cpu(shape: tuple[int, ...]) -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    with pytest.raises(grass.ShapeError) as expected:
        compressor(torch.zeros(shape))
    with pytest.raises(grass.ShapeError) as caught:
        through_device(compressor, torch.zeros(shape))
    assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize("change", ["in", "out", "tokens", "axes"])
def test_factors_that_do_not_fit_are_refused_as_on_the_cpu(change: str) -> None:
    compressor = specs.build(specs.EXAMPLES["tile"])
    a, g = tensors(compressor.spec)
    wrong = {
        "in": (a[..., 1:], g),
        "out": (a, g[..., 1:]),
        "tokens": (a[:, 1:], g),
        "axes": (a[:, 0], g),
    }[change]
    with pytest.raises(grass.ShapeError) as expected:
        compressor(*wrong)
    with pytest.raises(grass.ShapeError) as caught:
        through_device(compressor, *wrong)
    assert str(caught.value) == str(expected.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(3, 100, dtype=torch.int64),
        lambda: torch.zeros(3, 100).to_sparse(),
        lambda: torch.zeros(3, 100, dtype=torch.float8_e4m3fn),
    ],
    ids=["int64", "sparse", "float8"],
)
def test_tensors_that_no_device_takes_are_refused(make: Callable[[], torch.Tensor]) -> None:
    with pytest.raises(grass.UnsupportedArrayError, match="SJLT expects"):
        through_device(specs.build(specs.EXAMPLES["sjlt"]), make())


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: torch.empty(3, 13), grass.ShapeError),
        (lambda: torch.empty(12, 3).T, grass.ShapeError),
        (lambda: torch.empty(3, 12, dtype=torch.float64), grass.UnsupportedArrayError),
        (lambda: torch.empty(3, 12, requires_grad=True), grass.UnsupportedArrayError),
        (lambda: torch.empty(3, 12, device="meta"), grass.UnsupportedArrayError),
        (lambda: np.empty((3, 12), np.float32), grass.UnsupportedArrayError),
    ],
    ids=["shape", "strides", "dtype", "graph", "device", "library"],
)
def test_out_that_cannot_be_filled_is_refused(
    make: Callable[[], Any], error: type[Exception]
) -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    with pytest.raises(
        error, match=r"^SJLT: out expects .*, got .*: allocate it with torch.empty$"
    ):
        through_device(compressor, torch.zeros(3, 100), out=make())


@pytest.mark.parametrize("device", ["xpu", "mps"])
def test_other_devices_have_this_backend(device: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        elsewhere = torch.empty(3, 100, device=device)
    assert backend_of("SJLT", elsewhere) is torch_device
    for arrays in ((np.ones((3, 100)), elsewhere), (elsewhere, torch.ones(3, 100))):
        with pytest.raises(grass.UnsupportedArrayError, match=f"one device.* {device}"):
            backend_of_both("SJLT", *arrays)
    if device == "mps":
        with pytest.raises(grass.UnsupportedArrayError, match="no float64"):
            through_device(specs.build(specs.EXAMPLES["sjlt"]), elsewhere)
