"""What the engine checks of a method: that it trains what it is given, and leaves the rest as it was."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import nn

from encore.api import Backend, LossMethod, Method
from encore.errors import EncoreError, InputError, PluginError
from encore.hashing import module_sha256
from encore.unlearn.monitor import Snapshot

USES = {  # functions of a method that may use weights as they are -> what for
    "penalty": "its penalty reads", "after_step": "it changes", "finish": "it changes",
    "state_dict": "it keeps copies of",
}  # fmt: skip


def reads_weights(method: Method, *functions: str) -> str:
    """Which of some functions a method has, in words; empty if none.

    Args:
        method: of the run.
        functions: of `USES`.
    """
    own = (name for name in functions if getattr(type(method), name, None) is not getattr(LossMethod, name))
    return next((USES[name] for name in own), "") if isinstance(method, LossMethod) else ""


def check_base(before: Snapshot, unit: str) -> None:
    """Refuse a model whose weights are finite, and whose loss is not: no figure could be compared with it.

    Args:
        before: the snapshot of the model before the run.
        unit: of its losses.

    Raises:
        InputError: a loss is not finite.
    """
    losses = {**before.forget, **before.memorised, **before.not_memorised, "held-out music": before.holdout}
    for name, loss in losses.items():
        if loss is not None and not math.isfinite(loss):
            raise InputError(
                f"the model's {loss_name(unit)} of {name} is not finite before training",
                "use another --model: this one's weights are too large",
            )


def loss_name(unit: str) -> str:
    """What a unit's loss is called."""
    return "NLL" if unit == "nats/token" else unit


def check_loss(method: LossMethod, name: str, loss: object) -> None:
    """Refuse what a function of a method returned in place of a loss that can be trained on.

    Args:
        method: of the run.
        name: of its function.
        loss: what it returned.

    Raises:
        PluginError: it is not a tensor, or has no gradient.
    """
    if not isinstance(loss, torch.Tensor):
        raise PluginError(
            f"method {method.spec.name!r}: {name} returned {type(loss).__name__}, and must return a tensor",
            "report it to the method's authors",
        )
    if torch.is_grad_enabled() and not loss.requires_grad:
        raise PluginError(
            f"method {method.spec.name!r}: {name} returned a loss without a gradient",
            "compute it from the model's outputs, outside torch.no_grad() and without detach()",
        )


def check_gradients(
    method: LossMethod, module: nn.Module, optimizer: torch.optim.Optimizer, masked: Collection[str]
) -> None:
    """Refuse weights in the optimiser that the losses do not depend on: they would silently stay as they are.

    Methods that use hidden states do not run the later blocks, so they are not checked.

    Args:
        method: of the run.
        module: after the backward pass of the first step.
        optimizer: of the run.
        masked: names of parameters with a mask.

    Raises:
        PluginError: a weight has no gradient.
    """
    if "hidden" in method.spec.needs:
        return
    optimised = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    idle = [
        name
        for name, weight in module.named_parameters()
        if id(weight) in optimised and weight.grad is None and name not in masked
    ]
    if idle:
        more = f" and {len(idle) - 1} more" if len(idle) > 1 else ""
        raise PluginError(
            f"the losses of method {method.spec.name!r} give no gradient to {idle[0]}{more}, which is trained",
            "freeze the weight in the backend (requires_grad_(False)), or leave it out of the method's optimizer",
        )


def check_result(
    method: Method, backend: Backend, frozen: Mapping[str, str], weights: Mapping[str, torch.Size]
) -> None:
    """Check a model after a run.

    Args:
        method: that ran.
        backend: the model.
        frozen: hashes of its frozen parts before the run.
        weights: shapes of its weights before the run.

    Raises:
        PluginError: the method changed a frozen part, or left other weights.
        EncoreError: a weight is not finite.
    """
    for name, part in backend.frozen().items():
        if module_sha256(part) != frozen[name]:
            raise PluginError(f"method {method.spec.name!r} changed the {name}, which must stay as it was")
    state = backend.module.state_dict()
    changed = [name for name in {**weights, **state} if name not in state or weights.get(name) != state[name].shape]
    if changed:
        raise PluginError(
            f"method {method.spec.name!r} left other weights than the model had, first of all {changed[0]}: "
            "merge what it adds in finish"
        )
    for name, weight in state.items():
        if not torch.isfinite(weight).all():
            raise EncoreError(
                f"method {method.spec.name!r} left non-finite weights in {name}", "lower --lr; nothing was saved"
            )
