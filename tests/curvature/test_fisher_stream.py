"""The streaming Fisher: the same as one batch, whatever the batches; loops over samples where it must, and says so."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.curvature import slow
from torch import Tensor, nn

from encore.curvature import CurvatureWarning, UnsupportedParameterError, fisher
from encore.errors import EncoreError
from encore.hashing import module_sha256

N, T, D = 6, 5, 4


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop, self.last = nn.Linear(D, D), nn.LayerNorm(D), nn.Dropout(0.5), nn.Linear(D, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.norm(self.first(x).tanh())))

    def losses(self, x: Tensor) -> Tensor:
        return self(x).square().mean((1, 2))


class Awkward(Model):
    """Beside what can be read: a raw product, a table of positions that the batch shares, a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.raw, self.positions = nn.Parameter(torch.randn(D, D)), nn.Embedding(N, D)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward((x + self.positions(torch.arange(x.shape[1]))) @ self.raw * self.scale)


def made(kind: type[Model], t: int = T) -> tuple[Model, Tensor]:
    torch.manual_seed(0)
    return kind().double().eval(), torch.randn(N, t, D, dtype=torch.float64)


def expected(model: Model, x: Tensor) -> dict[str, Tensor]:
    return slow.fisher(slow.per_sample(model, lambda: model.losses(x)))


@pytest.mark.parametrize("sizes", [(N,), (1,) * N, (2, 4), (3, 2, 1)], ids=str)
def test_the_sum_over_any_batches_is_that_of_one_pass_a_sample(sizes: tuple[int, ...]) -> None:
    model, x = made(Model)
    result = fisher(model, x.split(sizes), model.losses, dtype=torch.float64)
    torch.testing.assert_close(result.values, expected(model, x), rtol=1e-12, atol=1e-12)
    assert (result.samples, result.mode, result.model) == (N, "empirical", module_sha256(model))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [torch.float32, torch.float64, torch.bfloat16])
def test_is_summed_in_the_type_asked_for(kind: torch.dtype, weights: torch.dtype) -> None:
    model, x = made(Model)
    exact = expected(model, x)
    result = fisher(model.to(weights), x.to(weights).split(2), model.losses, dtype=kind)
    assert {value.dtype for value in result.values.values()} == {kind}
    rtol = 0.1 if weights == torch.bfloat16 else 1e-5
    for name, value in result.values.items():
        assert (value - exact[name]).norm() <= rtol * exact[name].norm()


def test_the_module_stays_as_it_was() -> None:
    model, x = made(Model)
    model.train()
    model.norm.eval()
    model.first.bias.requires_grad_(False)
    model.last.weight.grad = marked = torch.ones_like(model.last.weight)
    result = fisher(model, [x], model.losses)
    assert "first.bias" not in result.values
    assert model.last.weight.grad is marked
    assert (marked == 1).all()
    assert model.first.weight.grad is None
    assert (model.training, model.norm.training, model.drop.training) == (True, False, True)
    assert not model.first.bias.requires_grad
    assert model.first.weight.requires_grad
    assert not model.last.weight._backward_hooks
    model.eval()  # dropout was off
    torch.testing.assert_close(result.values["last.weight"].double(), expected(model, x)["last.weight"])


def test_what_one_pass_cannot_serve_is_looped_over_and_named_once() -> None:
    model, x = made(Awkward)
    model.raw.grad = marked = torch.ones_like(model.raw)
    with pytest.warns(CurvatureWarning) as caught:
        result = fisher(model, x.split(3), model.losses, dtype=torch.float64)
    (warning,) = caught
    assert all(name in str(warning.message) for name in ("raw", "positions.weight", "scale"))
    assert not any(name in str(warning.message) for name in ("first.weight", "norm", "last"))
    assert model.raw.grad is marked
    assert (marked == 1).all()
    torch.testing.assert_close(result.values, expected(model, x), rtol=1e-12, atol=1e-12)


def test_as_many_positions_as_samples_are_not_taken_for_samples() -> None:
    model, x = made(Awkward, t=N)
    with pytest.warns(CurvatureWarning, match="positions.weight"):
        result = fisher(model, [x], model.losses, dtype=torch.float64)
    torch.testing.assert_close(result.values, expected(model, x), rtol=1e-12, atol=1e-12)


def test_a_batch_that_comes_second_is_not_taken_for_the_first() -> None:
    model, x = made(Model, t=N)
    with pytest.warns(CurvatureWarning, match="keep the samples apart"):
        result = fisher(
            model, [x], lambda x: model(x.transpose(0, 1)).square().mean((0, 2)), dtype=torch.float64
        )  # [T, N, D], and T = N
    torch.testing.assert_close(result.values, expected(model, x), rtol=1e-12, atol=1e-12)


class Counted(nn.Module):
    """Autograd divides the gradient of an index by how often the batch has it; a sample alone knows only its own."""

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(7, D, padding_idx=padding_idx, scale_grad_by_freq=True)

    def losses(self, tokens: Tensor) -> Tensor:
        return self.table(tokens).tanh().square().mean((1, 2))


@pytest.mark.parametrize("padding_idx", [None, 2])
def test_case_D10_an_embedding_scaled_by_frequency_is_exact(padding_idx: int | None) -> None:
    torch.manual_seed(0)
    model, tokens = Counted(padding_idx).double(), torch.randint(7, (N, 9))
    exact = torch.zeros(7, D, dtype=torch.float64)
    for sample in tokens:  # each alone, by plain autograd
        exact += torch.autograd.grad(model.losses(sample[None]).sum(), model.table.weight)[0].square()
    for size in (1, 2, N):
        result = fisher(model, tokens.split(size), model.losses, dtype=torch.float64)
        torch.testing.assert_close(result.values["table.weight"], exact, rtol=1e-12, atol=1e-12)


def test_case_D10_where_samples_are_not_apart_such_an_embedding_is_refused() -> None:
    torch.manual_seed(0)
    model, tokens = Counted().double(), torch.randint(7, (N, 9))

    def losses(tokens: Tensor) -> Tensor:
        return model.table(tokens.flatten()).view(*tokens.shape, D).square().mean((1, 2))

    with pytest.raises(UnsupportedParameterError, match=r"table\.weight: its gradient is scaled by how often"):
        fisher(model, [tokens], losses)


def test_multihead_attention_of_torch_is_exact_too() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(D, 2, batch_first=True).double()
    x = torch.randn(N, T, D, dtype=torch.float64)

    def losses(x: Tensor) -> Tensor:
        return attention(x, x, x)[0].square().mean((1, 2))

    with pytest.warns(CurvatureWarning, match="in_proj_weight"):
        result = fisher(attention, x.split(4), losses, dtype=torch.float64)
    exact = slow.fisher(slow.per_sample(attention, lambda: losses(x)))
    torch.testing.assert_close(result.values, exact, rtol=1e-12, atol=1e-12)


def test_a_use_that_comes_up_later_is_refused() -> None:
    model, x = made(Model)

    def losses(x: Tensor) -> Tensor:
        return model.losses(x) if len(x) == 4 else F.linear(x, model.first.weight.T).square().mean((1, 2))

    with pytest.raises(UnsupportedParameterError, match=r"first\.weight"):
        fisher(model, x.split([4, 2]), losses)
    assert model.first.weight.grad is None


def test_losses_must_be_one_a_sample() -> None:
    model, x = made(Model)
    with pytest.raises(EncoreError, match="one differentiable loss per sample"):
        fisher(model, [x], lambda x: model.losses(x).mean())
    with pytest.raises(EncoreError, match="no trainable parameter"):
        fisher(model.requires_grad_(False), [x], model.losses)
