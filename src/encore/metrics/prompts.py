"""Attacks: does the track come back when what is played to the model is a stretched, shifted or re-encoded copy?

The audio is what the codec plays of a track's codes, changed and encoded again.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from encore.api import Backend, Clip, Evaluation, Metric, Result
from encore.metrics.rows import unmeasured
from encore.metrics.variants import Variant, attack_rows, tag
from encore.metrics.verbatim import PROMPT_SECONDS

if TYPE_CHECKING:
    import numpy as np

    # a waveform [C, S] and its rate -> name, waveform and pace (see `Variant`) of each change
    Changed = Callable[[np.ndarray, int], Sequence[tuple[str, np.ndarray, float]]]

LEAST_RATE = 5000  # Hz of a model's sound, below which there is little to stretch
STRETCHES = (0.94, 1.06)  # of the tempo
SEMITONES = (-1.0, 1.0)


class PromptReencoded(Metric):
    """NLL of each track, and replay from its first second, after OGG Vorbis (libsndfile's default quality)."""

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        yield from _measured(
            "prompt_reencoded", evaluation, lambda audio, rate: [("ogg", through_ogg(audio, rate), 1.0)]
        )


class PromptStretched(Metric):
    """The same after a tempo change of ±6 % at the same pitch (phase vocoder)."""

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        import librosa

        yield from _measured(
            "prompt_stretched",
            evaluation,
            lambda audio, _: [
                (f"tempo {pace - 1:+.0%}", librosa.effects.time_stretch(audio, rate=pace, n_fft=_window(audio)), pace)
                for pace in STRETCHES
            ],
        )


class PromptShifted(Metric):
    """The same after a shift of ±1 semitone at the same tempo."""

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        import librosa

        yield from _measured(
            "prompt_shifted",
            evaluation,
            lambda audio, rate: [
                (
                    f"pitch {steps:+.0f}",
                    librosa.effects.pitch_shift(audio, sr=rate, n_steps=steps, n_fft=_window(audio)),
                    1.0,
                )
                for steps in SEMITONES
            ],
        )


def through_ogg(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """[C, S] -> [C, S], after OGG Vorbis and back."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, audio.T, sample_rate, format="OGG", subtype="VORBIS")
    file.seek(0)
    back, _ = soundfile.read(file, dtype="float32", always_2d=True)
    return back.T.copy()


def _measured(metric: str, evaluation: Evaluation, changed: Changed) -> Iterator[Result]:
    """Rows of an attack that changes each forget clip as the first model, whose codec is everyone's, plays it."""
    backend = next(iter(evaluation.models.values()))
    if backend.sample_rate < LEAST_RATE:
        why = f"{backend.sample_rate} Hz are too few to change a sound and keep it"
        yield unmeasured(f"{metric}_nll", "unlearned", "forget", why)
        return
    variants = []
    for clip in evaluation.clips["forget"]:
        with torch.no_grad():
            audio = backend.decode(clip.codes[None].to(backend.device))[0].float().clamp(-1, 1).cpu().numpy()
        for name, sound, pace in changed(audio, backend.sample_rate):
            variants += _heard(backend, clip, name, sound, pace)
    if not variants:
        yield unmeasured(f"{metric}_nll", "unlearned", "forget", "no forget track is long enough")
        return
    yield from attack_rows(metric, evaluation, variants, {"verbatim": PROMPT_SECONDS})


def _window(audio: np.ndarray) -> int:
    """Samples of the vocoder's window: librosa's 2048, less for what is shorter."""
    return min(2048, 2 ** int(math.log2(audio.shape[-1])))


def _heard(backend: Backend, clip: Clip, name: str, audio: np.ndarray, pace: float) -> list[Variant]:
    """The variant of a clip that a changed waveform [C, S] is, cut to the model's window; none if nothing is left."""
    hop = round(backend.sample_rate / backend.frame_rate)  # samples of a frame: a codec may refuse a part of one
    audio = audio[:, : audio.shape[-1] // hop * hop]
    with torch.no_grad():
        codes = backend.encode(torch.as_tensor(audio, dtype=torch.float32)[None])[0].cpu()
    codes = codes[:, : backend.max_frames]
    if codes.shape[-1] <= backend.codebooks:
        return []
    return [Variant(name, clip, Clip(tag(clip.track, name), clip.caption, codes), pace)]
