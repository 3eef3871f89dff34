"""KfacGraSS and the second moments that its bases come from."""

from __future__ import annotations

import copy
import pickle
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import grass_rs as grass
from per_example_twin import twin_rows

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Backend

IN, OUT, K = 9, 7, 12


def bases(rank_in: int = 6, rank_out: int = 5, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "basis_in": rng.standard_normal((rank_in, IN)),
        "basis_out": rng.standard_normal((rank_out, OUT)),
    }


def compressor(**changes: Any) -> grass.KfacGraSS:
    return grass.KfacGraSS(IN, OUT, changes.pop("output_dim", K), seed=3, **{**bases(), **changes})


def factors(n: int, tokens: int, seed: int = 1) -> tuple[np.ndarray[Any, Any], ...]:
    rng = np.random.default_rng(seed)
    shapes = (n, tokens, IN), (n, tokens, OUT)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


@given(n=st.integers(0, 4), tokens=st.integers(0, 5), seed=st.integers(0, 9))
def test_equals_sketch_of_the_projected_gradient(
    backend: Backend, n: int, tokens: int, seed: int
) -> None:
    given_bases = bases(seed=seed)
    made = compressor(**given_bases)
    a, g = factors(n, tokens, seed)
    projected = np.einsum(
        "nto,po,nti,qi->npq", g, given_bases["basis_out"], a, given_bases["basis_in"]
    ).reshape(n, 30)
    sjlt = grass.SJLT(30, K, seed=grass._native.derive(3, "sjlt")).to_dense().astype(np.float64)
    found = backend.numpy(made(backend.array(a), backend.array(g)))
    np.testing.assert_allclose(found, projected @ sjlt.T, rtol=1e-4, atol=1e-4)
    whole = np.einsum("nto,nti->noi", g, a).reshape(n, OUT * IN)
    np.testing.assert_allclose(found, whole @ made.to_dense().T, rtol=1e-4, atol=1e-4)


def test_bias_is_a_column_of_ones(backend: Backend) -> None:
    a, g = factors(3, 4)
    a[:, :, -1] = 1
    made = compressor()
    bare = made(backend.array(np.ascontiguousarray(a[:, :, :-1])), backend.array(g), bias=True)
    whole = made(backend.array(a), backend.array(g))
    np.testing.assert_allclose(backend.numpy(bare), backend.numpy(whole), rtol=1e-5, atol=1e-5)


def test_all_products_kept_lose_nothing() -> None:
    made = compressor(output_dim=30)
    a, g = factors(5, 2)
    rows = made(a, g).astype(np.float64)
    inner, outer = made.basis_in.astype(np.float64), made.basis_out.astype(np.float64)
    projected = np.einsum("nto,po,nti,qi->npq", g, outer, a, inner).reshape(5, -1)
    np.testing.assert_allclose(rows @ rows.T, projected @ projected.T, rtol=1e-4)


def test_bytes_round_trip() -> None:
    made = compressor()
    for again in (
        grass.compressor_from_bytes(made.to_bytes()),
        pickle.loads(pickle.dumps(made)),  # noqa: S301 - our own bytes
        copy.deepcopy(made),
    ):
        assert again == made
        assert again.fingerprint == made.fingerprint
        np.testing.assert_array_equal(again(*factors(2, 3)), made(*factors(2, 3)))
    assert made != compressor(**bases(seed=1))


def test_any_changed_or_missing_byte_is_refused() -> None:
    data = compressor().to_bytes()
    for place in range(len(data)):
        torn = bytearray(data)
        torn[place] ^= 1
        with pytest.raises(grass.SpecError):
            grass.compressor_from_bytes(bytes(torn))
        with pytest.raises(grass.SpecError):
            grass.compressor_from_bytes(data[:place])


