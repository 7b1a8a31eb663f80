"""Audio fingerprints: the peaks of a recording's spectrum, to find it, and its bands, to confirm it.

Peaks are paired into landmarks (Wang, *An Industrial-Strength Audio Search Algorithm*, ISMIR 2003): two frequencies and
the time between them. Enough of them survive changes of loudness, equalisation and lossy codecs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

RATE = 8_000
WINDOW, HOP = 1_024, 256
FRAMES_PER_SECOND = RATE / HOP
LOW, OCTAVES = 100.0, 5
BANDS_PER_OCTAVE = 10
BANDS = OCTAVES * BANDS_PER_OCTAVE
RANGE = 50.0
"""dB below the loudest band; lower levels are ignored, as lossy codecs change them."""

AROUND = 9
"""Frames and bins (a quarter of a second, 70 Hz) in which a peak must be the highest."""
PEAKS = 20
"""At most this many peaks per second are used: those highest above the mean of their frequency."""
NEAREST, FURTHEST = 3, 64
"""Frames between the two peaks of a landmark."""
LANDMARKS = 4_000
"""Approximate number per recording: a peak is paired with 10 others in the shortest, with 2 from 2 minutes on."""

Samples = NDArray[np.float32]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of one recording.

    Args:
        peaks: float32 [2, P]: frame (of 32 ms, interpolated) and octaves above 100 Hz, by time.
        bands: uint8 [T, BANDS]: level from 50 dB below the loudest (0) to it (255), ten bands per octave from 100 Hz.
    """

    peaks: Floats
    bands: NDArray[np.uint8]


def fingerprint(samples: Samples) -> Fingerprint:
    """The fingerprint of mono samples [S] at `RATE`."""
    power = _power(samples)
    return Fingerprint(_peaks(power), _bands(power))


def landmarks(peaks: Floats) -> Floats:
    """Landmarks of peaks [2, P]: float32 [4, L]: frame of the first peak, frames to the second, octaves of both."""
    time, octave = peaks
    fan = int(np.clip(LANDMARKS // max(1, len(time)), 2, 10))
    taken = np.zeros(len(time), int)
    pairs = []
    for ahead in range(1, min(8 * fan, len(time) - 1) + 1):
        later = time[ahead:] - time[:-ahead]
        near = np.abs(octave[ahead:] - octave[:-ahead]) <= 1
        (first,) = np.nonzero((later >= NEAREST) & (later <= FURTHEST) & near & (taken[: len(later)] < fan))
        taken[first] += 1
        pairs.append(np.stack([first, first + ahead]))
    first, second = np.concatenate(pairs, 1) if pairs else np.zeros((2, 0), int)
    return np.stack([time[first], time[second] - time[first], octave[first], octave[second]])


def _power(samples: Samples) -> Floats:
    """Power spectrum [T, WINDOW / 2 + 1], frames centred on multiples of `HOP`."""
    padded = np.pad(samples, WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]  # a view
    window = np.hanning(WINDOW).astype(np.float32)
    power = np.empty((len(frames), WINDOW // 2 + 1), np.float32)
    for begin in range(0, len(frames), 1_024):  # in pieces, because NumPy transforms in double precision
        power[begin : begin + 1_024] = np.abs(np.fft.rfft(frames[begin : begin + 1_024] * window)) ** 2
    return power


def _peaks(power: Floats) -> Floats:
    low, high = int(LOW * WINDOW / RATE), int(LOW * 2**OCTAVES * WINDOW / RATE)
    floor = power.max() * 10 ** (-RANGE / 10) + np.finfo(np.float32).tiny
    level = np.log(np.maximum(power[:, low - 1 : high + 1], floor))
    highest = (level == maximum_filter(level, AROUND, mode="nearest")) & (level > np.log(floor))
    highest[:, [0, -1]] = highest[[0, -1]] = False  # a neighbour is needed on each side
    time, bin_ = np.nonzero(highest)
    prominence = (level - level.mean(0))[time, bin_]
    second = time // round(FRAMES_PER_SECOND)
    order = np.lexsort((-prominence, second))
    rank = np.arange(len(order)) - np.searchsorted(second[order], second[order])
    chosen = order[rank < PEAKS]
    time, bin_ = time[chosen], bin_[chosen]
    here = level[time, bin_]
    frame = time + _vertex(level[time - 1, bin_], here, level[time + 1, bin_])
    frequency = (bin_ + low - 1 + _vertex(level[time, bin_ - 1], here, level[time, bin_ + 1])) * RATE / WINDOW
    by_time = np.argsort(frame, kind="stable")
    return np.stack([frame, np.log2(frequency / LOW)])[:, by_time].astype(np.float32)


def _vertex(before: Floats, here: Floats, after: Floats) -> Floats:
    """Position of the maximum of the parabola through three values at -1, 0 and 1."""
    bend = before - 2 * here + after
    return np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, 1), 0).clip(-0.5, 0.5)


def _bands(power: Floats) -> NDArray[np.uint8]:
    edges = LOW * 2 ** (np.arange(BANDS + 1) / BANDS_PER_OCTAVE) * WINDOW / RATE
    lows = np.floor(edges[:-1]).astype(int)
    highs = np.maximum(np.ceil(edges[1:]).astype(int), lows + 1)
    bands = np.stack([power[:, low:high].mean(1) for low, high in zip(lows, highs, strict=True)], 1)
    level = 10 * np.log10(bands + np.finfo(np.float32).tiny)
    below = level - level.max() + RANGE
    return np.rint(below.clip(0, RANGE) * (255 / RANGE)).astype(np.uint8)
