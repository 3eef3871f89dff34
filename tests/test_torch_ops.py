"""Compressors while torch traces: compiled, exported, transformed, with tensors that have no values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import grass_rs as grass
import specs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

every_compressor = pytest.mark.parametrize("spec", specs.EXAMPLES.values(), ids=specs.EXAMPLES)
FACTORISED = ["logra", "factgrass", "tile"]


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module", autouse=True)
def operators() -> Any:
    """Return `torch.ops.grass_rs`."""
    grass.register_torch_ops()
    return torch.ops.grass_rs


def tensors(spec: dict[str, Any], n: int = 5, seed: int = 0) -> list[torch.Tensor]:
    return [torch.from_numpy(x) for x in specs.inputs(spec, n, seed)]


def compiled(function: Callable[..., Any], backend: str = "aot_eager") -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend=backend)


def operator_call(operators: Any, spec: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """Return a compressor's operator and the arguments of a call."""
    text = specs.build(spec)._spec_json
    if specs.is_factorised(spec):
        return operators.compress_factors.default, (*tensors(spec), text, False)
    return operators.compress_rows.default, (*tensors(spec), text)


# The operators


@every_compressor
def test_opcheck(operators: Any, spec: dict[str, Any]) -> None:
    operator, arguments = operator_call(operators, spec)
    done = torch.library.opcheck(operator, arguments)
    assert set(done.values()) == {"SUCCESS"}
    assert len(done) >= 4


@every_compressor
def test_operator_equals_eager(operators: Any, spec: dict[str, Any]) -> None:
    operator, arguments = operator_call(operators, spec)
    assert torch.equal(operator(*arguments), specs.build(spec)(*tensors(spec)))


@every_compressor
@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_fake_result_has_shape_dtype_and_device(
    operators: Any, spec: dict[str, Any], device: str
) -> None:
    operator, (*arguments,) = operator_call(operators, spec)
    with FakeTensorMode():
        fake = [
            torch.empty(x.shape, dtype=torch.bfloat16, device=device) if torch.is_tensor(x) else x
            for x in arguments
        ]
        result = operator(*fake)
    assert result.shape == (5, specs.build(spec).output_dim)
    assert result.dtype == torch.float32
    assert result.device.type == device


