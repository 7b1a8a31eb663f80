"""Weights of a model after relearning clips, so that a loss can be computed there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from encore import distributed
from encore.api import Backend, Clip, Session, Step
from encore.errors import UsageError
from encore.relearning import relearn

MIN_LR_SHARE = 0.4  # share of the peak rate above which steps are attacked
STRONG_ATTACK_LR = 1e-3  # a high rate for fine-tuning, which an attacker of a model with small weights may use too


class RelearningAttack:
    """Trains a copy of a model on clips, as an attacker would to restore them.

    The model is copied by `calibrate`, and its trained weights before every attack, in float32. Weights that are not
    trained (with an adapter, all but the adapter's) are shared with the copy.

    Args:
        lr: learning rate of AdamW; `calibrate` may raise it.
        steps: of an attack in training, at most.
        size: clips per pass; affects only memory use.
        measure: the loss that an attack lowers: model and N clips -> [N, …], without gradient.

    Attributes:
        retained_shares: share of its loss that held-out music keeps after 1, 2, … steps, [steps, …]; set by
            `calibrate`.
    """

    retained_shares: Tensor

    def __init__(
        self, *, lr: float, steps: int, size: int, measure: Callable[[Backend, Sequence[Clip]], Tensor]
    ) -> None:
        self.lr, self._steps, self._size, self._measure = lr, steps, size, measure
        self._copy: Backend | None = None

    def calibrate(self, session: Session, holdout: Sequence[Clip], *, clips_per_attack: int, max_clips: int) -> None:
        """Set `retained_shares`, and raise the rate to `STRONG_ATTACK_LR` if held-out music then keeps less.

        No rate is a strong attack on every model, and one that is too high breaks it.

        Args:
            session: of the base; its `chosen` has the reason for another rate.
            holdout: held-out clips, or retain clips that are not memorised; without any, all shares are 1.
            clips_per_attack: clips that an attack trains on.
            max_clips: clips that are attacked in all, at most.

        Raises:
            UsageError: a loss is not finite after an attack.
        """
        self._get_copy(session.backend)
        count = min(len(holdout), max_clips)
        groups = [holdout[start : start + clips_per_attack] for start in range(0, count, clips_per_attack)]
        given, self.retained_shares = self.lr, self._measured_shares(session.backend, groups)
        if given < STRONG_ATTACK_LR:
            self.lr = STRONG_ATTACK_LR
            kept = self._measured_shares(session.backend, groups)
            if kept[-1].mean() < self.retained_shares[-1].mean():
                self.retained_shares = kept
                session.chosen["attack_rate"] = (
                    f"{STRONG_ATTACK_LR:g}, which relearns held-out music further than {given:.2g}, the rate that "
                    "follows from the weights"
                )
            else:
                self.lr = given
        if not self.retained_shares.isfinite().all():
            raise UsageError(
                f"under an attack at the learning rate {self.lr:.2g} the loss of held-out music is not finite",
                "lower -o attack_rate, or use -o attack_share=0",
            )

    def _measured_shares(self, backend: Backend, groups: Sequence[Sequence[Clip]]) -> Tensor:
        shares = []
        for group in groups:
            before, after = self._measure(backend, group).mean(0), []
            for weights in self(backend, group, steps=self._steps, size=self._size):
                with with_weights(backend.module, weights):
                    after.append(self._measure(backend, group).mean(0) / before)
            shares.append(torch.stack(after))
        return torch.stack(shares).mean(0) if shares else torch.ones(self._steps, 1, device=backend.device)

    def maybe_attack(
        self, step: Step, clips: Sequence[Clip], *, share: float, size: int
    ) -> tuple[dict[str, Tensor], Tensor | float]:
        """Attack a share of the steps, of those at a high learning rate.

        Args:
            step: of the run.
            clips: relearned; without any there is no attack.
            share: of the steps.
            size: clips per pass; affects only memory use.

        Returns:
            The weights after up to `steps` steps of relearning, and the share of its loss that held-out music keeps
            under an attack of the same length; no weights, and 1, without an attack.
        """
        attack_now = torch.rand((), generator=step.generator) < share
        if not clips or not attack_now or step.lr_share <= MIN_LR_SHARE:
            return {}, 1.0
        steps = int(torch.randint(self._steps, (1,), generator=step.generator)) + 1
        *_, weights = self(step.backend, clips, steps=steps, size=size)
        return weights, self.retained_shares[steps - 1]

    def resisted(self, step: Step, targets: Mapping[Clip, Tensor], max_clips: int) -> bool:
        """Whether relearning lowers the loss of some clips no further than that of held-out music.

        Args:
            step: of the run.
            targets: clips -> the loss that they should have, [...] as in `measure`.
            max_clips: clips that are drawn and attacked together, at most.
        """
        candidates = list(targets)
        order = torch.randperm(len(candidates), generator=step.generator)[:max_clips].tolist()
        clips = [candidates[i] for i in order]
        *_, weights = self(step.backend, clips, steps=self._steps, size=self._size)
        with with_weights(step.backend.module, weights):
            losses = self._measure(step.backend, clips).mean()
        wanted = torch.stack([targets[clip] for clip in clips]) * self.retained_shares[-1]
        return bool(losses >= wanted.mean())

    def __call__(
        self, backend: Backend, clips: Sequence[Clip], *, steps: int, size: int
    ) -> Iterator[dict[str, Tensor]]:
        """The trainable weights, by name, after each AdamW step on clips.

        They belong to the copy, and change with the next step; the model itself is not changed.

        Args:
            backend: the model attacked.
            clips: trained on, all of them in each step.
            steps: number of steps.
            size: clips per pass; affects only memory use.

        Raises:
            UsageError: the model's weights are split over several processes.
        """
        attacked = self._get_copy(backend)
        copy, module = attacked.module, backend.module
        shared = {name for name, weight in module.named_parameters() if not weight.requires_grad}
        state = {name: value for name, value in module.state_dict().items() if name not in shared}
        copy.load_state_dict(state, strict=not shared)
        names = [name for name, weight in module.named_parameters() if weight.requires_grad]
        weights = {name: copy.get_parameter(name).requires_grad_() for name in names}
        batches = [clips[start : start + size] for start in range(0, len(clips), size)]
        for _ in relearn(attacked, batches, lr=self.lr, steps=steps):
            yield weights

    def _get_copy(self, backend: Backend) -> Backend:
        if distributed.in_lockstep():
            raise UsageError(
                "relearning attacks need whole weights, and --fsdp splits them",
                "use -o attack_share=0, or leave --fsdp out",
            )
        self._copy = self._copy or _sharing_copy(backend)
        return self._copy


@contextmanager
def with_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """A module at other weights, with gradients that go to its original weights (`displaced` changes them in place).

    Args:
        module: restored after the context; tied weights stay tied.
        weights: the other weights, constants, by name of the parameter.
    """
    replaced: dict[int, Tensor] = {}
    for name, target in weights.items():
        parameter = module.get_parameter(name)
        replaced[id(parameter)] = parameter + (target.detach() - parameter.detach())
    places = [
        (part, name, weight)
        for part in module.modules()
        for name, weight in part._parameters.items()
        if id(weight) in replaced
    ]
    for part, name, weight in places:
        part._parameters[name] = replaced[id(weight)]  # type: ignore[assignment]
    try:
        yield
    finally:
        for part, name, weight in places:
            part._parameters[name] = weight


def _sharing_copy(backend: Backend) -> Backend:
    """A copy of a model that shares the weights that are not trained, which are never copied."""
    fixed = {name: weight for name, weight in backend.module.named_parameters() if not weight.requires_grad}
    values = {name: weight.data for name, weight in fixed.items()}
    try:
        for weight in fixed.values():
            weight.data = weight.data.new_empty(0)
        copy = backend.clone()
    finally:
        for name, weight in fixed.items():
            weight.data = values[name]
    for name, weight in copy.module.named_parameters():
        if name in values:
            weight.requires_grad_(False).data = values[name]
        elif weight.dtype == torch.bfloat16:  # most steps of an attack are smaller than what bfloat16 can show
            weight.data = weight.data.float()
    return copy
