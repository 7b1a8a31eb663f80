"""Chroma, melody and onset features of waveforms, with librosa, and their similarities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from encore.metrics.similarity.sequences import edit_similarities

RATE = 15.0  # frames per second of chroma and melody
ONSET_RATE = 31.25
LOWEST, OCTAVES = "C2", 5  # of the constant-Q transform
TEMPOS = (0.94, 0.97, 1.0, 1.03, 1.06)  # tempo ratios that are searched
SHIFT_SECONDS = 0.5  # largest time shift that is searched
LEAST_SECONDS = 2.0  # shorter clips are zero-padded: the transform's longest filter must fit
BATCH = 32  # waveforms per transform
QUIET = 0.05  # relative to the loudest frame; quieter frames have no note

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class MusicFeatures:
    """Features of one clip.

    Args:
        chroma: energy of the pitch classes, each frame's mean subtracted, [12, T].
        onsets: onset strength, mean subtracted, [1, T'].
        melody: intervals in semitones of the strongest voice above C3.
    """

    chroma: Floats
    onsets: Floats
    melody: tuple[int, ...]


def extract_features(audio: Sequence[NDArray[np.float32]], sample_rate: int) -> list[MusicFeatures]:
    """Features of waveforms, [S] each; waveforms of equal length are batched."""
    features: dict[int, MusicFeatures] = {}
    for length in sorted({len(waveform) for waveform in audio}):
        equal = [i for i, waveform in enumerate(audio) if len(waveform) == length]
        for start in range(0, len(equal), BATCH):
            indices = equal[start : start + BATCH]
            features |= zip(indices, _extract_batch(np.stack([audio[i] for i in indices]), sample_rate), strict=True)
    return [features[i] for i in range(len(audio))]


def _extract_batch(audio: NDArray[np.float32], sample_rate: int) -> list[MusicFeatures]:
    """Features of waveforms [N, S]."""
    import librosa

    # The transform requires a multiple of 2^(octaves - 1).
    hop = 16 * max(1, round(sample_rate / ONSET_RATE / 16))
    audio = np.pad(audio, ((0, 0), (0, max(0, round(LEAST_SECONDS * sample_rate) - audio.shape[1]))))
    transformed = librosa.cqt(
        audio, sr=sample_rate, hop_length=hop, fmin=librosa.note_to_hz(LOWEST), n_bins=12 * OCTAVES, tuning=0.0
    )  # [N, bins, T]
    features = []
    for magnitudes, wave in zip(np.abs(transformed).astype(np.float64), audio, strict=True):
        pitches = _pooled(magnitudes, sample_rate / hop / RATE)
        onsets = librosa.onset.onset_strength(y=wave, sr=sample_rate, hop_length=hop).astype(np.float64)[None]
        chroma = pitches.reshape(OCTAVES, 12, -1).sum(0)
        features.append(MusicFeatures(chroma - chroma.mean(0), onsets - onsets.mean(), intervals(pitches[12:])))
    return features


def intervals(pitches: Floats) -> tuple[int, ...]:
    """Semitones between successive notes of the strongest pitch of each frame, [bins, T].

    A note lasts at least two frames; frames quieter than 5 % of the loudest one are skipped as rests. Intervals are
    invariant to key and tempo.
    """
    loudness = pitches.max(0)
    sounding = pitches.argmax(0)[loudness > QUIET * loudness.max()] if loudness.max() > 0 else np.empty(0, dtype=int)
    notes: list[int] = []
    for before, pitch in pairwise(sounding):
        if before == pitch and (not notes or notes[-1] != pitch):
            notes.append(int(pitch))
    return tuple(b - a for a, b in pairwise(notes))


def harmony(first: Sequence[MusicFeatures], second: Sequence[MusicFeatures]) -> Floats:
    """Cosine similarity of chroma, [P, R]: the highest over 12 keys, tempo changes to ±6 %, shifts to ±0.5 s."""
    return correlations([clip.chroma for clip in first], [clip.chroma for clip in second], RATE, keys=12)


def melody(first: Sequence[MusicFeatures], second: Sequence[MusicFeatures]) -> Floats:
    """1 - edit distance / length of the longer interval sequence, [P, R]."""
    return edit_similarities([clip.melody for clip in first], [clip.melody for clip in second])


def rhythm(first: Sequence[MusicFeatures], second: Sequence[MusicFeatures]) -> Floats:
    """Correlation of onset strength, [P, R]: the highest over the same tempos and shifts."""
    return correlations([clip.onsets for clip in first], [clip.onsets for clip in second], ONSET_RATE, keys=1)


def correlations(first: Sequence[Floats], second: Sequence[Floats], rate: float, *, keys: int) -> Floats:
    """Highest cosine similarity of each pair over keys, tempos and shifts of the second, [P, R].

    All keys and shifts at one tempo are one circular cross-correlation; the zero padding is wide enough that no shift
    wraps around.

    Args:
        first: P feature matrices, [F, T] each.
        second: R feature matrices, [F, T] each.
        rate: frames per second.
        keys: number of cyclic shifts along F that are searched.
    """
    from scipy import fft

    shift = round(SHIFT_SECONDS * rate)
    lengths = [clip.shape[1] for clip in first] + [round(clip.shape[1] / min(TEMPOS)) for clip in second]
    frames = max(lengths, default=0)
    shape = frames + 2 * shift
    spectra = fft.rfft2(np.stack([_unit(_padded(clip, frames, shift)) for clip in first]))  # [P, F, ·]
    best = np.empty((len(first), len(second)))
    for column, clip in enumerate(second):
        tempos = np.stack([_unit(_padded(_resampled(clip, tempo), frames, shift)) for tempo in TEMPOS])
        highest = [
            fft.irfft2(spectra * tempo, s=(clip.shape[0], shape))[:, :keys, np.arange(-shift, shift + 1)].max((1, 2))
            for tempo in fft.rfft2(tempos).conj()
        ]
        best[:, column] = np.max(highest, 0)
    return best


def _padded(features: Floats, frames: int, margin: int) -> Floats:
    """Zero-pad [F, T] to [F, frames + 2 * margin]."""
    return np.pad(features, ((0, 0), (margin, margin + frames - features.shape[1])))


def _unit(features: Floats) -> Floats:
    """Features of norm 1; zeros stay zeros."""
    norm = float(np.linalg.norm(features))
    return features / norm if norm > 0 else features


def _pooled(features: Floats, frames: float) -> Floats:
    """Means over `frames` frames each, [F, T] -> [F, T / frames]."""
    count = max(1, round(features.shape[1] / frames))
    edges = np.linspace(0, features.shape[1], count + 1).round().astype(int)
    return np.stack([features[:, a : max(b, a + 1)].mean(1) for a, b in pairwise(edges)], 1)


def _resampled(features: Floats, tempo: float) -> Floats:
    """Resample [F, T] to [F, T / tempo] by linear interpolation."""
    frames = max(1, round(features.shape[1] / tempo))
    positions = np.linspace(0, features.shape[1] - 1, frames)
    return np.stack([np.interp(positions, np.arange(features.shape[1]), row) for row in features])