@pytest.mark.parametrize("text", ["", "{}", "sjlt", '{"type":"sjtl"}'])
def test_unknown_structure_is_refused(operators: Any, text: str) -> None:
    with pytest.raises(grass.SpecError, match="spec must be a known type") as caught:
        operators.compress_rows(torch.ones(3, 4), text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fake", [False, True])
def test_operator_of_the_other_kind_is_refused(operators: Any, *, fake: bool) -> None:
    factors = tensors(specs.EXAMPLES["tile"])
    rows, layer = (specs.build(specs.EXAMPLES[name])._spec_json for name in ("sjlt", "tile"))
    with FakeTensorMode(allow_non_fake_inputs=True) if fake else torch.no_grad():
        with pytest.raises(grass.ShapeError, match="factors"):
            operators.compress_rows(torch.ones(3, 200), layer)
        with pytest.raises(grass.ShapeError, match="one array"):
            operators.compress_factors(*factors, rows, bias=False)


def test_fake_factors_on_two_devices_are_refused() -> None:
    compressor = specs.build(specs.EXAMPLES["tile"])
    shape_in, shape_out = (x.shape for x in tensors(compressor.spec))
    with FakeTensorMode(), pytest.raises((grass.GrassError, RuntimeError), match="device"):
        compressor(torch.empty(shape_in), torch.empty(shape_out, device="cuda"))


# Compiled


@every_compressor
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_equals_eager(spec: dict[str, Any], dtype: torch.dtype) -> None:
    compressor = specs.build(spec)
    arguments = [x.to(dtype) for x in tensors(spec)]
    result = compiled(lambda *x: compressor(*x) * 2)(*arguments)
    assert result.dtype == torch.float32
    assert torch.equal(result, compressor(*arguments) * 2)


def test_inductor_equals_eager() -> None:
    # Only matrix products around the operators: other operations would be compiled by g++, in tens of seconds.
    sketch, layer = specs.build(specs.EXAMPLES["grass"]), specs.build(specs.EXAMPLES["factgrass"])
    arguments = (*tensors(sketch.spec), *tensors(layer.spec))
    square = torch.randn(20, 20)

    def function(x: torch.Tensor, a: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return sketch(x @ x.T @ x) @ square[:6, :6], layer(a @ square, g.mT.contiguous().mT)

    results = compiled(function, "inductor")(*arguments)
    for result, expected in zip(results, function(*arguments), strict=True):
        assert torch.equal(result, expected)


@pytest.mark.parametrize("name", ["sjlt", "factgrass"])
def test_one_graph_serves_every_number_of_rows(name: str) -> None:
    compressor = specs.build(specs.EXAMPLES[name])
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    function = torch.compile(compressor, fullgraph=True, backend=counter)
    for n in (5, 2, 9):
        arguments = tensors(compressor.spec, n)
        for argument in arguments:
            torch._dynamo.mark_dynamic(argument, 0)
        assert torch.equal(function(*arguments), compressor(*arguments))
    assert counter.frame_count == 1


def test_one_row_and_no_rows() -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    (x,) = tensors(compressor.spec)
    function = compiled(compressor)
    assert torch.equal(function(x[0]), compressor(x[0]))
    assert function(x[:0]).shape == (0, compressor.output_dim)


@pytest.mark.parametrize("name", FACTORISED)
def test_compiled_bias_and_one_token(name: str) -> None:
    compressor = specs.build(specs.EXAMPLES[name])
    a, g = tensors(compressor.spec)
    function = compiled(lambda a, g: compressor(a, g, bias=True))
    assert torch.equal(function(a[..., 1:], g), compressor(a[..., 1:], g, bias=True))
    flat = a[:, 0, 1:], g[:, 0]
    assert torch.equal(function(*flat), compressor(*flat, bias=True))


def test_compiled_code_knows_one_compressor_from_another() -> None:
    function = compiled(lambda compressor, x: compressor(x), "eager")
    (x,) = tensors(specs.EXAMPLES["sjlt"])
    for seed in (1, 2, 3, 1):  # each may lie where the last one lay
        compressor = grass.SJLT(100, 12, seed=seed)
        assert torch.equal(function(compressor, x), compressor(x))
    wide = grass.SJLT(50, 60, seed=1)
    assert torch.equal(function(wide, x[:, :50]), wide(x[:, :50]))


def test_compiled_out_is_filled_and_returned() -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    (x,) = tensors(compressor.spec)
    out = torch.zeros(5, compressor.output_dim)
    assert compiled(lambda x, out: compressor(x, out=out))(x, out) is out
    assert torch.equal(out, compressor(x))


def test_compiled_result_is_in_no_graph() -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    (x,) = (leaf.requires_grad_() for leaf in tensors(compressor.spec))

    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return compressor(x * 3), (x * x).sum()

    result, loss = compiled(function)(x)
    assert not result.requires_grad
    loss.backward()
    assert torch.equal(x.grad, 2 * x.detach())
    assert torch.equal(result, compressor(x * 3))


@pytest.mark.parametrize("name", ["gaussian", "logra"])
def test_compiled_under_autocast_equals_eager(name: str) -> None:
    compressor = specs.build(specs.EXAMPLES[name])
    arguments = tensors(compressor.spec)

    def function(*arguments: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return compressor(*(x @ torch.eye(x.shape[-1]) for x in arguments))

    result = compiled(function)(*arguments)
    assert result.dtype == torch.float32
    assert torch.equal(result, function(*arguments))


def test_compiled_shape_error_says_what_an_eager_one_says() -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    with pytest.raises(Exception, match=r"expects \(n, 100\) or \(100,\), got \(3, 99\)"):
        compiled(compressor)(torch.ones(3, 99))


def test_numpy_arrays_inside_compiled_code() -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    (x,) = specs.inputs(compressor.spec, n=3)
    result = torch.compile(compressor, backend="eager")(x)
    assert isinstance(result, np.ndarray)
    np.testing.assert_array_equal(result, compressor(x))


# Transformed, recorded, exported


def test_vmap_equals_calls() -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    x = torch.randn(3, 100, 4)
    for in_dims, out_dims in ((0, 0), (2, 1)):
        batch = x if in_dims == 0 else x.permute(2, 0, 1)
        result = torch.func.vmap(
            lambda rows: compressor(rows.T if rows.shape[0] == 100 else rows),
            in_dims=in_dims,
            out_dims=out_dims,
        )(batch.movedim(0, in_dims))
        each = [compressor(rows.T if rows.shape[0] == 100 else rows) for rows in batch]
        assert torch.equal(result, torch.stack(each, dim=out_dims))
    assert torch.equal(torch.func.vmap(compressor)(x[:, :, 0]), compressor(x[:, :, 0]))


@pytest.mark.parametrize("name", FACTORISED)
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 1)])
def test_vmap_of_factors_equals_calls(name: str, in_dims: tuple[int | None, int | None]) -> None:
    compressor = specs.build(specs.EXAMPLES[name])
    arguments = [
        x if dim is None else torch.stack([x, 2 * x], dim=dim)
        for x, dim in zip(tensors(compressor.spec), in_dims, strict=True)
    ]
    result = torch.func.vmap(compressor, in_dims=in_dims)(*arguments)
    each = (
        compressor(
            *(
                x if dim is None else x.select(dim, i)
                for x, dim in zip(arguments, in_dims, strict=True)
            )
        )
        for i in range(2)
    )
    assert torch.equal(result, torch.stack([*each]))


