"""Attacks: audio prompts that are time-stretched, pitch-shifted, re-encoded, or with other stereo channels.

The audio is decoded from a track's codes, changed, and encoded again.
"""

from __future__ import annotations

import io
import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from encore.api import Backend, Clip, Evaluation, Metric, Result
from encore.metrics.memorization.verbatim import PROMPT_SECONDS
from encore.metrics.robustness.variants import Variant, attack_rows, tag
from encore.metrics.rows import unmeasured

if TYPE_CHECKING:
    import numpy as np

    Changed = tuple[str, np.ndarray, float]  # name of the change, waveform [C, S], tempo (see `Variant`)

MIN_SAMPLE_RATE = 5000  # Hz
STRETCHES = (0.94, 1.06)  # of the tempo
SEMITONES = (-1.0, 1.0)


class ChangedPrompt(Metric):
    """Base of the attacks that change the decoded audio of each forget clip. All models share the first one's codec."""

    metric: str

    @abstractmethod
    def changed(self, audio: np.ndarray, sample_rate: int) -> Sequence[Changed]:
        """Changes of a waveform [C, S]."""

    def why_not(self, backend: Backend) -> str:
        """Why the attack can't be measured on a model; empty if it can."""
        low = backend.sample_rate < MIN_SAMPLE_RATE
        return f"a sample rate of {backend.sample_rate} Hz is too low for this attack" if low else ""

    def variants(self, evaluation: Evaluation) -> list[Variant]:
        """The encoded variants of all forget clips that are long enough."""
        backend, variants = next(iter(evaluation.models.values())), []
        for clip in evaluation.clips["forget"]:
            with torch.no_grad():
                audio = backend.decode(clip.codes[None].to(backend.device))[0].float().clamp(-1, 1).cpu().numpy()
            for name, waveform, tempo in self.changed(audio, backend.sample_rate):
                variants += _encode(backend, clip, name, waveform, tempo)
        return variants

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        metric = self.metric
        if why := self.why_not(next(iter(evaluation.models.values()))):
            yield unmeasured(f"{metric}_nll", "unlearned", "forget", why)
            return
        variants = self.variants(evaluation)
        if not variants:
            yield unmeasured(f"{metric}_nll", "unlearned", "forget", "no forget track is long enough")
            return
        yield from attack_rows(metric, evaluation, variants, {"verbatim": PROMPT_SECONDS})


class PromptReencoded(ChangedPrompt):
    """NLL of each track, and verbatim continuation of its first second, after OGG Vorbis (libsndfile's default)."""

    metric = "prompt_reencoded"

    def changed(self, audio: np.ndarray, sample_rate: int) -> Sequence[Changed]:
        return [("ogg", through_ogg(audio, sample_rate), 1.0)]


class PromptStretched(ChangedPrompt):
    """As `PromptReencoded`, after a tempo change of ±6 % at the same pitch (phase vocoder)."""

    metric = "prompt_time_stretched"

    def changed(self, audio: np.ndarray, sample_rate: int) -> Sequence[Changed]:
        import librosa

        return [
            (f"tempo {tempo - 1:+.0%}", librosa.effects.time_stretch(audio, rate=tempo, n_fft=_window(audio)), tempo)
            for tempo in STRETCHES
        ]


class PromptShifted(ChangedPrompt):
    """As `PromptReencoded`, after a shift of ±1 semitone at the same tempo."""

    metric = "prompt_pitch_shifted"

    def changed(self, audio: np.ndarray, sample_rate: int) -> Sequence[Changed]:
        import librosa

        window = _window(audio)
        return [
            (f"pitch {n:+.0f}", librosa.effects.pitch_shift(audio, sr=sample_rate, n_steps=n, n_fft=window), 1.0)
            for n in SEMITONES
        ]


class PromptChannels(ChangedPrompt):
    """As `PromptReencoded`, with left and right swapped, and with the mono sum (L + R) / 2 on both channels.

    Of stereo models alone, whose codebooks of left and right are interleaved. What was forgotten must stay forgotten in
    a recording with its channels the other way round, or in mono.
    """

    metric = "prompt_channels"

    def why_not(self, backend: Backend) -> str:
        return "the model is mono" if backend.channels == 1 else ""

    def changed(self, audio: np.ndarray, sample_rate: int) -> Sequence[Changed]:
        mono = audio.mean(0, keepdims=True).repeat(len(audio), 0)
        return [("swapped channels", audio[::-1].copy(), 1.0), ("mono sum", mono, 1.0)]


def through_ogg(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """Encode a waveform [C, S] as OGG Vorbis and decode it, [C, S]."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, audio.T, sample_rate, format="OGG", subtype="VORBIS")
    file.seek(0)
    back, _ = soundfile.read(file, dtype="float32", always_2d=True)
    return back.T.copy()


def _window(audio: np.ndarray) -> int:
    """Window length of the phase vocoder: librosa's 2048 samples, or less for shorter audio."""
    return min(2048, 2 ** int(math.log2(audio.shape[-1])))


def _encode(backend: Backend, clip: Clip, name: str, audio: np.ndarray, tempo: float) -> list[Variant]:
    """The variant with a changed waveform [C, S], cut to the model's window; empty if nothing is left."""
    hop = round(backend.sample_rate / backend.frame_rate)  # samples per frame; some codecs reject partial frames
    audio = audio[:, : audio.shape[-1] // hop * hop]
    with torch.no_grad():
        codes = backend.encode(torch.as_tensor(audio, dtype=torch.float32)[None])[0].cpu()
    codes = codes[:, : backend.max_frames]
    if codes.shape[-1] <= backend.codebooks:
        return []
    return [Variant(name, clip, Clip(tag(clip.track, name), clip.caption, codes), tempo)]
