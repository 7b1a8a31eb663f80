"""Per-sample gradients out of one backward pass, against one pass a sample, on whatever models do with parameters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.curvature import slow
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encore.curvature import capture

N, T, D, V = 4, 6, 8, 11


class Net(nn.Module):
    """A model in float64, with tokens and a real-valued input [N, T, D] to choose from."""

    def __init__(self) -> None:
        super().__init__()
        self.build()
        self.double()

    def build(self) -> None: ...

    def inputs(self, n: int = N, t: int = T) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(n * 100 + t)
        real = torch.randn(n, t, D, generator=generator, dtype=torch.float64)
        return torch.randint(V, (n, t), generator=generator), real

    def loss(self, out: Tensor) -> Tensor:
        return out.sin().flatten(1).sum(1) * torch.linspace(1, 2, len(out), dtype=out.dtype)


class Linears(Net):
    def build(self) -> None:
        self.first, self.second, self.bare = nn.Linear(D, 5), nn.Linear(5, D), nn.Linear(D, 3, bias=False)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return self.bare(self.second(self.first(real).tanh()))


class Norms(Net):
    def build(self) -> None:
        self.layer, self.rms = nn.LayerNorm(D), nn.RMSNorm(D)
        self.wide, self.plain = nn.LayerNorm((T, D)), nn.LayerNorm(D, bias=False)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        real = self.plain(self.rms(self.layer(real)) + real)
        return self.wide(real) if real.shape[1] == T else real


class Embeddings(Net):
    """Duplicates in every sample, a padding row, and indices that are a strided view."""

    def build(self) -> None:
        self.padded, self.plain = nn.Embedding(V, D, padding_idx=2), nn.Embedding(V, D)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        both = torch.stack([tokens % 3, tokens], 1)  # [N, 2, T]
        return self.padded(both[:, 0]) * self.plain(both[:, 1]) + torch.embedding(self.plain.weight, tokens)


class Convolutions(Net):
    def build(self) -> None:
        self.plain = nn.Conv1d(D, 6, 3, stride=2, padding=1)
        self.grouped = nn.Conv1d(6, 4, 3, padding="same", dilation=2, groups=2, bias=False)
        self.depthwise = nn.Conv1d(4, 8, 1, groups=4)
        self.reflected = nn.Conv1d(8, 3, 2, padding=1, padding_mode="circular")

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        hidden = self.grouped(self.plain(real.transpose(1, 2)).relu())
        return torch.conv1d(self.reflected(self.depthwise(hidden)), self.plain.weight[:, :3, :1])  # and a frozen use


class Twice(Net):
    """One layer called twice, and one weight under two names."""

    def build(self) -> None:
        self.layer, self.norm = nn.Linear(D, D), nn.LayerNorm(D)
        self.other = nn.Linear(D, D, bias=False)
        self.other.weight = self.layer.weight

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        hidden = self.norm(self.layer(self.norm(self.layer(real)).tanh()))
        return self.other(hidden.mean(1, keepdim=True)) * hidden


class Tied(Net):
    """The table of tokens is the head's weight too."""

    def build(self) -> None:
        self.table, self.head = nn.Embedding(V, D, padding_idx=1), nn.Linear(D, V)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return self.head(self.table(tokens).tanh() + self.table(tokens.flip(1)))


class Slices(Net):
    """Rows of a packed weight: apart from one another, overlapping, and of a packed bias."""

    def build(self) -> None:
        self.weight, self.bias = nn.Parameter(torch.randn(3 * D, D)), nn.Parameter(torch.randn(3 * D))

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        q, k, v = F.linear(real, self.weight, self.bias).chunk(3, -1)
        q = F.linear(q.tanh(), self.weight[:D], self.bias[:D])
        k = F.linear(k.tanh(), self.weight[D - 2 : 2 * D - 2])
        return q * k + F.linear(v, self.weight.chunk(3)[2], self.bias[-D:])


class Flat(Net):
    """No time: [N, D]."""

    def build(self) -> None:
        self.table, self.layer, self.norm = nn.Embedding(V, D), nn.Linear(D, 3), nn.LayerNorm(3)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return self.norm(self.layer(self.table(tokens[:, 0]) + real[:, 0]))