def test_vmap_refuses_what_a_call_refuses() -> None:
    with pytest.raises(grass.ShapeError, match="expects"):
        torch.func.vmap(specs.build(specs.EXAMPLES["sjlt"]))(torch.ones(2, 3, 4, 100))
    with pytest.raises(grass.ShapeError, match="expects"):
        torch.func.vmap(specs.build(specs.EXAMPLES["tile"]))(torch.ones(2, 20), torch.ones(2, 10))


@pytest.mark.skipif(
    not hasattr(torch.library, "register_vmap"),
    reason="torch 2.4 refuses operators written in Python inside torch.func.grad",
)
def test_transforms_take_the_result_for_a_constant() -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    (x,) = tensors(compressor.spec)

    def function(row: torch.Tensor) -> torch.Tensor:
        return (compressor(row) * row[: compressor.output_dim]).sum()

    expected = torch.zeros_like(x)
    expected[:, : compressor.output_dim] = compressor(x)
    assert torch.equal(torch.func.vmap(torch.func.grad(function))(x), expected)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_recorded_graph_compresses(mode: str) -> None:
    # A call that is not recorded would leave its result in the graph, a constant.
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    (x,), (other,) = tensors(compressor.spec), tensors(compressor.spec, seed=1)
    graph = make_fx(compressor, tracing_mode=mode)(x)
    assert torch.equal(graph(other), compressor(other))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_traced_module_compresses() -> None:
    compressor = specs.build(specs.EXAMPLES["sjlt"])
    (x,), (other,) = tensors(compressor.spec), tensors(compressor.spec, seed=1)
    traced = torch.jit.trace(lambda x: 2 * compressor(x), x)
    assert torch.equal(traced(other), 2 * compressor(other))


def test_call_under_a_dispatch_mode() -> None:
    compressor = specs.build(specs.EXAMPLES["logra"])
    arguments = tensors(compressor.spec)
    with FlopCounterMode(display=False):
        result = compressor(*arguments)
    assert torch.equal(result, compressor(*arguments))


def test_array_beside_a_traced_tensor_is_refused() -> None:
    compressor = specs.build(specs.EXAMPLES["tile"])
    a, g = tensors(compressor.spec)
    values = g.numpy()
    with FakeTensorMode() as mode, pytest.raises(grass.UnsupportedArrayError, match="from_numpy"):
        compressor(mode.from_tensor(a), values)


LOAD = """
import sys
import torch
import grass_rs as grass
grass.register_torch_ops()
program = torch.export.load(sys.argv[1] + "/program.pt2").module()
arguments, expected = torch.load(sys.argv[1] + "/expected.pt")
print(torch.equal(program(*arguments), expected))
"""


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_exported_program_runs_in_another_process(
    run_script: Callable[..., str], tmp_path: Path
) -> None:
    # Explicit indices are in no seed: the program must carry them.
    mask = grass.Mask(range(0, 100, 3), 100)
    sketch, layer = (
        grass.GraSS(100, 8, seed=1, mask=mask),
        specs.build(specs.EXAMPLES["factgrass"]),
    )

    class Module(torch.nn.Module):
        def forward(self, x: torch.Tensor, a: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
            return sketch(x).sum() + layer(a, g)

    arguments = (torch.randn(5, 100), *tensors(layer.spec))
    program = torch.export.export(Module(), arguments, strict=False)
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save((arguments, Module()(*arguments)), tmp_path / "expected.pt")
    assert run_script(LOAD, str(tmp_path)) == "True\n"


EAGER = """
import sys
import torch
import grass_rs as grass
grass.SJLT(8, 4, seed=0)(torch.ones(2, 8))
grass.FactGraSS(8, 4, 4, seed=0)(torch.ones(2, 8), torch.ones(2, 4))
print(sorted(name for name in sys.modules if name.startswith("grass_rs._backends.")))
"""


def test_eager_calls_on_the_cpu_need_no_operators(run_script: Callable[..., str]) -> None:
    loaded = ["cpu", "dispatch", "shapes"]
    assert run_script(EAGER) == f"{[f'grass_rs._backends.{name}' for name in loaded]}\n"
