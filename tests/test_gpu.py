"""The CUDA kernels on a GPU: equal to the CPU, the same bits on every run, at home in torch and CuPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import grass_rs as grass
import reference
import specs
from grass_rs.capture import Capture, find_blocks
from grass_rs.evaluate import Recipe, train_together

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

DEVICE = "cuda"
RUNS = 100
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]

ODD = {
    **specs.EXAMPLES,
    "sjlt one output": reference.sjlt(1000, 1, 11),
    "sjlt wide": reference.sjlt(4095, 4096, 12),
    "sjlt page": reference.sjlt(4096, 4096, 13),
    "sjlt page and one": reference.sjlt(4097, 4096, 14),
    "sjlt pages": reference.sjlt(300_001, 4096, 15),
    "sjlt thrice": reference.sjlt(300_001, 3 * 97, 16, nnz=3),
    "sjlt narrow": reference.sjlt(100_003, 33, 17),
    "iid pages": reference.sjlt(100_003, 4096, 18, kind="iid"),
    "iid wide": reference.sjlt(20_001, 70_001, 19, kind="iid"),
    "grass usual": reference.grass(300_001, 4096, 20),
    "grass iid": reference.grass(50_001, 511, 21, kind="iid"),
    "mask runs": reference.random_mask(160_000, 16_384 - 16_384 % 16, 22, block=16),
    "gaussian usual": reference.gaussian(3001, 257, 23),
    "rademacher usual": reference.gaussian(3001, 257, 24, kind="rademacher"),
    "logra usual": reference.logra(300, 200, 17, 33, 25),
    "factgrass usual": reference.factgrass(768, 700, 4096, 26),
    "factgrass iid": reference.factgrass(300, 200, 257, 27, kind="iid"),
    "factgrass large": reference.factgrass(900, 800, 1000, 28, mask_in=500, mask_out=300),
    "tile usual": reference.tile(300, 200, 4096, 29),
    "tile 32 x 64": reference.tile(130, 260, 2048, 30),
    "tile odd": reference.tile(130, 70, 300, 31),
}
"""Every type and kind, small and of the usual sizes, at the edges of pages and tiles."""


def on_device(arguments: tuple[NDArray[Any], ...], dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.from_numpy(argument).to(DEVICE, dtype) for argument in arguments]


def integers(spec: dict[str, Any], n: int, tokens: int) -> tuple[NDArray[np.float32], ...]:
    """Return inputs of small whole numbers, whose sums float32 holds exactly."""
    drawn = specs.inputs(spec, n, tokens=tokens)
    return tuple(np.clip(np.rint(2 * array), -4, 4).astype(np.float32) for array in drawn)


def is_exact(spec: dict[str, Any]) -> bool:
    """Whether whole numbers give the same result in any order of additions."""
    normal = spec["type"] == "logra" or spec.get("kind") == "normal"
    return not normal


def assert_like_cpu(spec: dict[str, Any], result: Any, arguments: list[torch.Tensor]) -> None:
    """Compare with the CPU's result of the same values: to rounding in float32."""
    compressor = specs.build(spec)
    host = [argument.cpu() for argument in arguments]
    expected = compressor(*host).numpy()
    exact = [argument.float().numpy() for argument in host]
    found = np.atleast_2d(result.cpu().numpy())
    size = np.linalg.norm(specs.magnitudes(*exact), axis=1, keepdims=True)
    assert result.dtype == torch.float32
    assert found.shape == np.atleast_2d(expected).shape
    assert np.all(np.abs(found - np.atleast_2d(expected)) <= 4e-6 * size + 1e-37)


def assert_same(spec: dict[str, Any], found: torch.Tensor, expected: torch.Tensor) -> None:
    """Check that two results have the same bits, but for LoGra: cuBLAS chooses its order of additions by the shapes."""
    if spec["type"] == "logra":
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("tokens", [1, 3, 130])
@pytest.mark.parametrize("name", [name for name in ODD if is_exact(ODD[name])])
def test_whole_numbers_give_the_bits_of_the_cpu(name: str, tokens: int) -> None:
    spec = ODD[name]
    arguments = integers(spec, 5, tokens)
    compressor = specs.build(spec)
    found = compressor(*on_device(arguments, torch.float32)).cpu().numpy()
    # One multiplication by the scale comes last on both.
    np.testing.assert_allclose(found, compressor(*arguments), rtol=3e-7, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ODD)
def test_every_dtype_gives_what_the_cpu_does(name: str, dtype: torch.dtype) -> None:
    spec = ODD[name]
    arguments = on_device(specs.inputs(spec, 9, tokens=17), dtype)
    assert_like_cpu(spec, specs.build(spec)(*arguments), arguments)


