"""An attack: does a little training bring the forgotten tracks back, be it on them, on one of them, or on others?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from encore.api import Backend, Batch, Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.rows import by_track, given, mean_row, unmeasured
from encore.relearning import MAX_GRAD_NORM, WEIGHT_DECAY, relearn

STEPS = 8
LR = 2e-4
LOOKS = (0, 1, 2, 4, 8)  # steps after which the forget tracks are looked at where others are trained on
ONES = 3  # forget tracks that are trained on alone, one after another
MODELS: tuple[Role, ...] = ("base", "unlearned", "gold")


class Relearn(Metric):
    """Forget NLL after 8 AdamW steps on a copy: lr 2e-4, weight decay .01, the whole forget set per step, gradient
    norm at most 1.

    A model in which the tracks are only suppressed falls far below gold, for which they are new. `details["curve"]` has
    the NLL before the first and after each step. The `control` was never trained at all.
    """

    name = "relearn"
    lr = LR

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for model in _attacked(evaluation):
            curve = retrained(evaluation, model, evaluation.clips["forget"], lr=self.lr)
            yield _row(self.name, model, curve[-1], curve, range(STEPS + 1), evaluation, {"lr": self.lr})


class RelearnFast(Relearn):
    """The same at five times the rate, lr 1e-3: an attacker chooses the rate, and a low one reaches less in 8 steps."""

    name = "relearn_fast"
    lr = 5 * LR


class RelearnOthers(Metric):
    """The same after steps on tracks of another set: rows `relearn_retain` and `relearn_holdout`.

    As many tracks as there are to forget, spread over the set. Training on other music should not bring back what was
    removed (Hu et al., "Jogging the Memory of Unlearned LLMs", arXiv 2406.13356, relearn from other data). Gold and the
    never-trained control say what such training does by itself. `details["after"]` are the steps of the curve.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        sets: tuple[ClipSet, ...] = ("retain", "holdout")
        for clips in sets:
            name = f"relearn_{clips}"
            if not evaluation.clips.get(clips):
                yield unmeasured(name, "unlearned", "forget", f"there are no {clips} tracks")
                continue
            forget = evaluation.clips["forget"]
            chosen = spread(evaluation.clips[clips], len({clip.track for clip in forget}))
            for model in _attacked(evaluation):
                curve = retrained(evaluation, model, chosen, forget)
                details = {"trained_on": sorted({clip.track for clip in chosen})}
                yield _row(name, model, curve[-1], curve, LOOKS, evaluation, details)


class RelearnOne(Metric):
    """NLL of the *other* forget tracks after the same steps on one of them: does one bring back the rest?

    Done for each of up to three tracks; a track's figure is its mean over the runs that did not train on it.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        forget = evaluation.clips["forget"]
        tracks = sorted({clip.track for clip in forget})
        if len(tracks) < 2:
            yield unmeasured("relearn_one", "unlearned", "forget", "there is only one forget track")
            return
        ones = sorted({clip.track for clip in spread(forget, ONES)})
        for model in _attacked(evaluation):
            seen: list[dict[str, list[float]]] = [{} for _ in LOOKS]
            for one in ones:
                curve = retrained(evaluation, model, [clip for clip in forget if clip.track == one], forget)
                for look, figures in zip(seen, curve, strict=True):
                    for track in figures.keys() - {one}:
                        look.setdefault(track, []).append(figures[track])
            means = [{track: sum(nlls) / len(nlls) for track, nlls in sorted(look.items())} for look in seen]
            yield _row("relearn_one", model, means[-1], means, LOOKS, evaluation, {"trained_on": ones})


def spread(clips: Sequence[Clip], tracks: int) -> list[Clip]:
    """The clips of so many tracks (or all), evenly spaced among the sorted ids."""
    ids = sorted({clip.track for clip in clips})
    count = min(tracks, len(ids))
    chosen = {ids[i * len(ids) // count] for i in range(count)}
    return [clip for clip in clips if clip.track in chosen]


def retrained(
    evaluation: Evaluation,
    model: Role,
    clips: Sequence[Clip],
    watched: Sequence[Clip] | None = None,
    *,
    lr: float = LR,
) -> list[dict[str, float]]:
    """NLL of each track while a copy of the model is trained on clips; every model sees the same steps.

    Args:
        watched: whose NLL is taken, after `LOOKS` steps; without it the trained clips', before and after each step.
        lr: learning rate of AdamW.
    """
    backend, seen = evaluation.backend(model), clips if watched is None else watched
    settings = (len(clips), watched is not None, STEPS, lr, MAX_GRAD_NORM, *LOOKS)
    made = evaluation.cached_on_disk(
        ("relearn", *settings), lambda: {"losses": _losses(evaluation, backend.clone(), clips, watched, lr)},
        models=[model], clips=[*clips, *(watched or ())],
    )  # fmt: skip
    return [_by_track(backend, seen, losses) for losses in made["losses"]]


def _losses(
    evaluation: Evaluation, backend: Backend, clips: Sequence[Clip], watched: Sequence[Clip] | None, lr: float
) -> Tensor:
    """Losses [looks, N] of the watched clips while a model is trained, in place."""
    backend.module.eval()  # no dropout: two runs must agree

    @torch.no_grad()
    def look(clips: Sequence[Clip]) -> Tensor:
        return torch.cat([backend.losses(Batch.of(part, backend.device)).cpu() for part in evaluation.batches(clips)])

    curve = [] if watched is None else [look(watched)]
    training = relearn(backend, list(evaluation.batches(clips)), lr=lr, steps=STEPS)
    for step, before in enumerate(training, 1):
        if watched is None:
            curve.append(before.cpu())
        elif step in LOOKS:
            curve.append(look(watched))
    return torch.stack(curve if watched is not None else [*curve, look(clips)])


def _by_track(backend: Backend, clips: Sequence[Clip], losses: Tensor) -> dict[str, float]:
    """Losses of clips, [N], as means over each track's tokens."""
    counts = [
        int(backend.token_mask(Batch.of([clip], backend.device)).sum()) if backend.has_tokens else 1 for clip in clips
    ]
    means = losses.double().tolist()
    return by_track(clips, [mean * count for mean, count in zip(means, counts, strict=True)], counts)


def _attacked(evaluation: Evaluation) -> list[Role]:
    return [*given(evaluation, *MODELS), "control"]


def _row(
    metric: str,
    model: Role,
    tracks: Mapping[str, float],
    curve: Sequence[Mapping[str, float]],
    after: Sequence[int],
    evaluation: Evaluation,
    details: Mapping[str, object] | None = None,
) -> Result:
    means = [sum(look.values()) / len(look) for look in curve]
    return mean_row(
        metric, model, "forget", tracks, evaluation, unit=evaluation.backend(model).unit,
        details={"curve": means, "after": list(after), "steps": STEPS, "lr": LR, "weight_decay": WEIGHT_DECAY,
            **(details or {})},
    )  # fmt: skip
