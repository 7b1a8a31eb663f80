"""Every trainable parameter of both MusicGens: transformers' own, and audiocraft's way of building one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.curvature import slow
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen
from torch import Tensor, nn

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.curvature import capture


def check_every_parameter(module: nn.Module, losses: object, rtol: float) -> None:
    grads = slow.per_sample(module, losses)  # type: ignore[arg-type]
    assert all(grad.any() for grad in grads.values()), "a parameter that the loss does not depend on tests nothing"
    directions = [{name: torch.randn_like(grad[0]) for name, grad in grads.items()}]
    weights = torch.randn(len(next(iter(grads.values()))), dtype=torch.float64)
    with capture(module, fisher=True, norms=True, directions=directions, total=True, keep=True) as c:
        losses().sum().backward()  # type: ignore[operator]
    pairs = [
        (c.fisher, slow.fisher(grads)),
        (c.total, slow.weighted_sum(grads, torch.ones_like(weights))),
        (c.weighted_sum(weights), slow.weighted_sum(grads, weights)),
        ({"": c.sq_norms}, {"": slow.sq_norms(grads)}),
        ({"": c.dots}, {"": slow.dots(grads, directions)}),
    ]
    for found, expected in pairs:
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert (found[name] - value).norm() <= rtol * value.norm(), name


# --------------------------------------------------------------------------------------------------- transformers


@pytest.fixture(scope="module", params=[1, 2], ids=["mono", "stereo"])
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MusicgenBackend:
    folder = write_tiny_musicgen(tmp_path_factory.mktemp("model"), channels=request.param)
    backend = MusicgenBackend.load(str(folder), offline=True)
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in backend.module.parameters():  # fresh norms and biases are ones and zeros
            weight += 0.1 * torch.randn_like(weight)
    backend.model.double()
    return backend


def clips(backend: MusicgenBackend, *lengths: int) -> list[Clip]:
    generator = torch.Generator().manual_seed(0)
    return [
        Clip(str(i), CAPTIONS[i % 3], torch.randint(CODES, (backend.codebooks, t), generator=generator))
        for i, t in enumerate(lengths)
    ]


@pytest.mark.parametrize("lengths", [(9, 20, 14), (20,), (4, 4, 4, 4)], ids=str)
def test_transformers_musicgen(backend: MusicgenBackend, lengths: tuple[int, ...]) -> None:
    """Clips and captions of different lengths, padded; projections, embeddings, heads, norms."""
    batch = Batch.of(clips(backend, *lengths))
    names = {name.split(".")[-2] for name, _ in backend.module.named_parameters()}
    assert {"enc_to_dec_proj", "q_proj", "k_proj", "fc1", "final_layer_norm"} <= names
    check_every_parameter(backend.module, lambda: backend.losses(batch), 1e-6)  # the backend's NLL is float32


def test_transformers_musicgen_under_gradient_checkpointing(backend: MusicgenBackend) -> None:
    batch = Batch.of(clips(backend, 9, 20, 14))
    exact = slow.fisher(slow.per_sample(backend.module, lambda: backend.losses(batch)))
    for reentrant in (False, True):
        backend.model.decoder.train()  # it checkpoints in training only; there is no dropout
        backend.model.decoder.activation_checkpointing_enable({"use_reentrant": reentrant})
        try:
            with capture(backend.module, fisher=True) as c:
                backend.losses(batch).sum().backward()
        finally:
            backend.model.decoder.activation_checkpointing_disable()
            backend.model.decoder.eval()
        for name, value in exact.items():
            assert (c.fisher[name] - value).norm() <= 1e-6 * value.norm(), name


# ----------------------------------------------------------------------------------------------------- audiocraft


class Attention(nn.Module):
    """Packed projections as raw parameters; the three of cross attention are slices, called one by one."""

    def __init__(self, dim: int, heads: int, cross: bool, bias: bool) -> None:
        super().__init__()
        self.heads, self.cross = heads, cross
        self.in_proj_weight = nn.Parameter(torch.randn(3 * dim, dim) / dim**0.5)
        self.in_proj_bias = nn.Parameter(torch.randn(3 * dim)) if bias else None
        self.out_proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, query: Tensor, key: Tensor) -> Tensor:
        dim = query.shape[-1]
        if self.cross:
            bias = self.in_proj_bias
            q = F.linear(query, self.in_proj_weight[:dim], None if bias is None else bias[:dim])
            k = F.linear(key, self.in_proj_weight[dim : 2 * dim], None if bias is None else bias[dim : 2 * dim])
            v = F.linear(key, self.in_proj_weight[2 * dim :], None if bias is None else bias[2 * dim :])
        else:
            q, k, v = F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=not self.cross)
        return self.out_proj(out.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads, False, bias)
        self.cross_attention = Attention(dim, heads, True, bias)
        self.linear1, self.linear2 = nn.Linear(dim, 4 * dim, bias=bias), nn.Linear(4 * dim, dim, bias=bias)
        self.norm1, self.norm_cross, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        x = x + self.self_attn(*[self.norm1(x)] * 2)
        x = x + self.cross_attention(self.norm_cross(x), text)
        return x + self.linear2(F.gelu(self.linear1(self.norm2(x))))


class AudiocraftShaped(nn.Module):
    """Codebooks' tables are summed, conditions are a frozen text's projection, each codebook has a head."""

    def __init__(self, bias: bool, codebooks: int = 3, card: int = 10, dim: int = 12, heads: int = 2) -> None:
        super().__init__()
        self.card = card
        self.output_proj = nn.Linear(7, dim)
        self.emb = nn.ModuleList(nn.Embedding(card + 1, dim) for _ in range(codebooks))
        self.layers = nn.ModuleList(Layer(dim, heads, bias) for _ in range(2))
        self.out_norm = nn.LayerNorm(dim)
        self.linears = nn.ModuleList(nn.Linear(dim, card, bias=bias) for _ in range(codebooks))

    def losses(self, codes: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """codes [N, K, T], text [N, L, 7], mask [N, L] -> [N]"""
        given = self.output_proj(text) * mask[..., None]
        inputs = F.pad(codes[..., :-1], (1, 0), value=self.card)
        x = sum(table(inputs[:, k]) for k, table in enumerate(self.emb))
        for layer in self.layers:
            x = layer(x, given)
        logits = torch.stack([head(self.out_norm(x)) for head in self.linears], 1)  # [N, K, T, card]
        nll = F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none").view(codes.shape)
        return nll.mean((1, 2))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("n", "t"), [(4, 9), (1, 9), (3, 1), (5, 5)])
def test_audiocraft_shaped_musicgen(bias: bool, n: int, t: int) -> None:
    torch.manual_seed(0)
    model = AudiocraftShaped(bias).double()
    codes, text = torch.randint(10, (n, 3, t)), torch.randn(n, 4, 7, dtype=torch.float64)
    mask = torch.arange(4) < torch.randint(1, 5, (n, 1))
    if t == 1:  # attention over one position does not depend on queries and keys
        for layer in model.layers:
            layer.self_attn.requires_grad_(False)
    check_every_parameter(model, lambda: model.losses(codes, text, mask), 1e-10)
