"""Of a backend: what it plays."""

from __future__ import annotations

import torch
from torch import Tensor

from encore.api import Clip
from encore.errors import UsageError
from encore.testing.backend_subject import CAPTIONS, BackendSubject
from encore.testing.core import Skip, Suite, need
from encore.testing.global_state import Globals, close, disturb

suite: Suite[BackendSubject] = Suite("backend")
FRAMES = 24  # played at most


def _played(subject: BackendSubject) -> Tensor:
    """What the first two captions play at seed 5, once: playing is what takes a backend longest."""
    if "played" not in subject.kept:
        disturb(1)
        subject.kept["played"] = subject.backend.generate(CAPTIONS[:2], seconds=_seconds(subject), seed=5)
    return subject.kept["played"]


def _seconds(subject: BackendSubject) -> float:
    return min(FRAMES, subject.frames) / subject.backend.frame_rate


@suite.check("generate", "generate gives codes [N, K, T] of the seconds asked for, as encode gives them")
def generate(subject: BackendSubject) -> None:
    backend, seconds = subject.backend, _seconds(subject)
    codes = _played(subject)
    wanted = torch.int64 if backend.has_tokens else torch.float32
    need(codes.dtype == wanted, f"generate returns {codes.dtype}, not {wanted}")
    need(
        codes.dim() == 3 and codes.shape[:2] == (2, backend.codebooks),
        f"generate returns shape {list(codes.shape)} for 2 captions and {backend.codebooks} codebooks",
    )
    frames = round(seconds * backend.frame_rate)
    slack = 0 if backend.has_tokens else 1
    need(abs(codes.shape[-1] - frames) <= slack, f"{frames} frames were asked for, {codes.shape[-1]} were played")
    if backend.has_tokens:
        low, high = int(codes.min()), int(codes.max())
        need(
            low >= 0 and high < backend.codebook_size,
            f"codes from {low} to {high}, codebook_size {backend.codebook_size}",
        )
    else:
        need(codes.isfinite().all(), "latents that are not finite")
    need(not codes.requires_grad, "generate returns a tensor with a gradient")


@suite.check("generate's seed", "generate depends on its seed alone, and a row not on the captions beside it")
def seeded(subject: BackendSubject) -> None:
    backend, seconds = subject.backend, _seconds(subject)
    both = _played(subject)
    disturb(2)
    shared = Globals()
    need(_same(both, backend.generate(CAPTIONS[:2], seconds=seconds, seed=5)), "one seed plays two things")
    moved = shared.moved()
    need(not moved, f"generate draws from, or seeds, {moved} shared random generator")
    need(not _same(both, backend.generate(CAPTIONS[:2], seconds=seconds, seed=6)), "two seeds play the same")
    alone = backend.generate(CAPTIONS[:1], seconds=seconds, seed=5)
    need(_same(both[:1], alone), "what a caption plays depends on the captions beside it")


@suite.check("prompt", "generate begins with the prompt that it is given")
def prompt(subject: BackendSubject) -> None:
    backend, seconds = subject.backend, _seconds(subject)
    for frames in (1, max(2, min(FRAMES, subject.frames) // 3)):
        given = torch.stack([subject.codes(frames, seed) for seed in (1, 2)]).to(backend.device)
        try:
            codes = backend.generate(CAPTIONS[:2], seconds=seconds, prompt=given, seed=1)
        except UsageError as error:
            if backend.has_tokens:
                raise
            raise Skip(error.message) from error
        kept = float((codes[..., :frames] == given).float().mean())
        need(
            _same(codes[..., :frames], given), f"{1 - kept:.0%} of a prompt of {frames} frames is not in what is played"
        )
        length = round(seconds * backend.frame_rate)
        need(
            not backend.has_tokens or codes.shape[-1] == length,
            f"with a prompt of {frames}, {codes.shape[-1]} frames are played, and {length} were asked for",
        )


@suite.check("greedy", "temperature=0 plays the likeliest code given the codes before it, whatever the seed")
def greedy(subject: BackendSubject) -> None:
    backend, seconds = subject.with_tokens(), _seconds(subject)
    first = backend.generate(CAPTIONS[:2], seconds=seconds, temperature=0.0, guidance=1.0, seed=1)
    second = backend.generate(CAPTIONS[:2], seconds=seconds, temperature=0.0, guidance=1.0, seed=2)
    need(torch.equal(first, second), "at temperature 0, two seeds play different codes")
    played = subject.batch([Clip(str(i), CAPTIONS[i], codes) for i, codes in enumerate(first)])
    with torch.no_grad():
        likeliest, mask = backend.logits(played).argmax(-1), backend.token_mask(played)
    right = float((likeliest == played.codes)[mask].float().mean())
    need(right >= 0.97, f"{1 - right:.0%} of what is played greedily is not the likeliest code that logits tells")


def _same(a: Tensor, b: Tensor) -> bool:
    """Equal codes; of latents, up to rounding."""
    if a.shape != b.shape:
        return False
    return close(a, b, 1e-3) if a.is_floating_point() else torch.equal(a, b)
