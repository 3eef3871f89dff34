"""Losses: what the presets compute, and what capture refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from grass_rs.capture import Capture, find_blocks, resolve_loss
from grass_rs.errors import LossError, SpecError, UnsupportedLayerError
from per_example_twin import RowSink, assert_captured_rightly

if TYPE_CHECKING:
    from collections.abc import Callable

N = 5


class Fixed(nn.Module):
    """A model that returns given outputs."""

    def __init__(self, outputs: Any) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, *_: Tensor, **__: Tensor) -> Any:
        return self.outputs


def run(model: nn.Module, loss: Callable[[Any, Any], Any], batch: Any, n: int = N) -> None:
    with Capture(model, loss, find_blocks(model)) as capture:
        capture.run(batch, RowSink(n))


# Presets


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_cross_entropy_sums_over_positions(shape: tuple[int, ...]) -> None:
    logits, targets = torch.randn(N, 7, *shape), torch.randint(7, (N, *shape))
    found = resolve_loss("cross_entropy")(Fixed(logits), (torch.zeros(N), targets))
    for i in range(N):
        want = functional.cross_entropy(logits[i : i + 1], targets[i : i + 1], reduction="sum")
        assert torch.allclose(found[i], want)


def test_cross_entropy_takes_class_probabilities() -> None:
    logits, targets = torch.randn(N, 7), torch.rand(N, 7).softmax(1)
    found = resolve_loss("cross_entropy")(Fixed(logits), (torch.zeros(N), targets))
    assert torch.allclose(found, -(targets * logits.log_softmax(1)).sum(1))


@pytest.mark.parametrize("shape", [(), (1,), (4,), (2, 3)])
def test_mse_sums_over_outputs(shape: tuple[int, ...]) -> None:
    outputs, targets = torch.randn(N, *shape), torch.randn(N, *shape)
    found = resolve_loss("mse")(Fixed(outputs), (torch.zeros(N), targets))
    assert torch.allclose(found, (outputs - targets).square().reshape(N, -1).sum(1))


@pytest.mark.parametrize("shape", [(), (4,)])
def test_binary_cross_entropy_takes_logits(shape: tuple[int, ...]) -> None:
    logits, targets = torch.randn(N, *shape), torch.randint(2, (N, *shape))
    found = resolve_loss("binary_cross_entropy")(Fixed(logits), (torch.zeros(N), targets))
    right = torch.where(targets == 1, logits.sigmoid(), 1 - logits.sigmoid())
    assert torch.allclose(found, -right.log().reshape(N, -1).sum(1), atol=1e-5)


def test_causal_lm_predicts_the_next_token() -> None:
    logits, labels = torch.randn(N, 6, 11), torch.randint(11, (N, 6))
    labels[1, 3:] = -100
    labels[2] = -100
    found = resolve_loss("causal_lm")(Fixed(logits), (labels, labels))
    for i in range(N):
        terms = [
            -logits[i, t].log_softmax(0)[labels[i, t + 1]]
            for t in range(5)
            if labels[i, t + 1] != -100
        ]
        assert float(found[i]) == pytest.approx(float(sum(terms)), rel=1e-5)


def test_outputs_may_be_an_object_with_logits() -> None:
    outputs, targets = torch.randn(N, 3), torch.randn(N, 3)
    loss = resolve_loss("mse")
    found = loss(Fixed(SimpleNamespace(logits=outputs)), (torch.zeros(N), targets))
    assert torch.equal(found, loss(Fixed(outputs), (torch.zeros(N), targets)))


def test_inputs_may_be_a_mapping_of_keywords() -> None:
    class Adds(nn.Module):
        def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
            return left + right

    inputs = {"left": torch.ones(N, 2), "right": torch.ones(N, 2)}
    found = resolve_loss("mse")(Adds(), (inputs, torch.zeros(N, 2)))
    assert torch.equal(found, torch.full((N,), 8.0))


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("cross_entropy", (N, 4)),
        ("mse", (N, 4, 4)),
        ("binary_cross_entropy", (N, 4, 4)),
        ("causal_lm", (N, 4)),
    ],
)
def test_losses_of_half_precision_outputs_are_float32(name: str, targets: tuple[int, ...]) -> None:
    logits = torch.randn(N, 4, 4).to(torch.bfloat16)
    batch = (torch.zeros(N), torch.randint(2, targets))
    found, want = (resolve_loss(name)(Fixed(x), batch) for x in (logits, logits.float()))
    assert found.dtype == torch.float32
    assert torch.equal(found, want)


@pytest.mark.parametrize(
    ("name", "outputs", "targets", "message"),
    [
        ("cross_entropy", (N, 6, 3), (N, 6), r"got \(5, 6, 3\) and \(5, 6\): move the classes"),
        ("cross_entropy", (N,), (N,), r"got \(5,\) and \(5,\): move the classes"),
        ("mse", (N, 1), (N,), r"of one shape, got \(5, 1\) and \(5,\): reshape the targets"),
        ("binary_cross_entropy", (N, 2), (N,), r"of one shape, got \(5, 2\) and \(5,\)"),
        ("causal_lm", (N, 6, 3), (N, 5), r"got \(5, 6, 3\) and \(5, 5\): align the labels"),
        ("causal_lm", (N, 3), (N,), r"expects logits \(n, t, vocabulary\)"),
    ],
)
def test_presets_refuse_other_shapes(
    name: str, outputs: tuple[int, ...], targets: tuple[int, ...], message: str
) -> None:
    batch = (torch.zeros(N), torch.zeros(targets, dtype=torch.long))
    with pytest.raises(LossError, match=message):
        resolve_loss(name)(Fixed(torch.zeros(outputs)), batch)


def test_presets_refuse_other_batches_and_outputs() -> None:
    with pytest.raises(LossError, match=r"mse expects batches \(inputs, targets\), got dict"):
        resolve_loss("mse")(Fixed(torch.zeros(N)), {"inputs": torch.zeros(N)})
    with pytest.raises(LossError, match=r"object with it as \.logits, got tuple: pass your own"):
        resolve_loss("mse")(Fixed((torch.zeros(N),)), (torch.zeros(N), torch.zeros(N)))


def test_unknown_names_are_refused_with_the_closest() -> None:
    with pytest.raises(SpecError, match="got 'crossentropy': did you mean 'cross_entropy'"):
        resolve_loss("crossentropy")
    with pytest.raises(SpecError, match=r"callable \(model, batch\) -> losses \(n,\), got int"):
        resolve_loss(3)  # type: ignore[arg-type]


def test_a_callable_is_its_own_loss() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch)

    assert resolve_loss(loss) is loss


# What a loss may not return


def outputs_of(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().sum(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda losses: losses.mean(), r"shape \(5,\), got a scalar: do not average or sum"),
        (lambda losses: losses[:, None], r"shape \(5,\), got \(5, 1\): sum over all axes"),
        (lambda losses: losses[:-1], r"shape \(5,\), got \(4,\)"),
        (lambda losses: losses.tolist(), r"got list: return the tensor of per-example losses"),
        (lambda losses: losses.long(), r"got dtype torch\.int64: return real losses"),
        (lambda losses: losses.detach(), r"got a tensor without a graph: do not detach"),
    ],
)
def test_wrong_losses_are_refused(change: Callable[[Tensor], Any], message: str) -> None:
    with pytest.raises(LossError, match=message):
        run(nn.Linear(3, 2), lambda m, b: change(outputs_of(m, b)), torch.randn(N, 3))


def test_a_loss_under_no_grad_is_refused() -> None:
    with pytest.raises(LossError, match=r"do not detach or use torch\.no_grad\(\) in the loss"):
        run(nn.Linear(3, 2), torch.no_grad()(outputs_of), torch.randn(N, 3))


# Losses that tie examples together


def model_of_rows() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def contrastive(model: nn.Module, batch: Tensor) -> Tensor:
    outputs = model(batch)
    return functional.cross_entropy(outputs @ outputs.T, torch.arange(len(batch)), reduction="none")


def batch_statistics(model: nn.Module, batch: Tensor) -> Tensor:
    outputs = model(batch)
    scale = outputs.var(0, correction=0) + 0.1
    return ((outputs - outputs.mean(0)) / scale).square().sum(1)


def random_numbers(model: nn.Module, batch: Tensor) -> Tensor:
    return outputs_of(model, batch + torch.randn_like(batch))


@pytest.mark.parametrize(
    "loss",
    [
        lambda m, b: outputs_of(m, b) / len(b),
        lambda m, b: outputs_of(m, b).mean().expand(len(b)),
        lambda m, b: outputs_of(m, b) - outputs_of(m, b).mean().detach(),
        contrastive,
        batch_statistics,
        random_numbers,
    ],
    ids=["division by n", "mean", "baseline", "contrastive", "batch statistics", "random"],
)
def test_losses_that_depend_on_the_batch_are_refused(loss: Callable[[Any, Any], Tensor]) -> None:
    batch = torch.randn(N, 3)
    with pytest.raises(
        LossError, match=r"example \d has .* in a batch of 3 and .* in the batch of 5"
    ):
        run(model_of_rows(), loss, batch)
    with pytest.raises(LossError, match=r"example \d has .* in a batch of 2 and .*: return plain"):
        run(model_of_rows(), loss, batch[:2], 2)


@pytest.mark.parametrize("model", [model_of_rows(), nn.LayerNorm(3)], ids=["linear", "other"])
def test_ties_are_found_after_batches_of_one(model: nn.Module) -> None:
    batch = torch.randn(N, 3)
    with Capture(model, contrastive, find_blocks(model)) as capture:
        capture.run(batch[:1], RowSink(1))
        with pytest.raises(LossError, match="the same value for an example"):
            capture.run(batch, RowSink(N))


def test_a_random_loss_is_refused_for_single_examples() -> None:
    with pytest.raises(LossError, match="no random numbers"):
        run(model_of_rows(), random_numbers, torch.randn(1, 3), 1)


def tied_in_the_gradient(model: nn.Module, batch: Tensor) -> Tensor:
    losses = outputs_of(model, batch)
    others = losses.sum()
    return losses + (others - others.detach())


def test_losses_tied_in_the_gradient_alone_are_refused() -> None:
    with pytest.raises(
        LossError, match=r"gradient of example \d's loss reaches example \d: return"
    ):
        run(model_of_rows(), tied_in_the_gradient, torch.randn(N, 3))


def test_ties_are_found_without_float_inputs() -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    with pytest.raises(LossError, match="in every linear layer the gradient of one example's loss"):
        run(model, tied_in_the_gradient, torch.arange(N))


def words_then(layer: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(9, 4), layer)


def by_a_branch(loss: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Tensor]:
    """Return the loss behind a branch on the data, which vmap refuses."""

    def branched(model: nn.Module, batch: Tensor) -> Tensor:
        return loss(model, batch if int(batch.sum()) >= 0 else -batch)

    return branched


@pytest.mark.parametrize("change", [lambda loss: loss, by_a_branch], ids=["vmap", "loop"])
@pytest.mark.parametrize(
    ("layer", "layers"),
    [(nn.LayerNorm(4), None), (nn.Linear(4, 3), ["0"])],
    ids=["norm", "linear left out"],
)
def test_ties_are_found_without_float_inputs_and_linear_blocks(
    layer: nn.Module, layers: list[str] | None, change: Callable[[Any], Any]
) -> None:
    model, batch = words_then(layer), torch.arange(N)
    blocks = find_blocks(model, layers)
    with Capture(model, change(outputs_of), blocks) as capture:
        capture.run(batch, RowSink(N))
    message = r"gradient of block '\d' is another for an example alone than in a batch of"
    with Capture(model, change(tied_in_the_gradient), blocks) as capture:
        # Alone it is not tied; that the loop is taken since must not hide the tie later.
        capture.run(batch[:1], RowSink(1))
        for n in (N, 2):
            with pytest.raises(LossError, match=rf"{message} {min(n, 3)}: return losses"):
                capture.run(batch[:n], RowSink(n))


def test_gradients_of_mere_rounding_are_no_tie(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="grass_rs")

    class Scales(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.7))
            self.embed = nn.Embedding(9, 64)
            self.body, self.head = nn.Linear(64, 256), nn.Linear(256, 256)

        def forward(self, words: Tensor) -> Tensor:
            # The scale cancels: autograd's gradient of it is rounding alone.
            hidden = self.body(self.embed(words)) * self.scale
            return self.head(functional.normalize(hidden, dim=-1)).flatten(1)

    torch.manual_seed(0)
    run(Scales(), outputs_of, torch.randint(9, (N, 4)))
    assert caplog.messages == []


def test_a_tie_between_non_finite_examples_is_seen() -> None:
    batch = torch.randn(N, 3)
    batch[0] = torch.nan
    with pytest.raises(LossError, match="the same value for an example"):
        run(model_of_rows(), lambda m, b: outputs_of(m, b).mean().expand(len(b)), batch)


def test_a_loss_that_needs_more_than_one_example_is_refused() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return outputs_of(model, batch.reshape(N, 3))

    with pytest.raises(LossError, match=r"fails on a batch of one of them \(RuntimeError: shape"):
        run(model_of_rows(), loss, torch.randn(N, 3))


# Modes


def test_training_mode_in_the_loss_is_refused() -> None:
    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        model.train()
        return outputs_of(model, batch)

    with pytest.raises(
        LossError, match=r"to stay in evaluation mode, but 'the model' is in training"
    ):
        run(nn.Sequential(nn.Linear(3, 2), nn.Dropout()), loss, torch.randn(N, 3))
    message = r"layer '1' \(BatchNorm1d\) is in training mode, so it would normalise with the stat"
    with pytest.raises(UnsupportedLayerError, match=message):
        run(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), loss, torch.randn(N, 3))


def test_batch_norm_without_running_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False))
    message = (
        r"layer '1' \(BatchNorm1d\) keeps no running statistics.*: set track_running_stats=True"
    )
    with pytest.raises(UnsupportedLayerError, match=message):
        run(model, outputs_of, torch.randn(N, 3))


def test_inference_mode_is_refused() -> None:
    model, batch = nn.Linear(3, 2), torch.randn(N, 3)
    with (
        torch.inference_mode(),
        pytest.raises(LossError, match=r"torch\.inference_mode\(\) is on: leave it, or use"),
    ):
        run(model, outputs_of, batch)


@pytest.mark.parametrize("name", ["mse", "binary_cross_entropy"])
def test_targets_may_have_no_axis_but_the_examples(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0))
    batch = torch.randn(6, 4), torch.rand(6)
    blocks = assert_captured_rightly(model, resolve_loss(name), batch, 6, 1e-5)
    assert len(blocks) == 1


def test_a_mean_is_refused_however_small_the_losses_are() -> None:
    model = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        model.weight *= 1e-5
    with (
        pytest.raises(LossError, match="divided by the batch size"),
        Capture(model, lambda m, x: m(x).square().sum(1) / len(x), find_blocks(model)) as capture,
    ):
        capture.run(torch.randn(8, 4), RowSink(8))


@pytest.mark.parametrize("captured", [nn.Linear(4, 2), nn.LayerNorm(4)])
def test_a_loss_of_another_model_is_refused(captured: nn.Module) -> None:
    other = nn.Linear(4, 2)
    with (
        pytest.raises(LossError, match="compute it with the given model"),
        Capture(captured, lambda _, x: other(x).sum(1), find_blocks(captured)) as capture,
    ):
        capture.run(torch.randn(8, 4), RowSink(8))
