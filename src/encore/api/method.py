"""The contract of a method, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from encore.api.backend import Backend
from encore.api.data import Batch, Clip
from encore.api.specs import MethodSpec
from encore.errors import PluginError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from encore.options import Options as BaseOptions
    from encore.options import TrainOptions

# Whose codes a Fisher's gradients are of: the clips', or the model's own; auto: the model's where it has tokens.
Labels = Literal["auto", "empirical", "sampled"]


class Reference(ABC):
    """The base model, frozen: what a method may compare with."""

    @abstractmethod
    def nll(self, batch: Batch) -> Tensor:
        """The base's NLL of each clip, [N]; computed once a clip."""

    @abstractmethod
    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        """The base's logits [N, K, T, V], without gradient."""


@dataclass(frozen=True)
class Step:
    """What a loss method is given for one step, beside the batch.

    Args:
        backend: the model being trained; call `losses`, `logits`, `token_mask` on the batch.
        reference: the base model; None where the method does not declare `reference`.
        generator: the run's random numbers (on the CPU); use no other source.
        progress: 0 at the first step, towards 1 at the last one allowed.
        holdout_nll: mean NLL of held-out music of the same source under the base model; None where there is no holdout.
        lr_share: the learning rate's share of its peak at this step.
        forget: all forget clips of the step, of which a batch may hold a part.
    """

    backend: Backend
    reference: Reference | None
    generator: torch.Generator
    progress: float
    holdout_nll: float | None
    lr_share: float = 1.0
    forget: Sequence[Clip] = ()


@dataclass
class Session:
    """What a method is given once, before the first step (loss methods) or for the whole edit (edit methods).

    `holdout` is unseen music of the same source. Gold is never here: no method may read it. In `prepare` a loss method
    may replace `retain`: clips are drawn from it in passes, so a clip that stands there twice is drawn twice as often.
    It may fill `masks`: parameter name -> bool of its shape. Weights where the mask is False stay bit for bit as they
    are, whatever weight decay and momentum are; a parameter without a mask is trained as a whole. It may set `lr`, the
    peak learning rate where its options leave it open, and `target_nll`, the NLL that each forget track should end at.
    What it chose by itself it says in `chosen`, by the option's name, with the reason.
    """

    backend: Backend
    forget: Sequence[Clip]
    retain: Sequence[Clip]
    holdout: Sequence[Clip]
    reference: Reference | None
    generator: torch.Generator
    seed: int
    holdout_nll: float | None
    run_loop: Callable[[LossMethod], None] = field(repr=False)
    run_fisher: Callable[[Sequence[Clip], Literal["empirical", "sampled"], int], dict[str, Tensor]] | None = field(
        default=None, repr=False
    )
    masks: dict[str, Tensor] = field(default_factory=dict)
    lr: float | None = None
    target_nll: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)

    def train(self, method: LossMethod) -> None:
        """Run the engine's own loop on a loss method: its optimiser, precision, checkpoints, guards, log."""
        self.run_loop(method)

    def fisher(self, clips: Sequence[Clip], *, labels: Labels = "auto", micro_batch_size: int = 8) -> dict[str, Tensor]:
        """F = (1/n) Σ_n g_n∘g_n at the weights as they are, g_n the gradient of clip n's mean NLL a token.

        It is the mean over clips of the squares, not the square of their mean: it does not depend on batch sizes. Taken
        in evaluation mode and float32, and kept on disk by the hashes of model and clips, so that it is computed once.

        Args:
            clips: one sample each.
            labels: "empirical", the clips' own codes; "sampled", codes drawn from the model given the clip's true past;
                "auto", sampled where the backend has tokens.
            micro_batch_size: clips a pass; changes nothing but memory and rounding.

        Returns:
            trainable parameter name -> F of its shape, the caller's own.

        Raises:
            PluginError: the method does not declare `fisher`.
            UsageError: "sampled" of a backend without tokens.
        """
        if self.run_fisher is None:
            raise PluginError("a method that takes a Fisher must say so: MethodSpec(..., needs={'fisher'})")
        if labels == "auto":
            labels = "sampled" if self.backend.has_tokens else "empirical"
        return self.run_fisher(clips, labels, micro_batch_size)


class Method(ABC):
    """Base of the two kinds of method. `Options` is a pydantic model (`encore.options`) with tuned defaults."""

    spec: ClassVar[MethodSpec]
    Options: ClassVar[type[BaseOptions]]

    def __init__(self, options: BaseOptions) -> None:
        self.options = options


class LossMethod(Method):
    """A method that is a loss: the engine owns the loop. `Options` must derive from `TrainOptions`.

    The objective is mean(forget_loss) + mean(retain_loss) + penalty. The losses are asked for per clip, so that the
    engine can cut a batch into micro-batches, or clip a track's gradient, without changing what is optimised.
    """

    options: TrainOptions

    def prepare(self, session: Session) -> None:
        """Look at the data once, before the first step. Runs again when a run is resumed: keep it deterministic."""
        return None

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        """Loss of each forget clip, [N]. A method that leaves this out never looks at the forget clips."""
        raise NotImplementedError

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        """Loss of each retain clip, [N]. Asked for only where the spec needs `retain`."""
        return step.backend.losses(batch)

    def penalty(self, step: Step) -> Tensor | None:
        """What is no clip's own, such as a distance of weights: a scalar, once a step."""
        return None

    def ready(self, step: Step) -> bool:
        """Whether the peak learning rate has done its work: before, an adaptive schedule does not decay.

        Asked after a snapshot at which the forget tracks are near their levels, as long as the schedule waits.
        """
        return True

    @property
    def uses_forget(self) -> bool:
        return type(self).forget_loss is not LossMethod.forget_loss

    @property
    def uses_penalty(self) -> bool:
        return type(self).penalty is not LossMethod.penalty


class EditMethod(Method):
    """A method that changes weights directly, and may call `session.train` for the parts that are training."""

    @abstractmethod
    def edit(self, session: Session) -> None:
        """Change `session.backend.module`'s weights in place."""
