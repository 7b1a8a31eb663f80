"""Slow float64 answers, a clip at a time, that the default method is compared with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tests.tiny_model import CAPTIONS, CODES

from encore.api import Batch, Clip, MethodSpec, Session, Step
from encore.backends.musicgen import MusicgenBackend
from encore.methods.difficulty import difficulty
from encore.methods.encore import Encore
from encore.methods.encore_teacher import MEAN_SHIFT, sharpened
from encore.unlearn.reference import FrozenReference

SPEC = MethodSpec("encore", "", "", needs=frozenset({"retain", "reference"}))
SHIFT = 0.07  # seconds; 7 frames


def make_clips(count: int, seed: int = 0) -> list[Clip]:
    """Random codes, each clip a frame longer than the one before."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Clip(f"t{seed}{i}", CAPTIONS[i % 3], torch.randint(CODES, (2, 20 + i), generator=generator))
        for i in range(count)
    ]


def made(
    backend: MusicgenBackend,
    forget: Sequence[Clip],
    retain: Sequence[Clip],
    level: float | None,
    *,
    holdout: Sequence[Clip] = (),
    **options: float,
) -> tuple[Encore, Session]:
    Encore.spec = SPEC
    method = Encore(Encore.Options(**{"attack_share": 0.0} | options))
    generator = torch.Generator().manual_seed(0)
    reference = FrozenReference(backend)
    session = Session(backend, forget, retain, holdout, reference, generator, 0, level, lambda _: None)
    method.prepare(session)
    return method, session


def step_of(backend: MusicgenBackend, session: Session, seed: int = 0) -> Step:
    return Step(backend, session.reference, torch.Generator().manual_seed(seed), 0.0, session.holdout_nll)


def moved(backend: MusicgenBackend) -> MusicgenBackend:
    """A clone that is not the base any more."""
    torch.manual_seed(3)
    other = backend.clone()
    with torch.no_grad():
        for weight in other.module.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    return other


@torch.no_grad()
def logprobs_of(backend: MusicgenBackend, clip: Clip) -> torch.Tensor:
    """[K, T, V], float64."""
    return backend.logits(Batch.of([clip]))[0].double().log_softmax(-1)


def costs_of(backend: MusicgenBackend, clip: Clip) -> np.ndarray:
    """NLL of every token, [K, T]; NaN where masked."""
    values = -logprobs_of(backend, clip).gather(-1, clip.codes[..., None])[..., 0]
    return np.where(backend.token_mask(Batch.of([clip]))[0], values, np.nan)


def nll_of(backend: MusicgenBackend, clip: Clip) -> np.ndarray:
    """Mean NLL of each codebook, [K]."""
    return np.nanmean(costs_of(backend, clip), 1)


def between(backend: MusicgenBackend, clips: Sequence[Clip], count: int) -> float:
    """The held-out level below half of which `count` of the clips lie: so many are memorised."""
    own = sorted(float(nll_of(backend, clip).mean()) for clip in clips)
    return own[count - 1] + own[count]


def alike(first: str, second: str) -> float:
    """Twice the length of the longest common subsequence as a share of both lengths, of words in alphabetical order."""
    a, b = (" ".join(sorted(text.lower().replace(",", " ").split())) for text in (first, second))
    longest = np.zeros((len(a) + 1, len(b) + 1))
    for i, j in np.ndindex(len(a), len(b)):
        longest[i + 1, j + 1] = longest[i, j] + 1 if a[i] == b[j] else max(longest[i, j + 1], longest[i + 1, j])
    return float(2 * longest[-1, -1] / (len(a) + len(b)))


def drawn_caption(caption: str, clips: Sequence[Clip], generator: torch.Generator) -> str:
    """The caption that a teacher has in place of another: one of the 16 most like it of clips, but not the same."""
    others = sorted({clip.caption for clip in clips} - {caption})
    nearest = sorted(others, key=lambda other: -alike(caption, other))[:16] or [caption]
    return nearest[int(torch.randint(len(nearest), (1,), generator=generator))]


def start_of(clip: Clip) -> Clip:
    """A clip's first frames."""
    return Clip(clip.track, clip.caption, clip.codes[:, :12])


def start_mean(values: np.ndarray) -> float:
    """The mean of values [K, T] that are not NaN: frame t weighs exp(-t / 2)."""
    weights = np.exp(-np.arange(values.shape[1]) / 2) * ~np.isnan(values)
    return float(np.nansum(values * weights) / weights.sum())


def mean_of(backend: MusicgenBackend, clip: Clip) -> np.ndarray:
    """Mean prediction for a clip, [K, V]."""
    mask = backend.token_mask(Batch.of([clip]))[0]
    return np.stack([p[m].mean(0) for p, m in zip(logprobs_of(backend, clip).exp(), mask, strict=True)])


def backward_mean_of(base: MusicgenBackend, clip: Clip, drawn: Sequence[tuple[int, str]]) -> np.ndarray:
    """Mean prediction for a clip played backwards, without its first frames and under captions that were drawn."""
    backward = [
        Clip(clip.track, caption, torch.tensor(clip.codes[:, begin:].numpy()[:, ::-1].copy()))
        for begin, caption in drawn
    ]
    return np.mean([mean_of(base, one) for one in backward], 0)


def divergences_of(
    model: MusicgenBackend, strange: Clip, own: torch.Tensor, sharp: bool, mean: np.ndarray | None = None
) -> np.ndarray:
    """KL of the predictions for a clip and others [K, T, V] of every token, [K, T]; NaN where masked.

    The first are brought nearer to a mean prediction.
    """
    teacher, mask = logprobs_of(model, strange), model.token_mask(Batch.of([strange]))[0]
    if mean is not None:
        more = MEAN_SHIFT * (np.log(mean) - np.log(mean_of(model, strange)))
        teacher = (teacher + torch.tensor(more)[:, None]).log_softmax(-1)
    if sharp:
        teacher = sharpened(teacher[None], mask[None], 0.0)[0].log_softmax(-1)
    return np.where(mask, (teacher.exp() * (teacher - own)).sum(-1), np.nan)


def rise_of(backend: MusicgenBackend, clip: Clip, shift: int) -> float:
    """What the later part of a clip costs more where the clip begins there, nats per token."""
    begin = min(shift, clip.codes.shape[-1] // 2)
    later = Clip(clip.track, clip.caption, clip.codes[:, begin:])
    return float(np.nanmean(costs_of(backend, later) - costs_of(backend, clip)[:, begin:]))


def levels_of(
    backend: MusicgenBackend, forget: Sequence[Clip], new: Sequence[Clip], limit: float, shift: int
) -> list[np.ndarray]:
    unknown = np.mean([nll_of(backend, clip) for clip in new], 0)
    shares = difficulty(forget, new, torch.tensor([nll_of(backend, clip).mean() for clip in new])).tolist()
    usual = np.mean([rise_of(backend, clip, shift) for clip in new])
    return [
        unknown * share
        if (own := nll_of(backend, clip)).mean() < limit
        else own + max(0, rise_of(backend, clip, shift) - usual)
        for clip, share in zip(forget, shares, strict=True)
    ]
