"""FactGraSS: masks on both factors, their product summed over tokens, then an SJLT."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import grass_rs as grass
import moments
import reference
import specs

if TYPE_CHECKING:
    from conftest import Backend


@given(spec=specs.factgrasses(), n=st.integers(0, 4), tokens=st.integers(0, 5))
def test_factgrass_equals_twin(backend: Backend, spec: dict[str, Any], n: int, tokens: int) -> None:
    compressor = specs.build(spec)
    matrix = reference.dense(spec)
    a, g = specs.inputs(spec, n, tokens=tokens)
    np.testing.assert_allclose(compressor.to_dense(), matrix, rtol=1e-6, atol=0)
    specs.assert_compressed(
        backend.numpy(compressor(backend.array(a), backend.array(g))), matrix, a, g
    )


@given(
    d_in=st.integers(1, 60),
    d_out=st.integers(1, 60),
    k=st.integers(1, 300),
    seed=specs.seeds,
    kind=specs.kinds,
)
def test_default_masks_keep_the_root_of_four_times_the_output(
    d_in: int, d_out: int, k: int, seed: int, kind: str
) -> None:
    compressor = grass.FactGraSS(d_in, d_out, k, seed=seed, kind=kind)
    expected = reference.factgrass(d_in, d_out, k, seed, kind=kind)
    assert compressor.spec == expected
    side = int(np.ceil(np.sqrt(4 * k)))
    assert expected["mask_in"]["output_dim"] == min(side, d_in)
    assert expected["mask_out"]["output_dim"] == min(side, d_out)


def test_count_means_a_random_mask() -> None:
    counted = grass.FactGraSS(20, 10, 4, seed=3, mask_in=8, mask_out=5)
    explicit = grass.FactGraSS(
        20,
        10,
        4,
        seed=3,
        mask_in=grass.RandomMask(20, 8, seed=reference.derive(3, "in")),
        mask_out=grass.RandomMask(10, 5, seed=reference.derive(3, "out")),
    )
    assert counted == explicit


@pytest.mark.parametrize(("tokens", "d_in", "d_out", "k"), [(300, 65, 33, 48), (1000, 24, 8, 500)])
def test_many_tokens_equal_twin(tokens: int, d_in: int, d_out: int, k: int) -> None:
    spec = reference.factgrass(d_in, d_out, k, 3)
    a, g = specs.inputs(spec, n=3, tokens=tokens)
    specs.assert_compressed(specs.build(spec)(a, g), reference.dense(spec), a, g)


@pytest.mark.parametrize("kind", ["cyclic", "iid"])
@given(first=st.integers(0, 2**64 - 3000))
@example(first=0)
def test_factgrass_is_unbiased(kind: str, first: int) -> None:
    moments.assert_unbiased(
        lambda seed: grass.FactGraSS(6, 5, 4, seed=seed, mask_in=4, mask_out=3, kind=kind),
        np.kron(moments.mask(5, 3), moments.mask(6, 4)) * moments.sketch(30, 4),
        range(first, first + 3000),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_features": 0}, "in_features"),
        ({"out_features": 0}, "out_features"),
        ({"output_dim": 0}, "output_dim"),
        ({"mask_in": 0}, "mask_in"),
        ({"mask_out": 0}, "mask_out"),
        ({"mask_in": 9}, "mask_in"),
        ({"mask_out": 6}, "mask_out"),
        ({"mask_in": grass.Mask([0], 5)}, "mask_in"),
        ({"mask_out": grass.RandomMask(8, 2, seed=0)}, "mask_out"),
        ({"mask_in": grass.SJLT(8, 4, seed=0)}, "mask_in"),
        ({"kind": "idd"}, "iid"),
    ],
)
def test_factgrass_refuses_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    good = {"in_features": 8, "out_features": 5, "output_dim": 4, "seed": 0}
    with pytest.raises(grass.SpecError, match=message):
        grass.FactGraSS(**(good | arguments))
