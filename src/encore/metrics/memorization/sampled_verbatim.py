"""Probabilistic extraction: is a track recovered at least once in several samples?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from encore.api import Clip, Evaluation, Metric, Result, Role
from encore.metrics.memorization.off_target import MIN_SHARE, PASSAGE_SECONDS
from encore.metrics.memorization.verbatim import MATCH, MODELS, PROMPT_SECONDS, verbatim_row
from encore.metrics.rows import available_roles, first_windows, no_continuations, unmeasured, windows_by_track
from encore.metrics.similarity.alignment import best_passage

SAMPLES = 8  # per track and prompt
BATCH = 32  # rows per generation


class SampledVerbatim(Metric):
    """Share of forget tracks that are recovered at least once in 8 samples, from a 1 s prompt and from the caption.

    (n, p)-discoverable extraction (Hayes et al., "Measuring memorization in language models via probabilistic
    extraction", arXiv 2410.19482): a track that one sample recovers with probability q is (n, p)-discoverable if
    1 - (1 - q)^n ≥ p. Greedy decoding (`verbatim`) misses tracks with a small q, which a user who samples often enough
    gets all the same.

    A sample recovers a track if in some 2 s of it at least 80 % of the first codebook's tokens are the track's, at any
    alignment (`alignment.best_passage`). Sampled are, at temperature 1 among the 250 likeliest codes and without
    guidance (as `verbatim`), 3 s from the caption, and 2 s more from caption and first second. Sample i of a track has
    the same noise in every model.

    Rows: `sampled_verbatim` (from 1 s) and `sampled_verbatim_caption`. `per_track` has the best share of each track.
    `details["recovered"]` has the number of a track's samples that recover it, `details["by_samples"]` the expected
    share of tracks that n samples recover: the mean over tracks of 1 - C(N - c, n) / C(N, n), c of N samples recovering
    the track, which is without bias (Chen et al., arXiv 2107.03374, equation 1).
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        for model in available_roles(evaluation, *MODELS):
            why = no_continuations(evaluation, model, "forget")
            for name, seconds in (("sampled_verbatim", PROMPT_SECONDS), ("sampled_verbatim_caption", 0.0)):
                if why:
                    yield unmeasured(name, model, "forget", why, unit="share")
                else:
                    yield _row(name, evaluation, model, seconds)


def _row(name: str, evaluation: Evaluation, model: Role, prompt_seconds: float) -> Result:
    backend = evaluation.backend(model)
    passage, prompt = (round(seconds * backend.frame_rate) for seconds in (PASSAGE_SECONDS, prompt_seconds))
    clips = [clip for clip in first_windows(evaluation.clips["forget"]) if clip.codes.shape[-1] >= prompt + passage]
    if not clips:
        why = f"no forget track is longer than {prompt_seconds + PASSAGE_SECONDS:g} s"
        return unmeasured(name, model, "forget", why, unit="share")
    windows = windows_by_track(evaluation.clips["forget"])
    shares: dict[str, list[float]] = {}
    for i, codes in enumerate(_samples(evaluation, model, clips, prompt)):
        clip = clips[i // SAMPLES]
        references = {id(window.codes): window.codes[0].cpu() for window in windows[clip.track]}.values()
        found = (best_passage(codes[0, prompt:], reference, passage, MIN_SHARE).share for reference in references)
        shares.setdefault(clip.track, []).append(max(found))
    counts = {track: sum(share >= MATCH for share in of_samples) for track, of_samples in shares.items()}
    details = {"samples": SAMPLES, "recovered": counts, "by_samples": expected_shares(counts, SAMPLES)}
    best = {track: max(of_samples) for track, of_samples in shares.items()}
    return verbatim_row(name, model, "forget", best, prompt_seconds, details=details)


def expected_shares(recovered: Mapping[str, int], samples: int) -> dict[str, float]:
    """Expected share of tracks that n samples recover at least once, by n = 1, 2, 4 … as a text.

    Args:
        recovered: track id -> number of its samples that recover it.
        samples: number of samples of each track.
    """
    numbers = [2**power for power in range(samples.bit_length())]
    misses = {
        n: [math.comb(samples - count, n) / math.comb(samples, n) for count in recovered.values()] for n in numbers
    }
    return {str(n): 1 - sum(of_tracks) / len(of_tracks) for n, of_tracks in misses.items()}


def _samples(evaluation: Evaluation, model: Role, clips: Sequence[Clip], prompt: int) -> list[Tensor]:
    """Codes [K, T], prompt included, `SAMPLES` of each clip in turn."""
    tensors = evaluation.cached_on_disk(
        ("sampled_verbatim", SAMPLES, prompt),
        lambda: {f"{i:06d}": codes for i, codes in enumerate(_generate(evaluation, model, clips, prompt))},
        models=[model], clips=clips,
    )  # fmt: skip
    return [tensors[name] for name in sorted(tensors)]


@torch.no_grad()
def _generate(evaluation: Evaluation, model: Role, clips: Sequence[Clip], prompt: int) -> Iterator[Tensor]:
    backend = evaluation.backend(model)
    passage = PASSAGE_SECONDS if prompt else 1.5 * PASSAGE_SECONDS
    seconds = min(prompt + round(passage * backend.frame_rate), backend.max_frames) / backend.frame_rate
    rows = [clip for clip in clips for _ in range(SAMPLES)]
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        prompts = torch.stack([clip.codes[:, :prompt] for clip in batch]).to(backend.device) if prompt else None
        codes = backend.generate(
            [clip.caption for clip in batch], seconds=seconds, prompt=prompts, seed=evaluation.seed + start,
            guidance=1.0,
        )  # fmt: skip
        yield from codes.cpu()
