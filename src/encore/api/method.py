"""The contract of an unlearning method, and its inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from encore.api.backend import Backend
from encore.api.data import Batch, Clip
from encore.api.specs import MethodSpec
from encore.errors import PluginError

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from encore.options import Options as BaseOptions
    from encore.options import TrainOptions

# Labels of a Fisher's gradients: the clips' codes, or codes sampled from the model; auto: sampled where it has tokens.
Labels = Literal["auto", "empirical", "sampled"]
Phase = Literal["both", "forget", "retain"]  # clips that a step trains on
Drawn = TypeVar("Drawn")
RETAIN_SAMPLE = 512  # retain clips that a method reads before the first step, at most


class Reference(ABC):
    """The frozen base model, for methods that compare with it."""

    @abstractmethod
    def nll(self, batch: Batch) -> Tensor:
        """The base model's loss of each clip (`Backend.losses`), [N], without gradient; computed once per clip."""

    @abstractmethod
    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        """The base model's logits (`Backend.logits`), [N, K, T, V], without gradient.

        Raises:
            UsageError: the model has no tokens.
        """

    @abstractmethod
    def hidden(self, batch: Batch, depth: float) -> Tensor:
        """The base model's hidden states (`Backend.hidden`), without gradient."""


@dataclass(frozen=True)
class Step:
    """The inputs of a loss method for one step, beside the batch.

    Args:
        backend: the model being trained; call `losses`, `logits`, `token_mask` on the batch.
        reference: the base model; None where the method declares neither `reference` nor `reference_nll`.
        generator: the run's random numbers, on the CPU; use no other source.
        progress: from 0 at the first step towards 1 at the last possible step.
        holdout_nll: mean NLL of held-out music of the same source under the base model, in the backend's `unit`; None
            without a holdout.
        lr_share: learning rate at this step, as a share of its peak.
        forget: all forget clips of the step; a batch may hold a part of them.
        index: number of optimiser steps before this one.
        retain: all retain clips of the step; a batch may hold a part of them.
        harm: rise of NLL since base at the last snapshot, as a multiple of its tolerance, of memorised retain
            ("memorised", the mean; "worst", a single track), of other retain ("not_memorised") and of held-out music
            ("holdout"); empty before the first.
        drawn: results of `once`.
    """

    backend: Backend
    reference: Reference | None
    generator: torch.Generator
    progress: float
    holdout_nll: float | None
    lr_share: float = 1.0
    forget: Sequence[Clip] = ()
    index: int = 0
    retain: Sequence[Clip] = ()
    harm: Mapping[str, float] = field(default_factory=dict)
    drawn: dict[str, tuple[Tensor, Any]] = field(default_factory=dict, repr=False)

    def once(self, name: str, draw: Callable[[], Drawn]) -> Drawn:
        """The result of `draw()`, which is called for the first batch of the step only.

        Random numbers that are drawn here, for all of `forget` or `retain`, depend neither on the cut of the step into
        micro-batches nor on the number of processes.

        Args:
            name: of the result, unique in the method.
            draw: draws from `generator`.
        """
        import torch

        state = self.generator.get_state()
        before, value = self.drawn.get(name, (None, None))
        if before is None or torch.equal(before, state):  # not yet, or the engine computes the step again
            value = draw()
            self.drawn[name] = state, value
        return value  # type: ignore[return-value]


