"""What a listener compares: harmony over time, melody, rhythm. From waveforms, with librosa."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from encore.metrics.similarity.sequences import edit_similarities

RATE = 15.0  # frames a second of harmony and melody
ONSET_RATE = 31.25
LOWEST, OCTAVES = "C2", 5  # of the constant-Q transform
TEMPOS = (0.94, 0.97, 1.0, 1.03, 1.06)  # at which two clips may still be one piece
SHIFT_SECONDS = 0.5  # by how much one may begin later
LEAST_SECONDS = 2.0  # a shorter clip is followed by silence: the transform's longest filter must fit
TOGETHER = 32  # waveforms that are transformed at once
QUIET = 0.05  # of a clip's loudest frame, below which there is no note

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MusicFeatures:
    """Features of one clip.

    Args:
        chroma: [12, T], energy of the pitch classes, each frame's mean taken off. onsets: [1, T'], how much begins.
        melody: semitones from each note to the next of the strongest voice above C3.
    """

    chroma: Floats
    onsets: Floats
    melody: tuple[int, ...]


def hear(audio: Sequence[NDArray[np.float32]], sample_rate: int) -> list[MusicFeatures]:
    """Features of waveforms, [S] each; those of one length are heard side by side."""
    heard: dict[int, MusicFeatures] = {}
    for length in sorted({len(one) for one in audio}):
        alike = [i for i, one in enumerate(audio) if len(one) == length]
        for start in range(0, len(alike), TOGETHER):
            numbers = alike[start : start + TOGETHER]
            heard |= zip(numbers, _hear(np.stack([audio[i] for i in numbers]), sample_rate), strict=True)
    return [heard[i] for i in range(len(audio))]


def _hear(audio: NDArray[np.float32], sample_rate: int) -> list[MusicFeatures]:
    """Features of waveforms [N, S]."""
    import librosa

    # The hop keeps its length in time, and is a multiple of 2^(octaves - 1) as the transform asks.
    hop = 16 * max(1, round(sample_rate / ONSET_RATE / 16))
    audio = np.pad(audio, ((0, 0), (0, max(0, round(LEAST_SECONDS * sample_rate) - audio.shape[1]))))
    transformed = librosa.cqt(
        audio, sr=sample_rate, hop_length=hop, fmin=librosa.note_to_hz(LOWEST), n_bins=12 * OCTAVES, tuning=0.0
    )  # [N, bins, T]
    found = []
    for one, wave in zip(np.abs(transformed).astype(np.float64), audio, strict=True):
        pitches = _pooled(one, sample_rate / hop / RATE)
        onsets = librosa.onset.onset_strength(y=wave, sr=sample_rate, hop_length=hop).astype(np.float64)[None]
        chroma = pitches.reshape(OCTAVES, 12, -1).sum(0)
        found.append(MusicFeatures(chroma - chroma.mean(0), onsets - onsets.mean(), intervals(pitches[12:])))
    return found


def intervals(pitches: Floats) -> tuple[int, ...]:
    """Semitones between successive notes of the strongest pitch of each frame, [bins, T].

    A note lasts at least two frames; what is quieter than 5 % of the loudest frame is a rest, over which the melody
    goes on. Intervals don't change with the key, nor with the tempo.
    """
    loudness = pitches.max(0)
    heard = pitches.argmax(0)[loudness > QUIET * loudness.max()] if loudness.max() > 0 else np.empty(0, dtype=int)
    notes: list[int] = []
    for before, pitch in pairwise(heard):
        if before == pitch and (not notes or notes[-1] != pitch):
            notes.append(int(pitch))
    return tuple(b - a for a, b in pairwise(notes))


def harmony(first: Sequence[MusicFeatures], second: Sequence[MusicFeatures]) -> Floats:
    """Cosine of chroma over time, the best over 12 keys, tempo changes to ±6 % and shifts to ±0.5 s. -> [P, R]"""
    return correlations([one.chroma for one in first], [two.chroma for two in second], RATE, keys=12)


def melody(first: Sequence[MusicFeatures], second: Sequence[MusicFeatures]) -> Floats:
    """1 - edit distance of the interval sequences over the longer one's length. -> [P, R]"""
    return edit_similarities([one.melody for one in first], [two.melody for two in second])


def rhythm(first: Sequence[MusicFeatures], second: Sequence[MusicFeatures]) -> Floats:
    """Correlation of the onset patterns, the best over the same tempos and shifts. -> [P, R]"""
    return correlations([one.onsets for one in first], [two.onsets for two in second], ONSET_RATE, keys=1)


def correlations(first: Sequence[Floats], second: Sequence[Floats], rate: float, *, keys: int) -> Floats:
    """Highest cosine of each pair over keys, tempos and shifts of the second, [F, T] each. -> [P, R]

    The shorter is followed by silence. All keys and shifts of a tempo are one circular cross-correlation: there is
    silence enough around a clip that no shift of it comes in again at the other end.
    """
    from scipy import fft

    shift = round(SHIFT_SECONDS * rate)
    frames = max([one.shape[1] for one in first] + [round(two.shape[1] / min(TEMPOS)) for two in second], default=0)
    shape = frames + 2 * shift
    plain = fft.rfft2(np.stack([_unit(_fitted(one, frames, shift)) for one in first]))  # [P, F, ·]
    best = np.empty((len(first), len(second)))
    for column, two in enumerate(second):
        tempos = np.stack([_unit(_fitted(_resampled(two, tempo), frames, shift)) for tempo in TEMPOS])
        moved = fft.rfft2(tempos).conj()
        highest = [
            fft.irfft2(plain * tempo, s=(two.shape[0], shape))[:, :keys, np.arange(-shift, shift + 1)].max((1, 2))
            for tempo in moved
        ]
        best[:, column] = np.max(highest, 0)
    return best


def _fitted(features: Floats, frames: int, margin: int) -> Floats:
    """[F, T] -> [F, frames + 2 * margin], silence around it."""
    return np.pad(features, ((0, 0), (margin, margin + frames - features.shape[1])))


def _unit(features: Floats) -> Floats:
    """Of length one; of silence zeros."""
    norm = float(np.linalg.norm(features))
    return features / norm if norm > 0 else features


def _pooled(features: Floats, frames: float) -> Floats:
    """[F, T] -> [F, T / frames], means over so many frames each."""
    count = max(1, round(features.shape[1] / frames))
    edges = np.linspace(0, features.shape[1], count + 1).round().astype(int)
    return np.stack([features[:, a : max(b, a + 1)].mean(1) for a, b in pairwise(edges)], 1)


def _resampled(features: Floats, tempo: float) -> Floats:
    """[F, T] -> [F, T / tempo], by linear interpolation."""
    frames = max(1, round(features.shape[1] / tempo))
    at = np.linspace(0, features.shape[1] - 1, frames)
    return np.stack([np.interp(at, np.arange(features.shape[1]), row) for row in features])
