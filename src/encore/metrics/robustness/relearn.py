"""Attack: a few training steps on the forget tracks, on one of them, or on other tracks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.rows import available_roles, losses_by_track, mean_row, unmeasured
from encore.relearning import MAX_GRAD_NORM, WEIGHT_DECAY, relearn

STEPS = 8
LR = 2e-4
SNAPSHOTS = (0, 1, 2, 4, 8)  # steps after which the forget NLL is measured when other tracks are trained on
SINGLE_TRACKS = 3  # forget tracks that are each trained on alone
MODELS: tuple[Role, ...] = ("base", "unlearned", "gold")


class Relearn(Metric):
    """Forget NLL after 8 AdamW steps on a copy: lr 2e-4, weight decay .01, the whole forget set per step, gradient
    norm at most 1.

    A model in which the tracks are only suppressed falls far below gold, for which they are new. `details["curve"]` has
    the NLL before the first and after each step. The `control` has untrained weights.
    """

    name = "relearn"
    lr = LR

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for model in _roles(evaluation):
            curve = relearning_curve(evaluation, model, evaluation.clips["forget"], lr=self.lr)
            yield _row(self.name, model, curve[-1], curve, range(STEPS + 1), evaluation, {"lr": self.lr})


class RelearnFast(Relearn):
    """As `Relearn` at five times the rate, lr 1e-3: an attacker may choose it, and a low one does less in 8 steps."""

    name = "relearn_fast"
    lr = 5 * LR


class RelearnOthers(Metric):
    """Forget NLL after the same steps on tracks of another set: rows `relearn_retain` and `relearn_holdout`.

    As many tracks as there are forget tracks, evenly spaced over the set. Training on other music should not restore
    what was removed (Hu et al., "Jogging the Memory of Unlearned LLMs", arXiv 2406.13356, relearn from other data).
    Gold and the untrained control are the baselines. `details["after"]` are the steps of the curve.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        sets: tuple[ClipSet, ...] = ("retain", "holdout")
        for clips in sets:
            name = f"relearn_{clips}"
            if not evaluation.clips.get(clips):
                yield unmeasured(name, "unlearned", "forget", f"there are no {clips} tracks")
                continue
            forget = evaluation.clips["forget"]
            training = evenly_spaced(evaluation.clips[clips], len({clip.track for clip in forget}))
            for model in _roles(evaluation):
                curve = relearning_curve(evaluation, model, training, forget)
                details = {"trained_on": sorted({clip.track for clip in training})}
                yield _row(name, model, curve[-1], curve, SNAPSHOTS, evaluation, details)


class RelearnOne(Metric):
    """NLL of the *other* forget tracks after the same steps on one of them.

    Repeated for up to three tracks; a track's value is its mean over the runs that did not train on it.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        forget = evaluation.clips["forget"]
        tracks = sorted({clip.track for clip in forget})
        if len(tracks) < 2:
            yield unmeasured("relearn_one", "unlearned", "forget", "there is only one forget track")
            return
        singles = sorted({clip.track for clip in evenly_spaced(forget, SINGLE_TRACKS)})
        for model in _roles(evaluation):
            nlls: list[dict[str, list[float]]] = [{} for _ in SNAPSHOTS]
            for single in singles:
                curve = relearning_curve(evaluation, model, [clip for clip in forget if clip.track == single], forget)
                for snapshot, values in zip(nlls, curve, strict=True):
                    for track in values.keys() - {single}:
                        snapshot.setdefault(track, []).append(values[track])
            means = [{track: sum(v) / len(v) for track, v in sorted(snapshot.items())} for snapshot in nlls]
            yield _row("relearn_one", model, means[-1], means, SNAPSHOTS, evaluation, {"trained_on": singles})


def evenly_spaced(clips: Sequence[Clip], tracks: int) -> list[Clip]:
    """The clips of at most `tracks` tracks, evenly spaced among the sorted ids."""
    ids = sorted({clip.track for clip in clips})
    count = min(tracks, len(ids))
    kept = {ids[i * len(ids) // count] for i in range(count)}
    return [clip for clip in clips if clip.track in kept]


def relearning_curve(
    evaluation: Evaluation,
    model: Role,
    clips: Sequence[Clip],
    watched: Sequence[Clip] | None = None,
    *,
    lr: float = LR,
) -> list[dict[str, float]]:
    """NLL of each track while a copy of the model is trained on clips; the steps are the same for every model.

    Args:
        evaluation: where the models are from.
        model: role of the model that is copied.
        clips: the training clips.
        watched: clips whose NLL is measured, after `SNAPSHOTS` steps; by default the training clips, before and after
            each step.
        lr: learning rate of AdamW.
    """
    backend, measured = evaluation.backend(model), clips if watched is None else watched
    settings = (len(clips), watched is not None, STEPS, lr, MAX_GRAD_NORM, *SNAPSHOTS)
    tensors = evaluation.cached_on_disk(
        ("relearn", *settings), lambda: {"losses": _losses(evaluation, backend.clone(), clips, watched, lr)},
        models=[model], clips=[*clips, *(watched or ())],
    )  # fmt: skip
    return [losses_by_track(backend, measured, losses) for losses in tensors["losses"]]


def _losses(
    evaluation: Evaluation, backend: Backend, clips: Sequence[Clip], watched: Sequence[Clip] | None, lr: float
) -> Tensor:
    """Losses [snapshots, N] of the watched clips while a model is trained in place."""
    backend.module.eval()  # no dropout, so that runs are deterministic

    @torch.no_grad()
    def losses(clips: Sequence[Clip]) -> Tensor:
        return torch.cat([backend.losses(Batch.of(part, backend.device)).cpu() for part in evaluation.batches(clips)])

    curve = [] if watched is None else [losses(watched)]
    training = relearn(backend, list(evaluation.batches(clips)), lr=lr, steps=STEPS)
    for step, before in enumerate(training, 1):
        if watched is None:
            curve.append(before.cpu())
        elif step in SNAPSHOTS:
            curve.append(losses(watched))
    return torch.stack(curve if watched is not None else [*curve, losses(clips)])


def _roles(evaluation: Evaluation) -> list[Role]:
    return [*available_roles(evaluation, *MODELS), "control"]


def _row(
    metric: str,
    model: Role,
    tracks: Mapping[str, float],
    curve: Sequence[Mapping[str, float]],
    after: Sequence[int],
    evaluation: Evaluation,
    details: Mapping[str, object] | None = None,
) -> Result:
    means = [sum(snapshot.values()) / len(snapshot) for snapshot in curve]
    return mean_row(
        metric, model, "forget", tracks, evaluation, unit=evaluation.backend(model).unit,
        details={"curve": means, "after": list(after), "steps": STEPS, "lr": LR, "weight_decay": WEIGHT_DECAY,
            **(details or {})},
    )  # fmt: skip
