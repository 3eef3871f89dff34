"""Arrays of any library, dtype and layout: what is accepted, what is left alone, what comes back."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import grass_rs as grass
import reference
import specs

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Backend

every_compressor = pytest.mark.parametrize("spec", specs.EXAMPLES.values(), ids=specs.EXAMPLES)
NUMPY_DTYPES = [np.float64, np.float32, np.float16]
TORCH_DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


# Dtypes


@every_compressor
@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=lambda dtype: dtype.__name__)
def test_numpy_dtypes(spec: dict[str, Any], dtype: type[np.floating[Any]]) -> None:
    compressor = specs.build(spec)
    arguments = [x.astype(dtype) for x in specs.inputs(spec, n=5)]
    specs.assert_compressed(compressor(*arguments), reference.dense(spec), *arguments)


@every_compressor
@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_torch_dtypes(spec: dict[str, Any], dtype: torch.dtype) -> None:
    compressor = specs.build(spec)
    arguments = [torch.from_numpy(x).to(dtype) for x in specs.inputs(spec, n=5)]
    result = compressor(*arguments)
    assert result.dtype == torch.float32
    exact = [x.double().numpy() for x in arguments]
    specs.assert_compressed(result.numpy(), reference.dense(spec), *exact)


@every_compressor
@pytest.mark.parametrize("dtype", TORCH_DTYPES[2:], ids=str)
def test_narrow_input_equals_the_same_values_in_float32(
    spec: dict[str, Any], dtype: torch.dtype
) -> None:
    compressor = specs.build(spec)
    narrow = [torch.from_numpy(x).to(dtype) for x in specs.inputs(spec, n=5)]
    wide = [x.float().numpy() for x in narrow]
    np.testing.assert_array_equal(compressor(*narrow).numpy(), compressor(*wide))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_narrow_number_is_read_right(dtype: torch.dtype) -> None:
    patterns = np.arange(2**16, dtype=np.uint16).view(np.int16)
    values = torch.from_numpy(patterns).view(dtype)
    copied = grass.Mask(range(2**16), 2**16)(values)
    np.testing.assert_array_equal(copied.numpy(), values.float().numpy())


def test_ml_dtypes_bfloat16() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    (x,) = specs.inputs(specs.EXAMPLES["sjlt"], n=5)
    narrow = x.astype(ml_dtypes.bfloat16)
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    np.testing.assert_array_equal(compressor(narrow), compressor(narrow.astype(np.float32)))


@pytest.mark.parametrize("name", ["logra", "factgrass", "tile"])
@pytest.mark.parametrize("first", NUMPY_DTYPES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("second", NUMPY_DTYPES, ids=lambda dtype: dtype.__name__)
def test_factors_may_differ_in_dtype(
    name: str, first: type[np.floating[Any]], second: type[np.floating[Any]]
) -> None:
    compressor = specs.build(specs.EXAMPLES[name])
    a, g = specs.inputs(compressor.spec, n=3)
    mixed = a.astype(first), g.astype(second)
    specs.assert_compressed(compressor(*mixed), reference.dense(compressor.spec), *mixed)


@pytest.mark.parametrize(
    "dtype",
    [np.int64, np.uint8, np.bool_, np.complex64, np.longdouble, object, "U4", "M8[s]", "V4"],
    ids=str,
)
def test_other_numpy_dtypes_are_refused(dtype: Any) -> None:
    with pytest.raises(grass.UnsupportedArrayError, match="float32"):
        grass.SJLT(4, 2, seed=0)(np.zeros((3, 4), dtype=dtype))


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str
)
def test_other_torch_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(grass.UnsupportedArrayError, match="float32"):
        grass.SJLT(4, 2, seed=0)(torch.zeros((3, 4), dtype=dtype))


@pytest.mark.parametrize("thing", [None, 1.0, "rows", [[1.0, 2.0, 3.0, 4.0]], {"x": 1}, object()])
def test_things_that_are_no_arrays_are_refused(thing: Any) -> None:
    with pytest.raises(grass.UnsupportedArrayError, match=r"NumPy|numpy"):
        grass.SJLT(4, 2, seed=0)(thing)


@pytest.mark.parametrize("name", ["logra", "factgrass", "tile"])
def test_result_is_of_the_library_of_the_inputs(name: str) -> None:
    compressor = specs.build(specs.EXAMPLES[name])
    a, g = specs.inputs(compressor.spec, n=3)
    expected = compressor(a, g)
    from_numpy = compressor(a, torch.from_numpy(g))
    from_torch = compressor(torch.from_numpy(a), g)
    assert isinstance(from_numpy, np.ndarray)
    assert isinstance(from_torch, torch.Tensor)
    np.testing.assert_array_equal(from_numpy, expected)
    np.testing.assert_array_equal(from_torch.numpy(), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros((3, 4), device="meta"),
        lambda: torch.zeros((3, 4)).to_sparse(),
        lambda: torch.quantize_per_tensor(torch.zeros((3, 4)), 1.0, 0, torch.qint8),
        lambda: torch.nested.nested_tensor([torch.zeros(4)] * 3),
        lambda: torch.nested.nested_tensor([torch.zeros(1, 4)] * 3, layout=torch.jagged),
    ],
    ids=["meta", "sparse", "quantized", "nested", "jagged"],
)
def test_tensors_without_plain_memory_are_refused(make: Callable[[], torch.Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = make()
    with pytest.raises(grass.UnsupportedArrayError):
        grass.SJLT(4, 2, seed=0)(tensor)
    with pytest.raises(grass.UnsupportedArrayError):
        grass.LoGra(4, 4, 1, 1, seed=0)(tensor, tensor)


def test_masked_array_is_refused() -> None:
    # Its mask would be ignored.
    masked = np.ma.masked_array(np.ones((2, 4), np.float32), mask=np.eye(2, 4, dtype=bool))
    with pytest.raises(grass.UnsupportedArrayError):
        grass.SJLT(4, 2, seed=0)(masked)


# Layouts


def transposed(x: np.ndarray) -> np.ndarray:
    return np.asfortranarray(x)


def stepped(x: np.ndarray) -> np.ndarray:
    wide = np.full([2 * size + 1 for size in x.shape], np.nan, dtype=x.dtype)
    view = wide[tuple(slice(1, None, 2) for _ in x.shape)]
    view[...] = x
    return view


def reversed_axes(x: np.ndarray) -> np.ndarray:
    flip = tuple(slice(None, None, -1) for _ in x.shape)
    return np.ascontiguousarray(x[flip])[flip]


def padded_rows(x: np.ndarray) -> np.ndarray:
    wide = np.full((*x.shape[:-1], x.shape[-1] + 3), np.nan, dtype=x.dtype)
    wide[..., 1:-2] = x
    return wide[..., 1:-2]


def byte_swapped(x: np.ndarray) -> np.ndarray:
    return x.astype(x.dtype.newbyteorder())


def unaligned(x: np.ndarray) -> np.ndarray:
    memory = np.zeros(x.nbytes + 1, dtype=np.uint8)
    view = memory[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    assert x.size == 0 or not view.flags.aligned
    return view


def half_aligned(x: np.ndarray) -> np.ndarray:
    record = np.zeros(x.shape, dtype=[("pad", np.uint8), ("value", x.dtype)])
    record["value"] = x
    return record["value"]


def read_only(x: np.ndarray) -> np.ndarray:
    view = x.copy()
    view.flags.writeable = False
    return view


LAYOUTS = [
    transposed,
    stepped,
    reversed_axes,
    padded_rows,
    byte_swapped,
    unaligned,
    half_aligned,
    read_only,
]


@every_compressor
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
@pytest.mark.parametrize("dtype", NUMPY_DTYPES, ids=lambda dtype: dtype.__name__)
def test_layout_does_not_matter(
    spec: dict[str, Any],
    layout: Callable[[np.ndarray], np.ndarray],
    dtype: type[np.floating[Any]],
) -> None:
    compressor = specs.build(spec)
    plain = [x.astype(dtype) for x in specs.inputs(spec, n=5)]
    views = [layout(x) for x in plain]
    kept = [view.tobytes() for view in views]
    np.testing.assert_array_equal(compressor(*views), compressor(*plain))
    assert [view.tobytes() for view in views] == kept


@every_compressor
def test_broadcast_rows(backend: Backend, spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    one = specs.inputs(spec, n=1)
    if backend.name == "torch":
        many = [torch.from_numpy(x).expand(6, *x.shape[1:]) for x in one]
    else:
        many = [np.broadcast_to(x, (6, *x.shape[1:])) for x in one]
    result = backend.numpy(compressor(*many))
    np.testing.assert_array_equal(result, np.broadcast_to(compressor(*one), result.shape))


def test_broadcast_columns() -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    column = np.random.default_rng(0).standard_normal((4, 1), dtype=np.float32)
    wide = np.broadcast_to(column, (4, 100))
    np.testing.assert_array_equal(compressor(wide), compressor(wide.copy()))


@every_compressor
@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
        lambda x: x.repeat_interleave(2, dim=-1)[..., ::2],
        lambda x: x.repeat_interleave(2, dim=0)[::2],
        lambda x: torch.cat([x, x])[len(x) :],
    ],
    ids=["transposed", "stepped columns", "stepped rows", "offset"],
)
@pytest.mark.parametrize("dtype", TORCH_DTYPES, ids=str)
def test_torch_layout_does_not_matter(
    spec: dict[str, Any],
    layout: Callable[[torch.Tensor], torch.Tensor],
    dtype: torch.dtype,
) -> None:
    compressor = specs.build(spec)
    plain = [torch.from_numpy(x).to(dtype) for x in specs.inputs(spec, n=5)]
    assert torch.equal(compressor(*map(layout, plain)), compressor(*plain))


@given(
    data=st.data(),
    rows=st.integers(1, 4),
    steps=st.lists(st.sampled_from([-3, -1, 1, 2]), min_size=2, max_size=2),
)
def test_any_strides(data: st.DataObject, rows: int, steps: list[int]) -> None:
    spec = data.draw(specs.sjlts() | specs.gaussians() | specs.grasses())
    (x,) = specs.inputs(spec, n=rows)
    wide = np.full((3 * rows, 3 * x.shape[1]), np.nan, dtype=np.float32)
    view = wide[:: steps[0], :: steps[1]][:rows, : x.shape[1]]
    view[...] = x
    compressor = specs.build(spec)
    np.testing.assert_array_equal(compressor(view), compressor(x))


def test_memory_map(tmp_path: Any) -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    (x,) = specs.inputs(compressor.spec, n=6)
    x.tofile(tmp_path / "rows")
    mapped = np.memmap(tmp_path / "rows", dtype=np.float32, mode="r", shape=x.shape)
    np.testing.assert_array_equal(compressor(mapped), compressor(x))


# Results


@every_compressor
def test_result_owns_fresh_contiguous_memory(backend: Backend, spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    arguments = specs.inputs(spec, n=4)
    kept = [x.copy() for x in arguments]
    first = backend.numpy(compressor(*map(backend.array, arguments)))
    second = backend.numpy(compressor(*map(backend.array, arguments)))
    assert first.flags.c_contiguous
    assert first.flags.writeable
    for other in (*arguments, second):
        assert not np.shares_memory(first, other)
    first[...] = np.nan
    assert np.all(np.isfinite(second))
    for argument, before in zip(arguments, kept, strict=True):
        np.testing.assert_array_equal(argument, before)


def test_identity_mask_still_copies(backend: Backend) -> None:
    x = np.ones((2, 5), dtype=np.float32)
    for mask in (grass.Mask(range(5), 5), grass.RandomMask(5, 5, seed=0)):
        result = backend.numpy(mask(backend.array(x)))
        assert not np.shares_memory(result, x)


@every_compressor
def test_no_autograd_graph(spec: dict[str, Any]) -> None:
    compressor = specs.build(spec)
    arguments = specs.inputs(spec, n=3)
    leaves = [torch.from_numpy(x.copy()).requires_grad_() for x in arguments]
    results = [compressor(*leaves), compressor(*(leaf * 1 for leaf in leaves))]
    for result in results:
        assert not result.requires_grad
        assert result.grad_fn is None
        np.testing.assert_array_equal(result.numpy(), compressor(*arguments))
    for leaf in leaves:
        assert leaf.requires_grad
        assert leaf.grad is None


def test_parameter_and_inference_tensor_are_accepted() -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    (x,) = specs.inputs(compressor.spec, n=3)
    expected = compressor(x)
    parameter = compressor(torch.nn.Parameter(torch.from_numpy(x)))
    assert type(parameter) is torch.Tensor
    np.testing.assert_array_equal(parameter.numpy(), expected)
    with torch.inference_mode():
        np.testing.assert_array_equal(compressor(torch.from_numpy(x) + 0).numpy(), expected)


@pytest.mark.parametrize("view", ["neg", "conj"])
def test_lazy_views_are_resolved(view: str) -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    (x,) = specs.inputs(compressor.spec, n=3)
    complex_rows = torch.complex(torch.zeros(3, 100), torch.from_numpy(x))
    lazy = complex_rows.conj().imag if view == "neg" else complex_rows.conj().conj().imag
    np.testing.assert_array_equal(compressor(lazy).numpy(), compressor(lazy.clone()).numpy())


ZERO_COPY = """
import resource, sys
import numpy as np
import torch
import grass_rs as grass
p = 8_000_000
x = np.ones((4, p), dtype=sys.argv[2])
if sys.argv[1] == "torch":
    x = torch.from_numpy(x)
mask = grass.RandomMask(p, 4, seed=0)
sketch = grass.SJLT(p, 64, seed=0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
mask(x), sketch(x), mask(x[0]), sketch(x[1:])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_rows_are_read_in_place(
    run_script: Callable[..., str], backend: Backend, dtype: str
) -> None:
    # The smallest input is 64 MB.
    assert int(run_script(ZERO_COPY, backend.name, dtype)) < 24 * 2**20


FIRST_CALL = """
import sys
import numpy as np
import grass_rs as grass
sjlt, x = grass.SJLT(9, 4, seed=0), np.ones(9, np.float32)
before = set(sys.modules)
sjlt(x)
print(set(sys.modules) - before)
"""


def test_first_call_imports_nothing(run_script: Callable[..., str]) -> None:
    assert run_script(FIRST_CALL) == "set()\n"