def test_bytes_that_lie_under_a_right_checksum_are_refused() -> None:
    data = compressor().to_bytes()[:-4]
    for old, new in (
        (b'"rank_in":6', b'"rank_in":7'),
        (b'"rank_in":6', b'"rank_in":-'),
        (b'"type":"kfac_grass"', b'"type":"kfac_grasp"'),
        (b'"basis":"', b'"basis":9'),
    ):
        body = data.replace(old, new, 1)
        assert body != data
        with pytest.raises(grass.SpecError):
            grass.compressor_from_bytes(body + zlib.crc32(body).to_bytes(4, "little"))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"basis_in": np.zeros((3, IN + 1))}, grass.ShapeError, r"expects \(rank, 9\)"),
        ({"basis_in": np.zeros((0, IN))}, grass.ShapeError, "at least one direction"),
        ({"basis_out": np.full((2, OUT), np.nan)}, grass.NonFiniteError, "basis_out expects"),
        ({"basis_out": np.full((2, OUT), "x")}, grass.UnsupportedArrayError, "real numbers"),
        ({"basis_in": np.full((2, IN), 1e300)}, grass.NonFiniteError, "finite numbers in float32"),
        ({"output_dim": 0}, grass.SpecError, "output_dim"),
    ],
)
def test_bad_bases_are_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        compressor(**changes)


def test_bad_factors_are_refused() -> None:
    made = compressor()
    a, g = factors(2, 3)
    with pytest.raises(grass.ShapeError, match="KfacGraSS expects inputs"):
        made(a[:, :, :-1], g)
    with pytest.raises(grass.UnsupportedArrayError, match="expects arrays, got list"):
        made(a.tolist(), g)
    with pytest.raises(grass.SpecError, match="compressor_from_bytes"):
        grass.compressor_from_spec(made.spec)


# Second moments


class Tokens(nn.Module):
    """Two linear layers over tokens, the second used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 6, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(x))
        return self.second(torch.tanh(self.second(hidden)))


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, 3, 4, generator=generator), torch.randn(n, 3, 6, generator=generator))
        for n in (4, 1, 3)
    ]


def twin_moments(model: Tokens) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return A and S of each layer, recorded by hooks on single examples."""
    sums = {
        "first": (torch.zeros(5, 5), torch.zeros(6, 6)),
        "second": (torch.zeros(6, 6), torch.zeros(6, 6)),
    }
    for x, y in batches():
        for example in range(len(x)):
            for name in sums:
                layer = model.get_submodule(name)
                seen: list[tuple[torch.Tensor, torch.Tensor]] = []

                def record(_: Any, inputs: Any, output: Any, seen: Any = seen) -> None:
                    output.retain_grad()
                    seen.append((inputs[0].detach(), output))

                handle = layer.register_forward_hook(record)
                ((model(x[example : example + 1]) - y[example]) ** 2).sum().backward()
                handle.remove()
                for (found,), output in seen:
                    a = found
                    if name == "first":
                        a = torch.cat([found, torch.ones(3, 1)], dim=1)
                    sums[name][0].add_(a.T @ a)
                    sums[name][1].add_(output.grad[0].T @ output.grad[0])
    return {name: (a / 8, s / 8) for name, (a, s) in sums.items()}


def test_second_moments_equal_twin() -> None:
    model = Tokens()
    moments = grass.second_moments(model, "mse", batches(), progress=False)
    twin = twin_moments(model)
    assert moments.examples == 8
    assert list(moments.layers) == list(twin)
    for name, sides in twin.items():
        for basis, matrix in zip(moments[name], sides, strict=True):
            v = basis.vectors.astype(np.float64)
            np.testing.assert_allclose(v.T @ np.diag(basis.values) @ v, matrix, atol=1e-4)
            np.testing.assert_allclose(v @ v.T, np.eye(len(v)), atol=1e-5)
            assert np.all(np.diff(basis.values) <= 0)


def test_whitened_directions_have_the_moment_of_the_ridge() -> None:
    basis = grass.second_moments(Tokens(), "mse", batches(), progress=False)["first"][0]
    moment = basis.vectors.T.astype(np.float64) @ np.diag(basis.values) @ basis.vectors
    white = basis.whitened(3, 0.5)
    expected = basis.values / (basis.values + 0.5 * basis.values.mean())
    np.testing.assert_allclose(white @ moment @ white.T, np.diag(expected[:3]), atol=1e-5)


