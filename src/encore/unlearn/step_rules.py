"""Options of the loop that apply to the loss of any method: how its gradients are computed and applied.

`optim`, how the gradient g of the forget loss L_f becomes a step:

- adamw: the optimiser of the method, which is AdamW unless the method brings another.
- sam: g is computed at θ + δ, where δ = ρ ‖θ‖ ∇L_f(θ) / ‖∇L_f(θ)‖ raises L_f most. To first order this is
  min_θ max_{‖δ‖ ≤ ρ ‖θ‖} L_f(θ + δ) + L_r(θ) (sharpness-aware minimisation; Fan et al., arXiv 2502.05374).
- sign: θ -= η sign(∇L), L the whole loss (signSGD, Bernstein et al., arXiv 1802.04434; in
  unlearning, arXiv 2510.00761).
- repselect: g of each weight matrix loses its k largest principal components, G -= U_k U_kᵀ G, before the optimiser of
  the method (arXiv 2606.17168). The gradients of retain keep theirs.

`retain_budget` ε: the gradient of the retain loss is multiplied by λ, 1 at first. Each snapshot takes a dual step,
λ ← [λ + η (ΔNLL_r - ε)]₊, with ΔNLL_r the rise of the watched retain tracks' mean NLL since base (arXiv 2506.05314,
whose constraint is on the loss itself, which tells little of music that the base has not memorised). A snapshot
measures the same clips every time; the loss of one step depends on which clips were drawn.

`robust_to` int4 or int8: L_f and L_r, and their gradients, are computed at weights rounded as by the metric
`quantised`, and the gradients are applied to the weights themselves (straight-through; arXiv 2605.02196).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from encore import distributed
from encore.api import LossMethod, Method
from encore.curvature.hooks import set_aside_grads
from encore.errors import UsageError
from encore.metrics.robustness.quantized import rounded
from encore.options import Options, TrainOptions
from encore.unlearn.monitor import Snapshot

AddGradient = Callable[[], float]
"""Adds the gradient of one loss of the step to `.grad`, and returns the loss."""

OVERSAMPLED, ITERATIONS = 8, 4  # of the randomised singular value decomposition


class StepRules:
    """The options of one loop, bound to its weights.

    Args:
        method: of the loop.
        module: the trained module.
        masks: see `Session.masks`.
        generator: random source of the losses.

    Raises:
        UsageError: an option does not fit the method.
    """

    def __init__(
        self, method: LossMethod, module: nn.Module, masks: Mapping[str, Tensor], generator: torch.Generator
    ) -> None:
        check(method)
        self._method, self._options, self._generator = method, method.options, generator
        self._module = module
        named = [(name, weight) for name, weight in module.named_parameters() if weight.requires_grad]
        self._weights = [weight for _, weight in named]
        self._masks = [masks.get(name) for name, _ in named]

    def optimizer(self, lr: float) -> torch.optim.Optimizer:
        """The optimiser of the loop, with a peak learning rate."""
        if self._options.optim == "sign":
            return SignDescent(self._weights, lr=lr, weight_decay=self._options.weight_decay)
        return self._method.optimizer(self._weights, lr)

    def add(self, name: str, add: AddGradient, retain_weight: float) -> float:
        """Add the gradient of one loss of a step to `.grad`, as the options say; returns the loss.

        Args:
            name: "forget_loss" or "retain_loss".
            add: adds the gradient at the current weights.
            retain_weight: λ.
        """
        with self._rounded():
            if name == "retain_loss" and self._options.retain_budget is not None:
                return self._add_weighted(add, retain_weight)
            if name == "forget_loss" and self._options.optim == "sam":
                return self._add_perturbed(add)
            if name == "forget_loss" and self._options.optim == "repselect":
                return self._add_selective(add)
            return add()

    def next_retain_weight(self, weight: float, first: Snapshot, now: Snapshot) -> float:
        """λ after the dual step of a snapshot.

        Args:
            weight: λ before it.
            first: of the base.
            now: the snapshot.
        """
        budget = self._options.retain_budget
        if budget is None:
            return weight
        before, after = (list({**each.memorised, **each.not_memorised}.values()) for each in (first, now))
        rise = (sum(after) - sum(before)) / max(len(before), 1)
        return max(0.0, weight + self._options.dual_rate * (rise - budget)) if rise == rise else weight

    # ------------------------------------------------------------------------------------------------------ gradients

    def _add_weighted(self, add: AddGradient, factor: float) -> float:
        with set_aside_grads(self._weights):
            loss = add()
            grads = [weight.grad for weight in self._weights]
        for weight, grad in zip(self._weights, grads, strict=True):
            if grad is not None:
                weight.grad = grad * factor if weight.grad is None else weight.grad + grad * factor
        return loss

    def _add_perturbed(self, add: AddGradient) -> float:
        drawn = self._generator.get_state()
        with set_aside_grads(self._weights):
            self._add_of_all_processes(add)
            grads = [weight.grad for weight in self._weights]
            for grad, mask in zip(grads, self._masks, strict=True):
                if grad is not None and mask is not None:
                    grad.masked_fill_(~mask, 0)
        size = self._options.sam_radius * _norm(self._weights) / _norm(grads).clamp(min=1e-12)
        self._generator.set_state(drawn)  # both passes draw the same random numbers
        with displaced(self._weights, lambda weight, grad: weight + size * grad, grads):
            return add()

    def _add_selective(self, add: AddGradient) -> float:
        loss = self._add_of_all_processes(add)
        for weight in self._weights:
            if weight.grad is not None and weight.grad.dim() > 1:
                weight.grad = without_components(weight.grad, self._options.components)
            if weight.grad is not None and distributed.size() > 1:
                weight.grad /= distributed.size()  # each process adds its share to the sum
        return loss

    def _add_of_all_processes(self, add: AddGradient) -> float:
        """`add`, with the gradient summed over all processes. If one runs out of memory, all of them say so."""
        loss, failure = 0.0, None
        try:
            loss = add()
        except RuntimeError as error:
            failure = error
        if any(distributed.largest([failure is not None])):
            raise failure or torch.OutOfMemoryError("another process ran out of memory")
        distributed.add_gradients(self._weights)  # type: ignore[arg-type]
        return loss

    def _rounded(self) -> Any:
        if self._options.robust_to is None:
            return nullcontext()
        bits = int(self._options.robust_to.removeprefix("int"))
        matrices = [weight for weight in self._module.parameters() if weight.dim() > 1]
        return displaced(matrices, lambda weight, _: rounded(weight, bits), matrices)


def check(method: Method) -> None:
    """Check that the options of a method's loop fit the method.

    Raises:
        UsageError: a loss is missing that one of them is about; the message names both.
    """
    options = method.options
    if not isinstance(method, LossMethod) or not isinstance(options, TrainOptions):
        return
    name, retains = method.spec.name, "retain" in method.spec.needs
    if options.optim in ("sam", "repselect") and not method.uses_forget:
        raise UsageError(
            f"--optim {options.optim} changes the gradient of the forget loss, and method {name!r} has none",
            "use --optim adamw or sign",
        )
    if getattr(options, "attack_share", 0) and (options.optim == "sam" or options.robust_to is not None):
        flag = "--optim sam" if options.optim == "sam" else f"--robust-to {options.robust_to}"
        raise UsageError(
            f"{flag} changes the weights that a loss is computed at, and so do the attacks of method {name!r}",
            "add -o attack_share=0, or leave it out",
        )
    if options.retain_budget is not None and not (method.uses_forget and retains):
        raise UsageError(
            f"--retain-budget weighs the retain loss against the forget loss, and method {name!r} has only one of them",
            "leave it out, or choose a method with both, such as npo or graddiff",
        )


def held_copies(options: Options) -> int:
    """How many tensors of the trained weights' size the options hold, beyond those of AdamW in its steps.

    Args:
        options: of any method.
    """
    if not isinstance(options, TrainOptions):
        return 0
    beside = {"sam": 2, "sign": -2}.get(options.optim, 0)  # weights and gradient; signSGD has no moments
    return beside + (options.retain_budget is not None) + (options.robust_to is not None)


@contextmanager
def displaced(
    weights: Sequence[Tensor], to: Callable[[Tensor, Tensor], Tensor], with_each: Sequence[Tensor | None]
) -> Iterator[None]:
    """Weights at other values inside the context; afterwards they are bit for bit what they were.

    Args:
        weights: changed in place, so that gradients computed in here are theirs.
        to: the value of a weight, from the weight and its element of `with_each`.
        with_each: one for each weight; where it is None, the weight stays.
    """
    kept = [(weight, weight.detach().clone()) for weight in weights]
    try:
        with torch.no_grad():
            for weight, other in zip(weights, with_each, strict=True):
                if other is not None:
                    weight.copy_(to(weight, other))
        yield
    finally:
        with torch.no_grad():
            for weight, value in kept:
                weight.copy_(value)


def without_components(gradient: Tensor, count: int) -> Tensor:
    """The gradient of a weight matrix without its largest principal components, uncentred: G - U_k U_kᵀ G.

    Args:
        gradient: [O, …]; dimensions after the first count as one.
        count: k; of a matrix with fewer rows or columns, one component is left.
    """
    matrix = gradient.flatten(1)
    least = min(matrix.shape)
    count = min(count, least - 1)
    if count < 1:
        return gradient
    devices = [gradient.device] if gradient.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.autocast(gradient.device.type, enabled=False):
        torch.manual_seed(0)
        wide = matrix if matrix.dtype == torch.float64 else matrix.float()
        left, _, _ = torch.svd_lowrank(wide, q=min(count + OVERSAMPLED, least), niter=ITERATIONS)
        left = left[:, :count].to(matrix.dtype)
        return (matrix - left @ (left.T @ matrix)).view_as(gradient)


class SignDescent(torch.optim.Optimizer):
    """θ -= η (sign(∇L) + w θ), with w the weight decay; it has no state.

    Args:
        params: weights.
        lr: η.
        weight_decay: w.
    """

    def __init__(self, params: Sequence[nn.Parameter], lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step with the gradients that there are; `closure` is not used."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.add_(weight.grad.sign(), alpha=-group["lr"])


def _norm(tensors: Sequence[Tensor | None]) -> Tensor:
    return torch.nn.utils.get_total_norm([tensor.detach() for tensor in tensors if tensor is not None])
