"""The ways to a Fisher diagonal that `benchmarks/fisher.py` compares.

Each takes a model of its own and a batch, prepares, and returns a step: one forward and backward pass that adds
Σ_n g_n∘g_n to the tensors it is given, by parameter name, as a Fisher over a data set is streamed. Libraries are called
as their documentation says, at their best that we found; what they leave out stays zero. They are imported in here, so
that one that is missing is missing alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from fisher_model import Batch, losses, trainable
from torch import Tensor, nn

Sums = Mapping[str, Tensor]
Step = Callable[[Sums], None]


def plain(model: nn.Module, batch: Batch) -> Step:
    """A training step's forward and backward pass: what the others are measured by. It gives no Fisher."""

    def step(sums: Sums) -> None:
        model.zero_grad(set_to_none=True)
        losses(model, batch).sum().backward()

    return step


def loop(model: nn.Module, batch: Batch) -> Step:
    """One pass a sample. In float64 it is also the reference."""
    weights = trainable(model)

    def step(sums: Sums) -> None:
        for n in range(len(batch)):
            model.zero_grad(set_to_none=True)
            losses(model, batch.one(n)).sum().backward()
            for name, weight in weights.items():
                if weight.grad is not None:
                    sums[name].addcmul_(weight.grad, weight.grad)
        model.zero_grad(set_to_none=True)

    return step


def vmap_grad(model: nn.Module, batch: Batch) -> Step:
    """torch.func: per-sample gradients of all samples at once."""
    weights = {name: weight.detach() for name, weight in trainable(model).items()}

    def loss(weights: Mapping[str, Tensor], *sample: Tensor) -> Tensor:
        one = Batch(*(part[None] for part in sample))
        return losses(lambda *args, **more: torch.func.functional_call(model, weights, args, more), one)[0]

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0, 0))

    def step(sums: Sums) -> None:
        gradients = each(weights, batch.inputs, batch.labels, batch.states)
        for name in list(gradients):
            sums[name].add_(gradients.pop(name).square_().sum(0))

    return step


def opacus(model: nn.Module, batch: Batch) -> Step:
    """GradSampleModule. It records in training mode only, and its checks refuse a model with buffers (strict)."""
    from opacus import GradSampleModule

    wrapped = GradSampleModule(model.train(), loss_reduction="sum", strict=False)
    weights = trainable(model)

    def step(sums: Sums) -> None:
        wrapped.zero_grad(set_to_none=True)
        losses(wrapped, batch).sum().backward()
        for name, weight in weights.items():
            gradients, weight.grad_sample = weight.grad_sample, None
            if gradients is not None:
                sums[name].add_(gradients.square_().sum(0))
        wrapped.zero_grad(set_to_none=True)

    return step


def backpack(model: nn.Module, batch: Batch) -> Step:
    """SumGradSquared of the layers that it knows; one that it doesn't raises, so those are not extended."""
    from backpack import backpack as extensions
    from backpack import extend
    from backpack.extensions import SumGradSquared

    for part in model.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            extend(part)
    weights = trainable(model)

    def step(sums: Sums) -> None:
        model.zero_grad(set_to_none=True)
        with extensions(SumGradSquared()):
            losses(model, batch).sum().backward()
        for name, weight in weights.items():
            if hasattr(weight, "sum_grad_squared"):
                sums[name].add_(weight.sum_grad_squared)
                del weight.sum_grad_squared
        model.zero_grad(set_to_none=True)

    return step


def nngeometry(model: nn.Module, batch: Batch) -> Step:
    """PMatDiag.

    As released it takes [N, D] into Linear and LayerNorm, and no Embedding: so [N, T, D] is read through factories of
    ours, made of its base class. Its backward pass goes to the first of the examples alone and sees no layer that does
    not depend on that, so a zero for each sample is added to the embeddings and to the text states.
    """
    import torch.nn.functional as F
    from nngeometry.backend import TorchHooksJacobianBackend
    from nngeometry.backend.torch_hooks import grads
    from nngeometry.layercollection import LayerCollection, LayerNormLayer, LinearLayer
    from nngeometry.object import PMatDiag

    class Linear(grads.JacobianFactory):
        @classmethod
        def flat_grad(cls, buffer, module, layer, x, g):
            torch.bmm(g.mT, x, out=buffer.view(len(x), *module.weight.shape))

    class LayerNorm(grads.JacobianFactory):
        @classmethod
        def flat_grad(cls, buffer, module, layer, x, g):
            normalized = F.layer_norm(x, module.normalized_shape, eps=module.eps)
            buffer.copy_(torch.cat([(g * normalized).sum(1), g.sum(1)], 1))

    grads.FactoryMap |= {LinearLayer: Linear, LayerNormLayer: LayerNorm}
    layers = LayerCollection.from_model(model, ignore_unsupported_layers=True)
    names = [name for name, _ in layers.named_parameters(dict(model.named_modules()))]
    lever: list[Tensor] = []
    model.model.decoder.embed_tokens[0].register_forward_hook(lambda _, args, out: out + lever[-1])

    def outputs(zero: Tensor, *sample: Tensor) -> Tensor:
        lever[:] = [zero[..., None]]
        inputs, labels, states = sample
        return losses(model, Batch(inputs, labels, states + lever[0]))

    def step(sums: Sums) -> None:
        backend = TorchHooksJacobianBackend(model=model, function=outputs, layer_collection=layers)
        examples = (torch.zeros(len(batch), 1), batch.inputs, batch.labels, batch.states)
        diagonal = PMatDiag(generator=backend, examples=examples).get_diag() * len(batch)
        for name, part in zip(names, diagonal.split([sums[name].numel() for name in names]), strict=True):
            sums[name].add_(part.view_as(sums[name]))

    return step


