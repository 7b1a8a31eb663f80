"""Where one recording may lie in another: landmarks of the same hash at one alignment propose, correlation confirms.

A copy may be faster or slower with its pitch (a resampled file, a tape), at its pitch (time stretch), or at another
pitch alone. The landmarks of one side are hashed at each of these changes, in steps that the hash's cells tolerate; so
the index itself finds which change, and at which offset.
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
"""Frames of offset (half a second) in which landmarks count as agreeing, with those of the next bin."""
TOLERANCES = (48, 16, 6, 3)
"""Frames that a landmark may lie beside the alignment, in rounds of fitting it."""

SAMPLED = 2_048
"""Frames that a correlation is measured on, evenly taken where the overlap has more."""

Bands = NDArray[np.uint8]
Indices = NDArray[np.int64]
Hashes = NDArray[np.int32]
Places = NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """Frame t of the first recording is frame t · `slope` + `offset` of the second.

    Args:
        slope: frames of the second in one of the first.
        offset: the second's frame at the first's beginning.
        speed, pitch: the change of `CHANGES` at which the landmarks agree: of the second recording, against the first.
        hits: landmarks that agree.
    """

    slope: float
    offset: float
    speed: float
    pitch: float
    hits: int


class Index:
    """The landmarks of many recordings, by hash and by recording.

    Args:
        marks: of each recording, float32 [4, L]; see `fingerprints.landmarks`.
    """

    def __init__(self, marks: Sequence[Floats]) -> None:
        self._ends = np.cumsum([0, *(one.shape[1] for one in marks)])
        everything = np.concatenate([np.zeros((4, 0), np.float32), *marks], 1)
        self._hashes, self._times = hashed(everything), everything[0]
        self._tracks = np.repeat(np.arange(len(marks), dtype=np.int32), np.diff(self._ends))
        self._order = np.argsort(self._hashes, kind="stable").astype(np.int32)
        self._sorted = self._hashes[self._order]

    def find(self, marks: Floats, least: int) -> list[tuple[int, Alignment]]:
        """Recordings in which at least `least` landmarks agree on one alignment with `marks`, most hits first."""
        count = len(self._ends) - 1
        hits, offsets, changes = np.zeros(count, np.int64), np.zeros(count), np.zeros(count, np.int64)
        for change, (speed, pitch) in enumerate(CHANGES):
            mine, ranks = _equal(hashed(marks, speed, pitch), self._sorted)
            if not len(mine):
                continue
            theirs = self._order[ranks]
            apart = self._times[theirs] - marks[0][mine] / speed
            lowest = apart.min()
            bins = ((apart - lowest) / BIN).astype(np.int64)
            span = int(bins.max()) + 2
            places = self._tracks[theirs] * span + bins
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
        """The alignment of `marks` with a recording as all landmarks of both have it, by least squares."""
        begin, end = self._ends[recording : recording + 2]
        order = np.argsort(self._hashes[begin:end], kind="stable")
        mine, theirs = _equal(hashed(marks, alignment.speed, alignment.pitch), self._hashes[begin:end][order])
        here, there = marks[0][mine].astype(np.float64), self._times[begin:end][order][theirs].astype(np.float64)
        for tolerance in TOLERANCES:
            near = np.abs(here * alignment.slope + alignment.offset - there) <= tolerance
            if near.sum() < 2:
                break
            x, y = here[near], there[near]
            slope = alignment.slope
            if np.ptp(x) * 0.01 > tolerance / 4:  # long enough for a hundredth to be seen
                slope = float(np.polyfit(x, y, 1)[0])
            slope = float(np.clip(slope, 0.985 / alignment.speed, 1.015 / alignment.speed))
            offset = float(np.median(y - slope * x))
            alignment = replace(alignment, slope=slope, offset=offset, hits=int(near.sum()))
        return alignment


def hashed(marks: Floats, speed: float = 1.0, pitch: float = 1.0) -> Hashes:
    """Landmarks [4, L] -> the hashes that they have in a copy `speed` times as fast and `pitch` times as high."""
    first, second = (np.rint((marks[row] + np.log2(pitch)) * CELLS_PER_OCTAVE).astype(np.int32) + 16 for row in (2, 3))
    later = np.rint(marks[1] / (speed * FRAMES_PER_CELL)).astype(np.int32)
    hashes: Hashes = (first << 16) + (second << 8) + later
    return hashes


def correlation(alignment: Alignment, first: Bands, second: Bands) -> tuple[float, int]:
    """How alike two recordings are at an alignment.

    Args:
        first, second: their bands, uint8 [T, BANDS].

    Returns:
        the correlation over the frames of the first that lie inside the second, less each band's and each frame's mean,
        -1 to 1; and how many frames these are. Bands are smoothed over their neighbours, so that a pitch between two of
        them counts as alike.
    """
    places: Places = np.arange(len(first), dtype=np.float64) * alignment.slope + alignment.offset
    (inside,) = np.nonzero((places >= 0) & (places <= len(second) - 1))
    if len(inside) < 2:
        return -1.0, len(inside)
    chosen = inside[:: -(-len(inside) // SAMPLED)]
    # Where pitch goes with speed, the slope knows it better than the step that found it.
    pitch = 1 / alignment.slope if alignment.pitch == alignment.speed else alignment.pitch
    moved: Places = np.arange(BANDS, dtype=np.float64) + np.log2(pitch) * BANDS_PER_OCTAVE
    kept = (moved >= 0) & (moved <= BANDS - 1)
    a = _centred(first[chosen][:, kept].astype(np.float32))
    b = _centred(_between(_between(second, places[chosen]).T, moved[kept]).T)
    energy = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return (float((a * b).sum()) / energy if energy > 0 else -1.0), len(inside)


def _equal(hashes: Hashes, those: Hashes) -> tuple[Indices, Indices]:
    """All pairs of an entry of `hashes` and an entry of `those` (sorted) that are equal."""
    first = np.searchsorted(those, hashes, "left")
    counts = np.searchsorted(those, hashes, "right") - first
    mine = np.repeat(np.arange(len(hashes)), counts)
    within = np.arange(len(mine)) - np.repeat(np.cumsum(counts) - counts, counts)
    return mine, first[mine] + within


def _between(values: Bands | Floats, places: Places) -> Floats:
    """Rows at fractional places, by linear interpolation."""
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