@pytest.mark.parametrize("name", ODD)
def test_a_row_has_the_same_bits_alone_and_in_every_run(name: str) -> None:
    spec = ODD[name]
    compressor = specs.build(spec)
    arguments = on_device(specs.inputs(spec, 33, tokens=70), torch.bfloat16)
    first = compressor(*arguments)
    for _ in range(RUNS):
        assert torch.equal(compressor(*arguments), first)
    if spec["type"] == "logra":  # the library's product may add in another order for another n
        return
    for row in (0, 7, 32):
        alone = compressor(*(argument[row : row + 1] for argument in arguments))
        assert_same(spec, alone[0], first[row])


@pytest.mark.parametrize("name", ODD)
def test_empty_single_and_strided_inputs(name: str) -> None:
    spec = ODD[name]
    compressor = specs.build(spec)
    whole = on_device(specs.inputs(spec, 6, tokens=4), torch.float32)
    none = compressor(*(argument[:0] for argument in whole))
    assert none.shape == (0, compressor.output_dim)
    odd_rows = [argument[1::2] for argument in whole]
    assert_same(spec, compressor(*odd_rows), compressor(*(rows.contiguous() for rows in odd_rows)))
    turned = [argument.transpose(0, -1).contiguous().transpose(0, -1) for argument in whole]
    assert_same(spec, compressor(*turned), compressor(*whole))
    same = [argument[:1].expand_as(argument) for argument in whole]
    assert_same(spec, compressor(*same)[5], compressor(*whole)[0])
    if specs.is_factorised(spec):
        no_tokens = compressor(*(argument[:, :0] for argument in whole))
        assert torch.equal(no_tokens, torch.zeros_like(no_tokens))
    else:
        assert torch.equal(compressor(whole[0][0]), compressor(*whole)[0])


@pytest.mark.parametrize("name", [name for name in ODD if specs.is_factorised(ODD[name])])
def test_an_implied_bias_is_a_column_of_ones(name: str) -> None:
    compressor = specs.build(ODD[name])
    inputs, grad_outputs = on_device(specs.inputs(ODD[name], 3, tokens=35), torch.bfloat16)
    inputs[:, :, -1] = 1
    implied = compressor(inputs[:, :, :-1].contiguous(), grad_outputs, bias=True)
    whole = compressor(inputs, grad_outputs)
    assert_like_cpu(ODD[name], implied, [inputs, grad_outputs])
    assert_like_cpu(ODD[name], whole, [inputs, grad_outputs])


def test_more_than_2_31_elements() -> None:
    n, p = 33, 2**26 + 1
    x = torch.ones(n, p, dtype=torch.float16, device=DEVICE)
    x[-1] = torch.randint(-4, 5, (p,), device=DEVICE)
    for spec in (
        reference.sjlt(p, 4096, 1),
        reference.sjlt(p, 4096, 1, kind="iid"),
        reference.grass(p, 4096, 1),
        reference.random_mask(p, 4096, 1),
    ):
        compressor = specs.build(spec)
        found = compressor(x)[-1]
        np.testing.assert_allclose(found.cpu(), compressor(x[-1].cpu().float()), rtol=3e-7)


@pytest.mark.parametrize("name", ODD)
def test_cupy_arrays_give_the_bits_of_torch_tensors(name: str) -> None:
    cupy = pytest.importorskip("cupy")
    spec = ODD[name]
    compressor = specs.build(spec)
    tensors = on_device(specs.inputs(spec, 5, tokens=9), torch.float32)
    arrays = [cupy.from_dlpack(tensor) for tensor in tensors]
    found = compressor(*arrays)
    assert isinstance(found, cupy.ndarray)
    assert found.dtype == np.float32
    if spec["type"] == "logra":  # the libraries' products add in orders of their own
        np.testing.assert_allclose(
            cupy.asnumpy(found), compressor(*tensors).cpu(), rtol=1e-4, atol=1e-4
        )
    else:
        assert np.array_equal(cupy.asnumpy(found), compressor(*tensors).cpu().numpy())


@pytest.mark.parametrize("name", ODD)
def test_without_cupy_torch_alone_gives_the_same(name: str) -> None:
    from grass_rs._backends import pure_torch

    spec = ODD[name]
    compressor = specs.build(spec)
    arguments = on_device(specs.inputs(spec, 5, tokens=9), torch.float32)
    factorised = specs.is_factorised(spec)
    native = compressor._native
    found = (
        pure_torch.compress_factors(native, *arguments, bias=False)
        if factorised
        else pure_torch.compress_rows(native, *arguments)
    )
    assert found.device == arguments[0].device
    assert_like_cpu(spec, found, arguments)


# At home in torch


watching_for_waits = pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
"""torch says so once a process, when its search for calls that wait is switched on."""


def usual(name: str) -> tuple[Any, list[torch.Tensor]]:
    """Return a compressor and inputs on the device."""
    return specs.build(ODD[name]), on_device(specs.inputs(ODD[name], 9, tokens=130), torch.bfloat16)


