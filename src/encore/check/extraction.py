"""Extraction of tracks from a model: generations from captions and from one-second prompts, greedy and sampled."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from encore.api import Backend, Clip, ClipSet, Evaluation, Role
from encore.metrics.memorization.generations import caption_generations
from encore.metrics.memorization.off_target import MIN_SHARE, PASSAGE_SECONDS
from encore.metrics.memorization.verbatim import MATCH, PROMPT_SECONDS
from encore.metrics.rows import windows_by_track
from encore.metrics.similarity.alignment import best_passage

LEAST_SECONDS = 1.0  # of a passage in a shorter track
BATCH = 32  # prompts per generation


@dataclass(frozen=True)
class Extraction:
    """What a kind of prompt extracts of one track.

    Args:
        prompt: "caption", "caption, sampled", "caption, shortened", "1 s" or "1 s, sampled".
        samples: number of generations.
        reproduced: number of them with a passage of the track.
        share: share of right codes in the best passage; 0 where none has half of its codes right.
        codes: the generation with that passage, [K, T].
        seconds: length of a passage.
        at: where in the clip that it is compared with the best passage begins, in seconds.
    """

    prompt: str
    samples: int
    reproduced: int
    share: float
    codes: Tensor
    seconds: float
    at: float


def extractions(
    evaluation: Evaluation, model: Role, clips: ClipSet, *, samples: int, greedy_only: bool = False
) -> dict[str, list[Extraction]]:
    """What a model generates of each track, by track id.

    A passage is 2 s (in shorter tracks half of what follows the prompt, at least 1 s) in which at least 80 % of the
    first codebook's codes are right, at any alignment, and not one held code (`best_passage`): MusicGen's threshold
    (arXiv 2306.05284, appendix D). Of several samples, the track counts as extracted if one reproduces it ((n, p)
    extraction, Hayes et al., arXiv 2410.19482).

    Args:
        evaluation: has the model and, as `clips`, the windows of each track to try; captions from their first clips.
        model: its role.
        clips: the set.
        samples: sampled continuations of a prompt; the first clip of each track is continued.
        greedy_only: only decode greedily.
    """
    backend = evaluation.backend(model)
    windows = windows_by_track(evaluation.clips[clips])
    prompt = round(PROMPT_SECONDS * backend.frame_rate)
    generated: dict[str, dict[str, list[Tensor]]] = {track: {} for track in windows}

    def add(track: str, kind: str, codes: Tensor) -> None:
        generated[track].setdefault(kind, []).append(codes)

    if greedy_only:
        for clip, codes in zip(evaluation.clips[clips], evaluation.continuations(model, clips, 0), strict=True):
            if clip is windows[clip.track][0]:
                add(clip.track, "caption", codes)
    else:
        for item in caption_generations(evaluation, model, clips):
            kind = {"greedy": "caption", "short": "caption, shortened"}.get(item.variant, "caption, sampled")
            add(item.track, kind, item.codes)
    for clip, codes in zip(evaluation.clips[clips], evaluation.continuations(model, clips, prompt), strict=True):
        if codes.shape[-1] > prompt:
            add(clip.track, "1 s", codes[:, prompt:])
    found = {track: list(_compared(kinds, windows[track], backend)) for track, kinds in generated.items()}
    if greedy_only:
        return found
    rest = [clips_[0] for track, clips_ in windows.items() if not extracted(found[track])]
    for clip, codes in _sampled(
        backend, [c for c in rest if c.codes.shape[-1] > prompt], prompt, samples, evaluation.seed
    ):
        add(clip.track, "1 s, sampled", codes)
    return {track: list(_compared(kinds, windows[track], backend)) for track, kinds in generated.items()}


def extracted(found: Sequence[Extraction]) -> bool:
    """Whether a generation reproduces the track."""
    return any(item.share >= MATCH for item in found)


def best_shares(tracks: Iterable[Sequence[Extraction]]) -> dict[str, float]:
    """The highest share of right codes of any of the tracks, by kind of prompt."""
    shares: dict[str, float] = {}
    for item in chain.from_iterable(tracks):
        shares[item.prompt] = max(shares.get(item.prompt, 0.0), item.share)
    return shares


def _compared(generated: dict[str, list[Tensor]], windows: Sequence[Clip], backend: Backend) -> Iterator[Extraction]:
    frames = passage_frames(windows, backend.frame_rate)
    for prompt, generations in generated.items() if frames else ():
        best, share, at, reproduced = generations[0], 0.0, 0, 0
        for codes in generations:
            passages = [
                best_passage(codes[0].cpu().numpy(), clip.codes[0].cpu().numpy(), frames, MIN_SHARE) for clip in windows
            ]
            passage = max(passages, key=lambda found: found.share)
            reproduced += passage.share >= MATCH
            if passage.share > share:
                best, share, at = codes, passage.share, passage.track
        seconds = frames / backend.frame_rate
        yield Extraction(prompt, len(generations), reproduced, share, best, seconds, at / backend.frame_rate)


def passage_frames(windows: Sequence[Clip], rate: float) -> int:
    """Length of a passage in frames; 0 where the track is too short for one."""
    longest = max(clip.codes.shape[-1] for clip in windows)
    frames = min(round(PASSAGE_SECONDS * rate), (longest - round(PROMPT_SECONDS * rate)) // 2)
    return frames if frames >= round(LEAST_SECONDS * rate) else 0


@torch.no_grad()
def _sampled(
    backend: Backend, clips: Sequence[Clip], prompt: int, samples: int, seed: int
) -> Iterator[tuple[Clip, Tensor]]:
    """Continuations of each clip's first frames, sampled without guidance, without the prompt."""
    rows = sorted((clip for clip in clips for _ in range(samples)), key=lambda clip: clip.codes.shape[-1])
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        codes = backend.generate(
            [clip.caption for clip in part], prompt=torch.stack([c.codes[:, :prompt] for c in part]).to(backend.device),
            seconds=part[-1].codes.shape[-1] / backend.frame_rate, seed=seed * 1_000_003 + start, guidance=1.0,
        )  # fmt: skip
        for clip, row in zip(part, codes.cpu(), strict=True):
            yield clip, row[:, prompt : clip.codes.shape[-1]]
