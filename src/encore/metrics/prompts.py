"""Attacks: does the track come back when what is played to the model is a stretched, shifted or re-encoded copy?

The audio is what the codec plays of a track's codes, changed and encoded again.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from encore.api import Backend, Clip, Evaluation, Metric, Result
from encore.metrics.rows import unmeasured
from encore.metrics.variants import Variant, attack_rows, tag
from encore.metrics.verbatim import PROMPT_SECONDS

if TYPE_CHECKING:
    import numpy as np

STRETCHES = (0.94, 1.06)  # of the tempo
SEMITONES = (-1.0, 1.0)


class PromptReencoded(Metric):
    """NLL of each track, and replay from its first second, after OGG Vorbis (libsndfile's default quality)."""

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        variants = []
        for clip in evaluation.clips["forget"]:
            backend, audio = _played(evaluation, clip)
            variants += _heard(backend, clip, "ogg", through_ogg(audio, backend.sample_rate))
        yield from _rows("prompt_reencoded", evaluation, variants)


class PromptStretched(Metric):
    """The same after a tempo change of ±6 % at the same pitch (phase vocoder)."""

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        import librosa

        variants = []
        for clip in evaluation.clips["forget"]:
            backend, audio = _played(evaluation, clip)
            for rate in STRETCHES:
                stretched = librosa.effects.time_stretch(audio, rate=rate)
                variants += _heard(backend, clip, f"tempo {rate - 1:+.0%}", stretched, pace=rate)
        yield from _rows("prompt_stretched", evaluation, variants)


class PromptShifted(Metric):
    """The same after a shift of ±1 semitone at the same tempo."""

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        import librosa

        variants = []
        for clip in evaluation.clips["forget"]:
            backend, audio = _played(evaluation, clip)
            for steps in SEMITONES:
                shifted = librosa.effects.pitch_shift(audio, sr=backend.sample_rate, n_steps=steps, res_type="soxr_hq")
                variants += _heard(backend, clip, f"pitch {steps:+.0f}", shifted)
        yield from _rows("prompt_shifted", evaluation, variants)


def through_ogg(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """[C, S] -> [C, S], after OGG Vorbis and back."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, audio.T, sample_rate, format="OGG", subtype="VORBIS")
    file.seek(0)
    back, _ = soundfile.read(file, dtype="float32", always_2d=True)
    return back.T.copy()


def _rows(metric: str, evaluation: Evaluation, variants: list[Variant]) -> Iterator[Result]:
    if not variants:
        yield unmeasured(f"{metric}_nll", "unlearned", "forget", "no forget track is long enough")
        return
    yield from attack_rows(metric, evaluation, variants, {"verbatim": PROMPT_SECONDS})


def _played(evaluation: Evaluation, clip: Clip) -> tuple[Backend, np.ndarray]:
    """The first model, whose codec is everyone's, and a clip's waveform [C, S] by it, at most full scale."""
    backend = next(iter(evaluation.models.values()))
    with torch.no_grad():
        audio = backend.decode(clip.codes[None].to(backend.device))[0]
    return backend, audio.float().clamp(-1, 1).cpu().numpy()


def _heard(backend: Backend, clip: Clip, name: str, audio: np.ndarray, pace: float = 1.0) -> list[Variant]:
    """The variant of a clip that a changed waveform [C, S] is, cut to the model's window; none if nothing is left."""
    hop = round(backend.sample_rate / backend.frame_rate)  # samples of a frame: a codec may refuse a part of one
    audio = audio[:, : audio.shape[-1] // hop * hop]
    with torch.no_grad():
        codes = backend.encode(torch.as_tensor(audio, dtype=torch.float32)[None])[0].cpu()
    codes = codes[:, : backend.max_frames]
    if codes.shape[-1] <= backend.codebooks:
        return []
    return [Variant(name, clip, Clip(tag(clip.track, name), clip.caption, codes), pace)]