def test_tokens_without_a_gradient_do_not_count() -> None:
    def first_token(model: nn.Module, batch: Any) -> torch.Tensor:
        return (model(batch[0])[:, 0] ** 2).sum(dim=1)

    model = Tokens()
    whole = grass.second_moments(model, first_token, batches(), progress=False)
    alone = grass.second_moments(
        model, first_token, [(x[:, :1], y) for x, y in batches()], progress=False
    )
    for name in whole.layers:
        for one, other in zip(whole[name], alone[name], strict=True):
            np.testing.assert_allclose(one.values, other.values, rtol=1e-4, atol=1e-5)


def test_saved_moments_give_the_same_bits(tmp_path: Path) -> None:
    model = Tokens()
    moments = grass.second_moments(model, "mse", batches(), progress=False)
    moments.save(tmp_path / "moments.npz")
    again = grass.SecondMoments.load(tmp_path / "moments.npz")
    assert again.fingerprint == moments.fingerprint
    plans = [
        grass.Plan.for_model(model, "kfac_grass", 8, moments=each) for each in (moments, again)
    ]
    assert plans[0].fingerprint == plans[1].fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["moments.npz"]


@pytest.mark.parametrize("place", [0, 100, 700, -300])
def test_damaged_moments_are_refused(tmp_path: Path, place: int) -> None:
    path = tmp_path / "moments.npz"
    grass.second_moments(Tokens(), "mse", batches(), progress=False).save(path)
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    for torn in (bytes(data), bytes(data[: len(data) // 2]), b""):
        path.write_bytes(torn)
        with pytest.raises(grass.DataError, match=r"SecondMoments\.load expects"):
            grass.SecondMoments.load(path)


def test_rows_of_a_plan_are_the_compressed_gradients(tmp_path: Path) -> None:
    model = Tokens()
    moments = grass.second_moments(model, "mse", batches(), progress=False)
    plan = grass.Plan.for_model(model, "kfac_grass", 8, moments=moments)
    store = grass.Attributor(model, "mse", plan).cache(
        batches(), tmp_path / "rows.grass", progress=False
    )
    x, y = map(torch.cat, zip(*batches(), strict=True))
    gradients = twin_rows(
        model,
        lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).sum((1, 2)),
        (x, y),
        8,
        plan.blocks,
    )
    for block, column in zip(plan.blocks, plan.columns, strict=True):
        expected = gradients[block.name].numpy() @ plan[block.name].to_dense().T
        found = store[:][:, column.offset : column.offset + column.width]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_bad_plans_are_refused() -> None:
    model = Tokens()
    moments = grass.second_moments(model, "mse", batches(), layers=["first"], progress=False)
    with pytest.raises(grass.SpecError, match="moments= with method 'kfac_grass'"):
        grass.Plan.for_model(model, "kfac_grass")
    with pytest.raises(grass.SpecError, match="and with no other"):
        grass.Plan.for_model(model, "grass", moments=moments)
    with pytest.raises(grass.SpecError, match="second moments must be one of 'first'"):
        grass.Plan.for_model(model, "kfac_grass", moments=moments)
    other = nn.Sequential()
    other.first = nn.Linear(5, 6)
    with pytest.raises(grass.SpecError, match="second moments of 6 inputs"):
        grass.Plan.for_model(other, "kfac_grass", moments=moments)
    with pytest.raises(grass.SpecError, match="linear layers, got none"):
        grass.second_moments(nn.Sequential(nn.LayerNorm(3)), "mse", batches())


def test_gradients_that_are_not_finite_are_refused() -> None:
    x, y = batches()[0]
    x[1, 0, 0] = torch.nan
    with pytest.raises(grass.NonFiniteError, match="second_moments expects finite"):
        grass.second_moments(Tokens(), "mse", [(x, y)], progress=False)