def asdl(model: nn.Module, batch: Batch) -> Step:
    """ASDL (distribution `asdfghjkl`): the empirical Fisher's diagonal."""
    from asdl import FISHER_EMP, SHAPE_DIAG, FisherConfig, get_fisher_maker

    maker = get_fisher_maker(model, FisherConfig(FISHER_EMP, [SHAPE_DIAG], data_size=1))
    modules = dict(model.named_modules())

    def loss(each: Tensor, reduction: str) -> Tensor:  # it always asks for "sum"
        return each.sum()

    def step(sums: Sums) -> None:
        output = maker.setup_model_call(losses, model, batch)
        maker.setup_loss_call(loss, output)
        maker.forward_and_backward()
        for name, value in sums.items():
            layer, kind = name.rsplit(".", 1)
            fisher = getattr(modules[layer], "fisher", None)
            diagonal = getattr(fisher.diag, kind, None) if fisher is not None else None
            if diagonal is not None:
                value.add_(diagonal)
        maker.zero_fisher()

    return step


def einsum(model: nn.Module, batch: Batch) -> Step:
    """A hook a layer, as one writes it by hand: every sample's gradient of that layer, squared and summed."""
    names = {part: name for name, part in model.named_modules()}
    current: list[Sums] = []

    def gradients(part: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
        """Per-sample gradients by parameter, [N, *shape]."""
        if isinstance(part, nn.Linear):
            return {"weight": torch.einsum("nti,nto->noi", x, g)} | ({} if part.bias is None else {"bias": g.sum(1)})
        if isinstance(part, nn.LayerNorm):
            normalized = nn.functional.layer_norm(x, part.normalized_shape, eps=part.eps)
            return {"weight": (normalized * g).sum(1), "bias": g.sum(1)}
        dense = torch.zeros(len(x), *part.weight.shape, dtype=g.dtype)
        return {"weight": dense.scatter_add_(1, x[..., None].expand_as(g), g)}

    def watch(part: nn.Module, args: tuple[Tensor], out: Tensor) -> None:
        def seen(g: Tensor) -> None:
            for kind, gradient in gradients(part, args[0].detach(), g).items():
                current[0][f"{names[part]}.{kind}"].add_(gradient.square_().sum(0))

        out.register_hook(seen)

    for part in model.modules():
        if isinstance(part, nn.Linear | nn.LayerNorm | nn.Embedding):
            part.register_forward_hook(watch)

    def step(sums: Sums) -> None:
        current[:] = [sums]
        model.zero_grad(set_to_none=True)
        losses(model, batch).sum().backward()
        model.zero_grad(set_to_none=True)

    return step


def encore(model: nn.Module, batch: Batch, **more: bool) -> Step:
    """Ours."""
    from encore.curvature import capture

    def step(sums: Sums) -> None:
        with capture(model, fisher=sums, **more):
            losses(model, batch).sum().backward()

    return step


def encore_all(model: nn.Module, batch: Batch) -> Step:
    """Ours, with every sample's norm and the summed gradient from the same pass."""
    return encore(model, batch, norms=True, total=True)


PEERS: dict[str, Callable[[nn.Module, Batch], Step]] = {
    "plain": plain,
    "loop": loop,
    "vmap": vmap_grad,
    "opacus": opacus,
    "backpack": backpack,
    "nngeometry": nngeometry,
    "asdl": asdl,
    "einsum": einsum,
    "encore": encore,
    "encore-all": encore_all,
}