class Deep(Net):
    """Two positions' axes: [N, T, T, D]."""

    def build(self) -> None:
        self.layer, self.norm = nn.Linear(D, 3), nn.LayerNorm(D)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return self.layer(self.norm(real[:, None] * real[:, :, None]))


class InPlace(Net):
    """Outputs of captured layers are changed in place."""

    def build(self) -> None:
        self.layer, self.norm = nn.Linear(D, D), nn.LayerNorm(D)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return F.relu(self.norm(F.relu(self.layer(real), inplace=True)).mul_(2), inplace=True)


class Unused(Net):
    def build(self) -> None:
        self.layer, self.unused = nn.Linear(D, D), nn.Linear(D, D)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        self.unused(real)
        return self.layer(real)


class Partly(Net):
    """Frozen: a whole layer, a weight without its bias, a bias without its weight."""

    def build(self) -> None:
        self.frozen, self.weight, self.bias, self.last = (nn.Linear(D, D) for _ in range(4))
        self.frozen.requires_grad_(False)
        self.weight.bias.requires_grad_(False)
        self.bias.weight.requires_grad_(False)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return self.last(self.frozen(self.bias(self.weight(real)).tanh()))


class Checkpointed(Net):
    """Blocks that are recomputed, with a layer that two of them share, and one between them."""

    reentrant = False

    def build(self) -> None:
        self.table = nn.Embedding(V, D)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(D, D), nn.Tanh(), nn.LayerNorm(D)) for _ in range(3))
        self.blocks[2][0] = self.blocks[0][0]
        self.between = nn.Linear(D, D)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        hidden = self.table(tokens) + real
        for block in self.blocks:
            hidden = self.between(checkpoint(block, hidden, use_reentrant=self.reentrant))
        return hidden


class Reentrant(Checkpointed):
    reentrant = True


MODELS = [
    Linears, Norms, Embeddings, Twice, Tied, Slices, Flat, Deep, InPlace, Unused, Partly, Checkpointed, Reentrant,
]  # fmt: skip


def made(kind: Callable[[], Net]) -> Net:
    torch.manual_seed(0)
    return kind()


def check_all(model: nn.Module, losses: Callable[[], Tensor], rtol: float = 1e-10) -> None:
    """Everything that `capture` can give at once, alone, and after the fact."""
    grads = slow.per_sample(model, losses)
    count = len(next(iter(grads.values())))
    directions = [{name: torch.randn_like(g[0]) for name, g in grads.items()} for _ in range(2)]
    del directions[1][next(iter(grads))]
    weights = torch.randn(count, dtype=torch.float64)

    def same(found: object, expected: object) -> None:
        torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol)

    before = {name: (weight.grad, weight.requires_grad) for name, weight in model.named_parameters()}
    with capture(model, fisher=True, norms=True, directions=directions, total=True, keep=True) as c:
        losses().sum().backward()
    same(c.fisher, slow.fisher(grads))
    same(c.sq_norms, slow.sq_norms(grads))
    same(c.dots, slow.dots(grads, directions))
    same(c.total, slow.weighted_sum(grads, torch.ones_like(weights)))
    same(c.weighted_sum(weights), slow.weighted_sum(grads, weights))
    for asked, expected in (
        ({"fisher": True}, slow.fisher(grads)),
        ({"norms": True}, slow.sq_norms(grads)),
        ({"directions": directions}, slow.dots(grads, directions)),
        ({"total": True}, slow.weighted_sum(grads, torch.ones_like(weights))),
    ):
        with capture(model, **asked) as c:  # type: ignore[arg-type]
            losses().sum().backward()
        (name,) = asked
        same(getattr(c, {"norms": "sq_norms", "directions": "dots"}.get(name, name)), expected)
    assert before == {name: (weight.grad, weight.requires_grad) for name, weight in model.named_parameters()}


@pytest.mark.parametrize("shape", [(N, T), (1, T), (N, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_equals_one_pass_a_sample(kind: Callable[[], Net], shape: tuple[int, int]) -> None:
    model = made(kind)
    tokens, real = model.inputs(*shape)
    check_all(model, lambda: model.loss(model(tokens, real)))
