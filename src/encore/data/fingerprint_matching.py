"""Align recordings: landmarks with equal hashes propose an alignment, the correlation of spectra confirms it.

A copy may differ in speed and pitch together (a resampled file, a tape), in speed alone (time stretch), or in pitch
alone. Landmarks of one set are hashed at each of these changes, in steps that the cells of the hash tolerate, so the
index finds both the change and the offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from encore.data.fingerprints import BANDS, BANDS_PER_OCTAVE, Floats

STEPS = (0.95, 0.967, 0.983, 1.017, 1.034, 1.05)
CHANGES = ((1.0, 1.0), *((s, s) for s in STEPS), *((s, 1.0) for s in STEPS), *((1.0, s) for s in STEPS))
"""(speed, pitch) of a copy: up to 5 % either way, within .9 % of one of these."""
CELLS_PER_OCTAVE = 24
FRAMES_PER_CELL = 2
BIN = 16
"""Width of offset bins in frames (half a second); landmarks in one bin or the next agree."""
TOLERANCES = (48, 16, 6, 3)
"""Largest distance of a landmark from the alignment in frames, in each round of fitting."""

SAMPLED = 2_048
"""A correlation uses at most this many frames, evenly spaced over the overlap."""

Bands = NDArray[np.uint8]
Indices = NDArray[np.int64]
Hashes = NDArray[np.int32]
Places = NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """Frame t of the first recording is frame t · `slope` + `offset` of the second.

    Args:
        slope: frames of the second recording per frame of the first.
        offset: frame of the second recording at the start of the first.
        speed: of the second recording relative to the first, from `CHANGES`.
        pitch: of the second recording relative to the first, from `CHANGES`.
        hits: number of landmarks that agree.
    """

    slope: float
    offset: float
    speed: float
    pitch: float
    hits: int


class Index:
    """The landmarks of many recordings, by hash and by recording.

    Args:
        marks: landmarks of each recording, float32 [4, L]; see `fingerprints.landmarks`.
    """

    def __init__(self, marks: Sequence[Floats]) -> None:
        self._ends = np.cumsum([0, *(points.shape[1] for points in marks)])
        points = np.concatenate([np.zeros((4, 0), np.float32), *marks], 1)
        self._hashes, self._times = hashed(points), points[0]
        self._tracks = np.repeat(np.arange(len(marks), dtype=np.int32), np.diff(self._ends))
        self._order = np.argsort(self._hashes, kind="stable").astype(np.int32)
        self._sorted = self._hashes[self._order]

    def find(self, marks: Floats, least: int) -> list[tuple[int, Alignment]]:
        """Recordings with at least `least` landmarks that agree on one alignment with `marks`, most hits first."""
        count = len(self._ends) - 1
        hits, offsets, changes = np.zeros(count, np.int64), np.zeros(count), np.zeros(count, np.int64)
        for change, (speed, pitch) in enumerate(CHANGES):
            queried, ranks = _equal(hashed(marks, speed, pitch), self._sorted)
            if not len(queried):
                continue
            indexed = self._order[ranks]
            distances = self._times[indexed] - marks[0][queried] / speed
            lowest = distances.min()
            bins = ((distances - lowest) / BIN).astype(np.int64)
            span = int(bins.max()) + 2
            places = self._tracks[indexed] * span + bins
            agree = np.bincount(places, minlength=count * span).reshape(count, span)
            both = agree[:, :-1] + agree[:, 1:]  # the true offset may lie between two bins
            best = both.argmax(1)
            most = both[np.arange(count), best]
            better = most > hits
            hits[better], changes[better] = most[better], change
            offsets[better] = (best[better] + 1) * BIN + lowest
        ranked = np.argsort(-hits, kind="stable")
        return [
            (int(i), Alignment(1 / speed, float(offsets[i]), speed, pitch, int(hits[i])))
            for i in ranked[hits[ranked] >= least]
            for speed, pitch in [CHANGES[changes[i]]]
        ]

    def fitted(self, alignment: Alignment, marks: Floats, recording: int) -> Alignment:
        """The alignment of `marks` with a recording, refined by least squares over all landmarks of both."""
        begin, end = self._ends[recording : recording + 2]
        order = np.argsort(self._hashes[begin:end], kind="stable")
        first, second = _equal(hashed(marks, alignment.speed, alignment.pitch), self._hashes[begin:end][order])
        times, targets = marks[0][first].astype(np.float64), self._times[begin:end][order][second].astype(np.float64)
        for tolerance in TOLERANCES:
            near = np.abs(times * alignment.slope + alignment.offset - targets) <= tolerance
            if near.sum() < 2:
                break
            x, y = times[near], targets[near]
            slope = alignment.slope
            if np.ptp(x) * 0.01 > tolerance / 4:  # long enough to resolve a slope change of 1 %
                slope = float(np.polyfit(x, y, 1)[0])
            slope = float(np.clip(slope, 0.985 / alignment.speed, 1.015 / alignment.speed))
            offset = float(np.median(y - slope * x))
            alignment = replace(alignment, slope=slope, offset=offset, hits=int(near.sum()))
        return alignment


def hashed(marks: Floats, speed: float = 1.0, pitch: float = 1.0) -> Hashes:
    """Landmarks [4, L] -> their hashes in a copy `speed` times as fast and `pitch` times as high."""
    first, second = (np.rint((marks[row] + np.log2(pitch)) * CELLS_PER_OCTAVE).astype(np.int32) + 16 for row in (2, 3))
    later = np.rint(marks[1] / (speed * FRAMES_PER_CELL)).astype(np.int32)
    hashes: Hashes = (first << 16) + (second << 8) + later
    return hashes


def correlation(alignment: Alignment, first: Bands, second: Bands) -> tuple[float, int]:
    """Correlation of two recordings at an alignment.

    Args:
        alignment: of the two.
        first: bands of the first, uint8 [T, BANDS].
        second: bands of the second.

    Returns:
        The correlation, -1 to 1, over the frames of the first that lie inside the second, after subtracting the means
        of bands and of frames; and the number of these frames. Bands are smoothed, so that a pitch between two bands
        correlates with both.
    """
    places: Places = np.arange(len(first), dtype=np.float64) * alignment.slope + alignment.offset
    (inside,) = np.nonzero((places >= 0) & (places <= len(second) - 1))
    if len(inside) < 2:
        return -1.0, len(inside)
    chosen = inside[:: -(-len(inside) // SAMPLED)]
    # Where pitch follows speed, the fitted slope gives it more exactly than the step in `CHANGES`.
    pitch = 1 / alignment.slope if alignment.pitch == alignment.speed else alignment.pitch
    moved: Places = np.arange(BANDS, dtype=np.float64) + np.log2(pitch) * BANDS_PER_OCTAVE
    kept = (moved >= 0) & (moved <= BANDS - 1)
    a = _centred(first[chosen][:, kept].astype(np.float32))
    b = _centred(_between(_between(second, places[chosen]).T, moved[kept]).T)
    energy = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return (float((a * b).sum()) / energy if energy > 0 else -1.0), len(inside)


def _equal(hashes: Hashes, ordered: Hashes) -> tuple[Indices, Indices]:
    """Indices of all equal pairs of an entry of `hashes` and an entry of `ordered`."""
    first = np.searchsorted(ordered, hashes, "left")
    counts = np.searchsorted(ordered, hashes, "right") - first
    indices = np.repeat(np.arange(len(hashes)), counts)
    within = np.arange(len(indices)) - np.repeat(np.cumsum(counts) - counts, counts)
    return indices, first[indices] + within


def _between(values: Bands | Floats, places: Places) -> Floats:
    """Rows at fractional positions, by linear interpolation."""
    below = np.minimum(places.astype(int), len(values) - 2).clip(0)
    part = (places - below).astype(np.float32)[:, None]
    low = values[below].astype(np.float32)
    high = values[np.minimum(below + 1, len(values) - 1)].astype(np.float32)
    return low + (high - low) * part


def _centred(values: Floats) -> Floats:
    wide = np.pad(values, ((0, 0), (1, 1)), mode="edge")
    smooth = 0.25 * wide[:, :-2] + 0.5 * wide[:, 1:-1] + 0.25 * wide[:, 2:]
    smooth -= smooth.mean(1, keepdims=True)
    smooth -= smooth.mean(0, keepdims=True)
    return smooth