@dataclass
class Session:
    """The inputs of a method, before the first step (loss methods) or for the whole edit (edit methods).

    Gold models are not included: no method may read them. A loss method may set `retain`, `masks`, `lr`, `target_nll`
    and `chosen` in `prepare`.

    Args:
        backend: the model to change.
        forget: clips to forget.
        retain: clips to keep. The loop draws from it in shuffled passes, so a clip listed twice is drawn twice as
            often.
        holdout: held-out music of the same source; may be empty.
        reference: the base model; None where the method declares neither `reference` nor `reference_nll`.
        generator: the run's random numbers, on the CPU; use no other source.
        seed: of the run.
        holdout_nll: mean NLL of `holdout` under the base model, in the backend's `unit`; None without a holdout.
        run_loop: implements `train`.
        run_fisher: implements `fisher`; None where the method does not declare it.
        masks: parameter name -> bool of its shape. Weights where the mask is False keep their exact values, whatever
            weight decay and momentum are; a parameter without a mask is trained as a whole.
        lr: peak learning rate, for methods whose option `lr` is None.
        target_nll: forget track id -> NLL it should reach, in the backend's `unit`.
        chosen: option name -> the value that the method chose, and why, in one sentence.
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

    def retain_sample(self) -> Sequence[Clip]:
        """`retain`, or of more than `RETAIN_SAMPLE` clips as many, chosen by the seed.

        For what a method computes before the first step, such as a Fisher: `retain` may have millions of clips, each
        read from disk when it is accessed.
        """
        if len(self.retain) <= RETAIN_SAMPLE:
            return self.retain
        import random

        places = random.Random(self.seed).sample(range(len(self.retain)), RETAIN_SAMPLE)
        return [self.retain[place] for place in sorted(places)]

    def train(self, method: LossMethod) -> None:
        """Train with a loss method in the engine's loop: its optimiser, precision, checkpoints, guards and log.

        The method's `prepare` is called first, with this session; what it sets here stays until it is set again.

        Args:
            method: its `Options` derive from `TrainOptions`. A method without a `spec` has that of the edit method.

        Raises:
            EncoreError: the loss was not finite several steps in a row.
        """
        self.run_loop(method)

    def load_model(self, folder: Path) -> Backend:
        """Open another model of the same family, such as a teacher, frozen and on the run's device.

        Args:
            folder: value of an option of type `pydantic.DirectoryPath`, so that `run.json` records its hash.

        Raises:
            InputError: the folder is not a model of this family.
        """
        backend = type(self.backend).load(str(folder), offline=True, device=str(self.backend.device))
        backend.module.requires_grad_(False)
        return backend

    def fisher(self, clips: Sequence[Clip], *, labels: Labels = "auto", micro_batch_size: int = 8) -> dict[str, Tensor]:
        """Fisher diagonal F = (1/n) Σ_n g_n∘g_n at the current weights, g_n the gradient of clip n's mean NLL.

        The mean over clips of squared gradients, not the square of the mean gradient, so it does not depend on batch
        sizes. Computed in evaluation mode and float32, and cached on disk by the hashes of model and clips.

        Args:
            clips: one sample each.
            labels: "empirical", the clips' codes; "sampled", codes drawn from the model given the clip's true past;
                "auto", sampled where the backend has tokens.
            micro_batch_size: clips per pass; changes only memory use and rounding.

        Returns:
            Trainable parameter name -> F of its shape; a copy that the caller may change.

        Raises:
            PluginError: the method does not declare `fisher`.
            UsageError: "sampled" on a backend without tokens.
        """
        if self.run_fisher is None:
            raise PluginError(
                "a method that computes a Fisher diagonal must declare it: MethodSpec(..., needs={'fisher'})"
            )
        if labels == "auto":
            labels = "sampled" if self.backend.has_tokens else "empirical"
        return self.run_fisher(clips, labels, micro_batch_size)


class Method(ABC):
    """Base of the two kinds of method.

    Attributes:
        spec: the spec it was registered with.
        Options: pydantic model (`encore.options`) of its options, with tuned defaults.
        options: their values.
        frozen_copies: number of frozen models of the same size that it makes beside the reference (`Backend.clone`),
            for the estimate of memory.
    """

    spec: ClassVar[MethodSpec]
    Options: ClassVar[type[BaseOptions]]
    frozen_copies: ClassVar[int] = 0

    def __init__(self, options: BaseOptions) -> None:
        self.options = options

    @property
    def trained_copies(self) -> int:
        """Number of copies of the trained weights that it trains with AdamW itself, for the estimate of memory."""
        return 0


class LossMethod(Method):
    """A method defined by a loss; the engine owns the loop. `Options` must derive from `TrainOptions`.

    The objective is mean(forget_loss) + mean(retain_loss) + penalty. Losses are per clip, so that the engine can split
    a batch into micro-batches, or clip a track's gradient, without changing the objective.

    Order of calls: `prepare`; `optimizer`; per step `phase`, the losses, `penalty`, the optimiser's step, `after_step`;
    then the weights of the best or the last snapshot (option `select`) are restored; `finish`.
    """

    options: TrainOptions

    def prepare(self, session: Session) -> None:
        """Inspect the data once, before the first step. Runs again when a run is resumed: keep it deterministic."""
        return None

    def forget_loss(self, step: Step, batch: Batch) -> Tensor:
        """Loss of each forget clip, [N]. A method without it never uses the forget clips.

        Args:
            step: inputs of this step.
            batch: N of `step.forget`.
        """
        raise NotImplementedError

    def retain_loss(self, step: Step, batch: Batch) -> Tensor:
        """Loss of each retain clip, [N]; called only where the spec needs `retain`.

        Args:
            step: inputs of this step.
            batch: N retain clips.
        """
        return step.backend.losses(batch)

    def penalty(self, step: Step) -> Tensor | None:
        """A scalar loss that belongs to no clip, such as a distance of weights; called once per step. None for none."""
        return None

    def phase(self, index: int) -> Phase:
        """The clips that a step trains on, for methods that alternate.

        Args:
            index: number of optimiser steps before this one.

        Returns:
            "forget", "retain" or "both". `penalty` is computed in each of them.
        """
        return "both"

    def optimizer(self, parameters: Sequence[nn.Parameter], lr: float) -> torch.optim.Optimizer:
        """The optimiser; by default AdamW (`encore.adamw`).

        The schedule multiplies each group's learning rate. The state must be tensors and plain values, for checkpoints.

        Args:
            parameters: the trainable weights.
            lr: peak learning rate.
        """
        from encore.adamw import adamw

        return adamw(parameters, lr=lr, betas=(0.9, 0.95), weight_decay=self.options.weight_decay)

    def after_step(self, step: Step) -> None:
        """Called without gradient after each optimiser step, to average or to project weights, for example.

        Not called when the step was skipped because a loss or gradient was not finite.
        """
        return None

    def finish(self, session: Session) -> None:
        """Called once without gradient after the last step, to write an average or to merge an adapter.

        The names and shapes of the weights must then be those of the base model.
        """
        return None

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that change from step to step and belong to a checkpoint, such as averaged weights."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the tensors of `state_dict` when a run is resumed; called after `prepare`."""
        return None

    def ready(self, step: Step) -> bool:
        """Whether an adaptive schedule may begin to decay the learning rate.

        Called after each snapshot at which the forget tracks are near their target NLLs, until it returns True.
        """
        return True

    @property
    def uses_forget(self) -> bool:
        """Whether the method implements `forget_loss`."""
        return type(self).forget_loss is not LossMethod.forget_loss

    @property
    def uses_penalty(self) -> bool:
        """Whether the method implements `penalty`."""
        return type(self).penalty is not LossMethod.penalty


class EditMethod(Method):
    """A method that changes weights directly; it may call `session.train` to train in between."""

    @abstractmethod
    def edit(self, session: Session) -> None:
        """Change the weights of `session.backend.module` in place."""