@watching_for_waits
@pytest.mark.parametrize("name", ODD)
def test_nothing_waits_for_the_device(name: str) -> None:
    compressor, arguments = usual(name)
    first = compressor(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = compressor(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, first)


@pytest.mark.parametrize("name", ODD)
def test_it_runs_on_the_current_stream(name: str) -> None:
    compressor, arguments = usual(name)
    expected = compressor(*arguments)
    stream = torch.cuda.Stream()
    late = [torch.zeros_like(argument) for argument in arguments]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        # Work that the call must come after, because it is of the same stream.
        busy = torch.randn(4096, 4096, device=DEVICE)
        for _ in range(20):
            busy = busy @ busy / 64
        for argument, source in zip(late, arguments, strict=True):
            argument.copy_(source)
        found = compressor(*late)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", ODD)
def test_a_cuda_graph_replays_it(name: str) -> None:
    compressor, arguments = usual(name)
    compressor(*arguments)  # compiles the kernels and moves the structure
    graph = torch.cuda.CUDAGraph()
    static = [torch.zeros_like(argument) for argument in arguments]
    with torch.cuda.graph(graph):
        found = compressor(*static)
    for argument, source in zip(static, arguments, strict=True):
        argument.copy_(source)
    graph.replay()
    assert torch.equal(found, compressor(*arguments))


@pytest.mark.parametrize("name", specs.EXAMPLES)
def test_torch_compile_takes_it_whole(name: str) -> None:
    torch.compiler.reset()  # each test compiles a lambda of the same line
    compressor, arguments = usual(name)
    compiled = torch.compile(lambda *inputs: 2 * compressor(*inputs), fullgraph=True)
    assert torch.equal(compiled(*arguments), 2 * compressor(*arguments))


@pytest.mark.parametrize("name", specs.EXAMPLES)
def test_opcheck(name: str) -> None:
    compressor, arguments = usual(name)
    grass.register_torch_ops()
    spec = compressor._native.spec
    done = (
        torch.library.opcheck(
            torch.ops.grass_rs.compress_factors.default, (*arguments, spec, False)
        )
        if specs.is_factorised(ODD[name])
        else torch.library.opcheck(torch.ops.grass_rs.compress_rows.default, (*arguments, spec))
    )
    assert set(done.values()) == {"SUCCESS"}


def test_out_is_written_in_place() -> None:
    compressor, arguments = usual("sjlt pages")
    out = torch.empty(9, compressor.output_dim, device=DEVICE)
    assert compressor(*arguments, out=out) is out
    assert torch.equal(out, compressor(*arguments))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ODD)
def test_several_devices_in_one_process(name: str) -> None:
    compressor, arguments = usual(name)
    expected = compressor(*arguments)
    found = compressor(*(argument.to("cuda:1") for argument in arguments))
    assert found.device.index == 1
    assert torch.cuda.current_device() == 0
    assert torch.equal(found.cpu(), expected.cpu())


# Bad input


def test_arrays_of_different_devices_are_refused() -> None:
    compressor, (inputs, grad_outputs) = usual("factgrass usual")
    with pytest.raises(grass.GrassError, match="cpu"):
        compressor(inputs, grad_outputs.cpu())
    sjlt, (x,) = usual("sjlt pages")
    with pytest.raises(grass.GrassError, match="cpu"):
        sjlt(x, out=torch.empty(9, sjlt.output_dim))


def test_too_little_memory_says_how_much_is_needed_and_free() -> None:
    k = 2**30
    # More than all of it: torch may hold memory that it would let go of.
    _, total = torch.cuda.mem_get_info()
    n = total // (4 * k) + 1
    compressor = grass.SJLT(16, k, seed=0)
    x = torch.ones(n, 16, device=DEVICE)
    with pytest.raises(grass.GrassError, match=r"free"):
        compressor(x)
    # The process goes on.
    assert torch.equal(*(usual("sjlt pages")[0](*usual("sjlt pages")[1]) for _ in range(2)))


# The engine


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 3))


def batches(device: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 20, generator=generator)
    targets = torch.randint(0, 3, (300,), generator=generator)
    return [
        (inputs[i : i + 32].to(device), targets[i : i + 32].to(device)) for i in range(0, 300, 32)
    ]


