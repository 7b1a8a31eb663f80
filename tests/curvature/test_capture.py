"""Per-sample gradients out of one backward pass, against one pass a sample, on whatever models do with parameters."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.curvature import slow
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from encore.curvature import UnsupportedParameterError, capture
from encore.errors import EncoreError

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
        return self.reflected(self.depthwise(hidden))


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
    Linears, Norms, Embeddings, Convolutions, Twice, Tied, Slices, Flat, Deep, InPlace, Unused, Partly, Checkpointed,
    Reentrant,
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


SHAPES = [(N, T), (1, T), (N, 1), (1, 1)]


@pytest.mark.parametrize(
    ("kind", "shape"),
    # one step is too short for the circular padding of Convolutions
    [(kind, shape) for kind in MODELS for shape in SHAPES if kind is not Convolutions or shape[1] > 1],
)
def test_equals_one_pass_a_sample(kind: Callable[[], Net], shape: tuple[int, int]) -> None:
    model = made(kind)
    tokens, real = model.inputs(*shape)
    check_all(model, lambda: model.loss(model(tokens, real)))


def test_several_passes_add_up_and_string_their_samples_together() -> None:
    model = made(Twice)
    batches = [model.inputs(3), model.inputs(2), model.inputs(1)]
    with capture(model, fisher=True, norms=True, keep=True) as c:
        for batch in batches:
            model.loss(model(*batch)).sum().backward()
    grads = [slow.per_sample(model, lambda batch=batch: model.loss(model(*batch))) for batch in batches]
    whole = {name: torch.cat([g[name] for g in grads]) for name in grads[0]}
    weights = torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(c.fisher, slow.fisher(whole))
    torch.testing.assert_close(c.sq_norms, slow.sq_norms(whole))
    torch.testing.assert_close(c.weighted_sum(weights), slow.weighted_sum(whole, weights))


def test_two_forward_passes_before_two_backward_passes() -> None:
    model = made(Linears)
    batches = [model.inputs(3), model.inputs(2)]
    with capture(model, norms=True) as c:
        losses = [model.loss(model(*batch)) for batch in batches]
        for loss in losses:
            loss.sum().backward()
    grads = [slow.per_sample(model, lambda batch=batch: model.loss(model(*batch))) for batch in batches]
    torch.testing.assert_close(c.sq_norms, torch.cat([slow.sq_norms(g) for g in grads]))


def test_a_scaled_mean_scales_the_gradients() -> None:
    model = made(Linears)
    batch = model.inputs()
    with capture(model, norms=True) as c:
        (2 * model.loss(model(*batch)).mean() / 3).backward()
    exact = slow.sq_norms(slow.per_sample(model, lambda: model.loss(model(*batch))))
    torch.testing.assert_close(c.sq_norms, exact * (2 / 3 / N) ** 2)


def test_fisher_is_added_to_tensors_that_are_given() -> None:
    model = made(Linears)
    batch = model.inputs()
    given = {name: torch.ones_like(weight) for name, weight in model.named_parameters()}
    with capture(model, fisher=given):
        model.loss(model(*batch)).sum().backward()
    exact = slow.fisher(slow.per_sample(model, lambda: model.loss(model(*batch))))
    torch.testing.assert_close(given, {name: value.detach() + 1 for name, value in exact.items()})


@pytest.mark.parametrize("kind", [Linears, Convolutions, Norms, Embeddings, Tied, Slices, Checkpointed, Reentrant])
def test_under_autocast_gradients_are_those_of_its_own_operands(kind: Callable[[], Net]) -> None:
    """A bf16 step rounds its weight gradients to bf16 a call; ours are not rounded: within that of the slow answer."""
    model = made(kind).float()
    tokens, real = model.inputs()

    def losses() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return model.loss(model(tokens, real.float()).float())

    with capture(model, fisher=True, norms=True) as c:
        losses().sum().backward()
    grads = slow.per_sample(model, losses)
    for name, value in slow.fisher(grads).items():
        assert c.fisher[name].dtype == torch.float32
        assert (c.fisher[name] - value).norm() <= 2e-2 * value.norm(), name
    torch.testing.assert_close(c.sq_norms, slow.sq_norms(grads), rtol=2e-2, atol=0)


def test_autocast_keeps_the_cast_input_as_a_plain_step_does() -> None:
    model = made(Linears).float()
    _, real = model.inputs()
    saved = []
    hooks, cast = (
        torch.autograd.graph.saved_tensors_hooks(saved.append, lambda x: x),
        torch.autocast("cpu", torch.bfloat16),
    )
    with capture(model, norms=True), hooks, cast:
        model.first(real.float())
    assert {tensor.dtype for tensor in saved if tensor.dim() == 3} == {torch.bfloat16}


def test_dropout_is_the_same_in_every_reduction_of_a_pass() -> None:
    model = nn.Sequential(nn.Linear(D, D), nn.Dropout(0.5), nn.Linear(D, 1)).double()
    x = torch.randn(N, T, D, dtype=torch.float64)
    with capture(model, fisher=True, norms=True, total=True) as c:
        model(x).square().sum((1, 2)).sum().backward()
    torch.testing.assert_close(c.sq_norms.sum(), sum(value.sum() for value in c.fisher.values()))


# ---------------------------------------------------------------------------------------------- what can't be read


class Raw(Net):
    def build(self) -> None:
        self.layer, self.raw, self.scale = (
            nn.Linear(D, D),
            nn.Parameter(torch.randn(D, D)),
            nn.Parameter(torch.ones(())),
        )

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return self.layer(real) @ self.raw.T * self.scale


class PartlyRaw(Net):
    """Read in one use, not in another."""

    def build(self) -> None:
        self.layer = nn.Linear(D, D)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return self.layer(real) @ self.layer.weight


class Columns(Net):
    def build(self) -> None:
        self.weight = nn.Parameter(torch.randn(D, 2 * D))

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return F.linear(real, self.weight[:, :D]) + F.linear(real, self.weight[:, D:].T[:D])


class Positions(Net):
    def build(self) -> None:
        self.table, self.layer = nn.Embedding(9, D), nn.Linear(D, D)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return self.layer(real + self.table(torch.arange(real.shape[1])))


class Shared(Positions):
    """The same, looked up as a batch of one."""

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return self.layer(real + self.table(torch.arange(real.shape[1])[None]))


class Flattened(Net):
    def build(self) -> None:
        self.layer = nn.Linear(D, D)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return self.layer(real.flatten(0, 1)).view_as(real)


class Renormed(Net):
    def build(self) -> None:
        self.table, self.renormed = nn.Embedding(V, D), nn.Embedding(V, D, max_norm=1.0)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return self.table(tokens) * self.renormed(tokens)


class MixedKinds(Net):
    """A matrix in one use, the scale of a norm in another."""

    def build(self) -> None:
        self.weight = nn.Parameter(torch.randn(D, D))

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return (
            F.linear(F.layer_norm(real[:, None] * real[:, :, None], (D,)), self.weight)
            + F.layer_norm(real[:, None, :1] * torch.ones(D, 1, dtype=real.dtype), (D, D), self.weight)[:, :, :T, :]
        )


class Batchwise(Net):
    """Samples see one another."""

    def build(self) -> None:
        self.layer, self.norm = nn.Linear(D, D), nn.BatchNorm1d(D, affine=False)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        return self.norm(self.layer(real).transpose(1, 2))


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        (Raw, {"raw", "scale"}),
        (PartlyRaw, {"layer.weight"}),
        (Columns, {"weight"}),
        (Positions, {"table.weight"}),
        (Shared, {"table.weight"}),
        (Flattened, {"layer.weight", "layer.bias"}),
        (Renormed, {"renormed.weight"}),
        (Batchwise, {"layer.weight", "layer.bias"}),
    ],
)
@pytest.mark.parametrize("t", [T, N], ids=["", "as many positions as samples"])
def test_is_refused_by_name_and_leaves_no_gradient(kind: Callable[[], Net], named: set[str], t: int) -> None:
    model = made(kind)
    tokens, real = model.inputs(N, t)
    with pytest.raises(UnsupportedParameterError) as caught, capture(model, fisher=True):
        model.loss(model(tokens, real)).sum().backward()
    assert caught.value.reasons.keys() == named
    assert all(weight.grad is None for weight in model.parameters())
    with capture(model, fisher=True, skip=named) as c:  # the rest is exact without them
        model.loss(model(tokens, real)).sum().backward()
    exact = slow.fisher(slow.per_sample(model, lambda: model.loss(model(tokens, real))))
    torch.testing.assert_close(c.fisher, {name: exact[name] for name in exact if name not in named})


def test_a_matrix_that_is_a_scale_too_is_refused() -> None:
    model = made(MixedKinds)
    tokens, real = model.inputs()
    why = "a matrix to one layer and a vector to another"
    with pytest.raises(UnsupportedParameterError, match=why), capture(model, fisher=True):
        model.loss(model(tokens, real)).sum().backward()


def test_one_sample_shows_an_outside_use_too() -> None:
    model = made(PartlyRaw)
    tokens, real = model.inputs(1)
    with pytest.raises(UnsupportedParameterError, match=r"layer\.weight"), capture(model, fisher=True):
        model.loss(model(tokens, real)).sum().backward()
    assert model.layer.weight.grad is None


def test_a_compiled_model_is_exact_or_refused() -> None:
    model = made(Linears)
    batch = model.inputs()
    compiled = torch.compile(model, backend="eager")
    try:
        with capture(model, norms=True) as c:
            model.loss(compiled(*batch)).sum().backward()
    except (UnsupportedParameterError, RuntimeError):
        return
    exact = slow.sq_norms(slow.per_sample(model, lambda: model.loss(model(*batch))))
    torch.testing.assert_close(c.sq_norms, exact)


def test_a_checkpoint_that_is_recomputed_without_taps_fails() -> None:
    """A function of its own, in no module of the captured one: nothing brings the mode back."""
    layer = nn.Linear(D, D).double()
    x = torch.randn(D, D, dtype=torch.float64, requires_grad=True)
    with pytest.raises(Exception, match=r"different number of tensors|metadata"), capture(layer, norms=True):
        checkpoint(lambda x: F.linear(x, layer.weight, layer.bias), x, use_reentrant=False).sin().sum(
            1
        ).sum().backward()


def test_the_loss_must_be_a_sum_of_one_a_sample() -> None:
    model = made(Linears)
    batch = model.inputs()
    with pytest.raises(EncoreError, match="a sum of one loss per sample"), capture(model, norms=True):
        model(*batch).square().sum().backward()
    with pytest.raises(EncoreError, match="a sum of one loss per sample"), capture(model, norms=True):
        torch.autograd.backward(model.loss(model(*batch)).sum())
    assert all(weight.grad is None for weight in model.parameters())


def test_backward_must_run_inside_the_block() -> None:
    model = made(Linears)
    batch = model.inputs()
    with capture(model, norms=True):
        losses = model.loss(model(*batch))
    with pytest.raises(EncoreError, match="after the capture block"):
        losses.sum().backward()


def test_results_of_a_failed_pass_are_not_given() -> None:
    model = made(Linears)
    batch = model.inputs()

    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            raise MemoryError

    taken = capture(model, norms=True)
    with pytest.raises(MemoryError), taken:
        model.loss(model.second(Fails.apply(model.first(batch[1])))).sum().backward()
    with pytest.raises(EncoreError, match="did not come to its end"):
        taken.sq_norms  # noqa: B018
    with pytest.raises(EncoreError, match="did not come to its end"), taken:
        model(*batch)


def test_what_was_not_asked_for_is_not_there() -> None:
    model = made(Linears)
    with capture(model, fisher=True) as c:
        pass
    for name in ("total", "sq_norms", "dots"):
        with pytest.raises(AttributeError, match="not requested"):
            getattr(c, name)
    with pytest.raises(AttributeError, match="keep"):
        c.weighted_sum(torch.ones(1))
    with pytest.raises(ValueError, match="not captured"):
        capture(model, directions=[{"nonsense": torch.ones(1)}])


def test_no_memory_of_a_pass_outlives_it() -> None:
    model = made(Linears)
    batch = model.inputs()
    with capture(model, norms=True) as c:
        hidden = model.first(batch[1])
        kept = weakref.ref(hidden)
        model.loss(model.second(hidden.tanh())).sum().backward()
        del hidden
        assert kept() is None
    mine = weakref.ref(c)
    del c
    assert mine() is None, "reference cycles hold what was captured until the garbage collector comes"
