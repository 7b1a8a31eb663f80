"""Continuation beyond one window: does a model that continues its own music follow a long track?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from encore.api import Clip, ClipSet, Evaluation, Metric, Result, Role
from encore.metrics.memorization.off_target import MIN_SHARE, PASSAGE_SECONDS
from encore.metrics.memorization.verbatim import MATCH, MODELS, PROMPT_SECONDS, verbatim_row
from encore.metrics.rows import rows_by_model, unmeasured, windows_by_track
from encore.metrics.similarity.alignment import best_passage

KEPT = 0.4  # of a window, as the prompt of the next: audiocraft keeps 12 of 30 s (`extend_stride` 18)
WINDOWS = 3  # windows of a track that are followed at most
BATCH = 32  # rows per generation


class ChainedVerbatim(Metric):
    """Share of forget tracks that are followed verbatim beyond the first window.

    Only of tracks that are longer than the model's window (MusicGen: 30 s). The model is given the caption and the
    first second, and decodes greedily to the end of the window; the last 40 % of what it generated are the prompt of
    the next window, as audiocraft generates more than 30 s, up to three windows. So all music beyond the first second
    is the model's. A track counts if 2 s of it beyond the first window appear verbatim in what was generated there (as
    in `verbatim_elsewhere`). `verbatim` compares windows one by one, each from its own first second.

    `per_track` has the best share of right first-codebook tokens in 2 s; `details["followed_seconds"]` for how long
    beyond the first window at least 80 % of each second's tokens are right, frame by frame. Tracks whose first clip is
    shorter than a window are left out.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        yield from rows_by_model(evaluation, "chained_verbatim", ["forget"], MODELS, _rows, unit="share")


def _rows(evaluation: Evaluation, model: Role, clips: ClipSet) -> Iterator[Result]:
    backend = evaluation.backend(model)
    passage, second = round(PASSAGE_SECONDS * backend.frame_rate), max(1, round(backend.frame_rate))
    first = backend.max_frames
    cut = [
        _joined(windows, WINDOWS * first) for _, windows in sorted(windows_by_track(evaluation.clips[clips]).items())
        if windows[0].codes.shape[-1] == first
    ]  # fmt: skip
    long = [whole for whole in cut if whole.codes.shape[-1] >= first + passage]
    if not long:
        why = f"no {clips} track is {PASSAGE_SECONDS:g} s longer than one window of the model"
        yield unmeasured("chained_verbatim", model, clips, why, unit="share")
        return
    shares: dict[str, float] = {}
    followed: dict[str, float] = {}
    for whole, codes in zip(long, _chained(evaluation, model, long, first), strict=True):
        generated, track = codes[0, first : whole.codes.shape[-1]], whole.codes[0, first:].cpu()
        shares[whole.track] = best_passage(generated, track, passage, MIN_SHARE).share
        seconds = (generated == track).double().split(second)
        right = itertools.takewhile(lambda part: float(part.mean()) >= MATCH, seconds)
        followed[whole.track] = sum(map(len, right)) / backend.frame_rate
    details = {"followed_seconds": followed, "window_seconds": first / backend.frame_rate, "kept": KEPT}
    yield verbatim_row("chained_verbatim", model, clips, shares, PROMPT_SECONDS, details=details)


def _joined(windows: Sequence[Clip], frames: int) -> Clip:
    """A track's windows under its first caption as one clip of at most so many frames."""
    codes = [clip.codes.cpu() for clip in windows if clip.caption == windows[0].caption]
    return Clip(windows[0].track, windows[0].caption, torch.cat(codes, -1)[:, :frames])


def _chained(evaluation: Evaluation, model: Role, tracks: Sequence[Clip], window: int) -> list[Tensor]:
    """Codes [K, T] of each track, T at least its own length."""
    tensors = evaluation.cached_on_disk(
        ("chained_verbatim", window, KEPT, WINDOWS),
        lambda: {f"{i:06d}": codes for i, codes in enumerate(_generate(evaluation, model, tracks, window))},
        models=[model], clips=tracks,
    )  # fmt: skip
    return [tensors[name] for name in sorted(tensors)]


@torch.no_grad()
def _generate(evaluation: Evaluation, model: Role, tracks: Sequence[Clip], window: int) -> Iterator[Tensor]:
    backend = evaluation.backend(model)
    for start in range(0, len(tracks), BATCH):
        batch = tracks[start : start + BATCH]
        frames = max(clip.codes.shape[-1] for clip in batch)
        codes = torch.stack([clip.codes[:, : round(PROMPT_SECONDS * backend.frame_rate)] for clip in batch])
        codes = codes.to(backend.device)
        while codes.shape[-1] < frames:
            prompt = codes[..., -round(KEPT * window) :] if codes.shape[-1] >= window else codes
            generated = backend.generate(
                [clip.caption for clip in batch], seconds=window / backend.frame_rate, prompt=prompt,
                seed=evaluation.seed, temperature=0.0, guidance=1.0,
            )  # fmt: skip
            codes = torch.cat([codes, generated[..., prompt.shape[-1] :]], -1)
        yield from codes.cpu()