@pytest.mark.parametrize("method", ["factgrass", "tile", "logra", "grass", "gaussian"])
def test_a_store_made_on_the_gpu_is_the_cpus(method: str, tmp_path: Path) -> None:
    rows = {}
    for device in ("cpu", DEVICE):
        model = network().to(device)
        plan = grass.Plan.for_model(model, method, dim=64)
        attributor = grass.Attributor(model, "cross_entropy", plan)
        store = attributor.cache(batches(device), tmp_path / device, progress=False)
        rows[device] = store[:]
    scale = np.abs(rows["cpu"]).max()
    np.testing.assert_allclose(rows[DEVICE], rows["cpu"], atol=1e-5 * scale)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_example_that_is_not_finite_is_found(value: float, tmp_path: Path) -> None:
    model, found = network().to(DEVICE), batches(DEVICE)
    found[1][0][3, 7] = value
    attributor = grass.Attributor(model, "cross_entropy", grass.Plan.for_model(model, dim=64))
    store = attributor.cache(found, tmp_path / "store", on_nonfinite="skip", progress=False)
    assert store.skipped_ids.tolist() == [35]
    assert np.isfinite(store[:]).all()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_layers_of_one_model_on_two_devices() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Linear(20, 64).to("cuda:0")
            self.second = nn.Linear(64, 3).to("cuda:1")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(self.first(x).relu().to("cuda:1")).to("cuda:0")

    split = Split()
    plan = grass.Plan.for_model(split, "factgrass", dim=64)
    rows = grass.Attributor(split, "cross_entropy", plan).compress(
        batches("cuda:0"), progress=False
    )
    one = Split()
    one.second.to("cuda:0")
    one.forward = lambda x: one.second(one.first(x).relu())
    expected = grass.Attributor(one, "cross_entropy", plan).compress(
        batches("cuda:0"), progress=False
    )
    np.testing.assert_allclose(rows, expected, atol=1e-5 * np.abs(expected).max())


class OnStreams(nn.Module):
    """Layers that run each on a stream of its own, behind other work."""

    def __init__(self, *, streams: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(20, 64), nn.Linear(64, 64), nn.Linear(64, 3)])
        self.streams = [torch.cuda.Stream() for _ in self.layers] if streams else None
        self.to(DEVICE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        current = torch.cuda.current_stream()
        for layer, stream in zip(self.layers, self.streams or [current] * 3, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                busy = torch.ones(2048, 2048, device=DEVICE)
                for _ in range(5):
                    busy = busy @ busy / 2048
                x = torch.tanh(layer(x) * busy[0, 0])
            current.wait_stream(stream)
        return x


@pytest.mark.parametrize("method", ["factgrass", "sjlt"])
def test_layers_on_streams_of_their_own(method: str) -> None:
    rows = []
    for streams in (False, True):
        model = OnStreams(streams=streams)
        attributor = grass.Attributor(
            model, "cross_entropy", grass.Plan.for_model(model, method, dim=64)
        )
        rows.append(attributor.compress(batches(DEVICE), progress=False))
    np.testing.assert_allclose(*rows, atol=1e-5 * np.abs(rows[0]).max())


@watching_for_waits
def test_a_batch_waits_for_the_device_only_where_capture_checks_it() -> None:
    model = network().to(DEVICE)
    plan = grass.Plan.for_model(model, dim=64, layers=["0", "3"])

    def watched() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for number, batch in enumerate(batches(DEVICE), start=1):
            # The checks are of the batches 1, 2, 4 and 8.
            torch.cuda.set_sync_debug_mode("error" if number in {5, 6, 7} else "default")
            yield batch

    try:
        rows = grass.Attributor(model, "cross_entropy", plan).compress(watched(), progress=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(rows) == 300


def test_gradients_of_the_layers_are_not_held_together() -> None:
    torch.manual_seed(0)
    depth, n, width = 16, 4096, 1024
    layers = (layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.Tanh()))
    model = nn.Sequential(*layers).to(DEVICE)
    batch = torch.randn(n, width, device=DEVICE)
    forward, backward = [], []

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        losses = model(batch).square().sum(1)
        forward.append(torch.cuda.memory_allocated())
        return losses

    with Capture(model, loss, find_blocks(model)) as capture:
        for _ in range(3):  # the third is not checked
            capture.run(batch, lambda *_: backward.append(torch.cuda.memory_allocated()))
    # This layer's gradient, and what autograd needs between two layers.
    assert max(backward[-depth:]) <= forward[-1] + 4 * batch.nbytes


def test_models_train_together_as_on_the_cpu() -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).double()

    data = torch.randn(40, 8, dtype=torch.float64), torch.arange(40) % 3
    subsets = np.arange(40) % 4 != np.arange(4)[:, None]
    recipe = Recipe(epochs=3, batch_size=8)
    cpu, gpu = (
        train_together(build, "cross_entropy", data, subsets, recipe, seed=1, device=device)
        for device in ("cpu", DEVICE)
    )
    torch.testing.assert_close(gpu.losses(data).cpu(), cpu.losses(data), rtol=1e-9, atol=1e-9)


# For compute-sanitizer, which is slow: every kernel once


@pytest.mark.parametrize("name", ODD)
def test_every_kernel_once(name: str) -> None:
    compressor, arguments = usual(name)
    assert compressor(*arguments).isfinite().all()
