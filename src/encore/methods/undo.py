"""UNDO: unlearn, noise, distil on outputs (Lee et al., "Distillation Robustifies Unlearning", arXiv 2506.06278)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from encore import plugins
from encore.api import Backend, Batch, EditMethod, LossMethod, Session, Step
from encore.errors import UsageError
from encore.losses import clip_mean, kl_divergence
from encore.options import TrainOptions

PROVIDED = frozenset(
    {"retain", "holdout", "reference", "reference_nll", "logits"}
)  # what a method that runs inside has


class _Distil(LossMethod):
    """min KL(teacher ‖ model) on forget and retain."""

    def __init__(self, options: TrainOptions, teacher: Backend) -> None:
        super().__init__(options)
        self._teacher = teacher

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        mask = step.backend.token_mask(batch)
        with torch.no_grad():
            target = self._teacher.logits(batch)
        return clip_mean(kl_divergence(target, step.backend.logits(batch), mask), mask)

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        return self.forget_loss(step, batch)


class Undo(EditMethod):
    """θ_u by another method; θ = (1 - α) θ_u + α β θ_0, with θ_0 new weights; then min KL(θ_u ‖ θ).

    θ_0 is drawn as before any training. Outputs are distilled on the forget and retain clips: the unlearned model has
    forgotten the first already. Of the options, those of training are of the distillation; the other method runs with
    its defaults, for at most half of `max_seconds`.
    """

    class Options(TrainOptions):
        unlearn: str = Field("npo", description="the loss method that unlearns first")
        alpha: float = Field(0.3, ge=0, le=1, description="share of the weights that is noise")
        beta: float = Field(1.0, ge=0, description="scale of the noise")
        steps: int = 300
        stop: Literal["target", "never"] = "never"
        select: Literal["best", "last"] = "last"

    options: Options
    frozen_copies = 1  # the teacher

    def edit(self, session: Session) -> None:
        backend, retain = session.backend, session.retain
        session.train(unlearning_method(self.options.unlearn, self.options.max_seconds))
        session.retain, session.masks, session.lr = retain, {}, None
        teacher = backend.clone()
        teacher.module.requires_grad_(False).eval()
        backend.reinitialise(session.seed)
        share = self.options.alpha
        with torch.no_grad():
            for name, weight in backend.module.named_parameters():
                kept = teacher.module.get_parameter(name)
                weight.copy_((1 - share) * kept + share * self.options.beta * weight if weight.requires_grad else kept)
        session.train(_Distil(self.options, teacher))


def unlearning_method(name: str, max_seconds: float | None = None) -> LossMethod:
    """A loss method with its default options.

    Args:
        name: of the method.
        max_seconds: of the whole run; the method gets half of them, and leaves the rest to the distillation.

    Raises:
        UnknownNameError: there is no method of this name.
        UsageError: it edits weights, or needs what a method inside another does not have.
    """
    chosen = plugins.methods().resolve(name)
    lacking = chosen.spec.needs - PROVIDED
    if not issubclass(chosen, LossMethod) or lacking:
        why = f"it needs {' and '.join(sorted(lacking))}" if lacking else "it edits weights directly"
        raise UsageError(f"undo can't unlearn by {name!r}: {why}", "use -o unlearn=npo, or another loss method")
    return chosen(chosen.Options.model_validate({"max_seconds": max_seconds / 2} if max_seconds else {}))
