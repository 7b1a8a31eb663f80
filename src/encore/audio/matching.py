"""Where one recording may lie in another: landmarks of the same hash at one alignment propose, correlation confirms.

A copy may be faster or slower with its pitch (a resampled file, a tape), at its pitch (time stretch), or at another pitch
alone. The landmarks of one side are hashed at each of these changes, in steps that the hash's cells tolerate; so the
index itself finds which change, and at which offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from encore.audio.fingerprints import BANDS, BANDS_PER_OCTAVE, Fingerprint, Floats, landmarks

STEPS = (0.95, 0.967, 0.983, 1.017, 1.034, 1.05)
CHANGES = ((1.0, 1.0), *((s, s) for s in STEPS), *((s, 1.0) for s in STEPS), *((1.0, s) for s in STEPS))
"""(speed, pitch) of a copy: up to 5 % either way, within .9 % of one of these."""
CELLS_PER_OCTAVE = 24
FRAMES_PER_CELL = 2
BIN = 8
"""Frames of offset (a quarter of a second) in which landmarks count as agreeing."""
TOLERANCES = (48, 16, 6, 3)
"""Frames that a landmark may lie beside the alignment, in rounds of fitting it."""

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Alignment:
    """Frame t of the first recording is frame t · `slope` + `offset` of the second.

    Args:
        speed, pitch: the change of `CHANGES` at which the landmarks agree.
        hits: landmarks that do.
    """

    slope: float
    offset: float
    speed: float
    pitch: float
    hits: int


class Index:
    """The landmarks of many recordings by hash.

    Args:
        peaks: of each, float32 [2, P]; see `fingerprints.Fingerprint`.
    """

    def __init__(self, peaks: Sequence[Floats]) -> None:
        marks = [landmarks(one) for one in peaks]
        tracks = np.repeat(np.arange(len(marks)), [one.shape[1] for one in marks])
        everything = np.concatenate([np.zeros((4, 0), np.float32), *marks], 1)
        hashes = hashed(everything)
        order = np.argsort(hashes, kind="stable")
        self.hashes, self.tracks, self.times = hashes[order], tracks[order], everything[0][order]

    def find(self, peaks: Floats, *, least: int, most: int = 1_000) -> dict[int, Alignment]:
        """Recordings in which at least `least` landmarks agree on one alignment with those of `peaks`: each its best.

        Args:
            most: landmarks to look up, evenly taken where there are more.
        """
        marks = landmarks(peaks)
        marks = marks[:, :: -(-marks.shape[1] // most) or 1]
        best: dict[int, Alignment] = {}
        for speed, pitch in CHANGES:
            mine, theirs = self.equal(hashed(marks, speed, pitch))
            if not len(mine):
                continue
            offsets = self.times[theirs] - marks[0][mine] / speed
            lowest = offsets.min()
            bins = ((offsets - lowest) / BIN).astype(np.int64)
            span = int(bins.max()) + 2
            places, counts = np.unique(self.tracks[theirs] * span + bins, return_counts=True)
            agreeing = counts.copy()  # with the next bin's: a true offset may lie on the border
            agreeing[:-1] += np.where(places[1:] == places[:-1] + 1, counts[1:], 0)
            for place in np.nonzero(agreeing >= least)[0]:
                track, bin_ = divmod(int(places[place]), span)
                hits = int(agreeing[place])
                if track not in best or hits > best[track].hits:
                    best[track] = Alignment(1 / speed, float((bin_ + 1) * BIN + lowest), speed, pitch, hits)
        return best

    def equal(self, hashes: Indices) -> tuple[Indices, Indices]:
        """All pairs of an entry of `hashes` and an entry of the index that are equal."""
        first = np.searchsorted(self.hashes, hashes, "left")
        counts = np.searchsorted(self.hashes, hashes, "right") - first
        mine = np.repeat(np.arange(len(hashes)), counts)
        within = np.arange(len(mine)) - np.repeat(np.cumsum(counts) - counts, counts)
        return mine, first[mine] + within


def hashed(marks: Floats, speed: float = 1.0, pitch: float = 1.0) -> Indices:
    """Landmarks [4, L] -> the hashes that they have in a copy `speed` times as fast and `pitch` times as high."""
    first, second = (np.rint((marks[row] + np.log2(pitch)) * CELLS_PER_OCTAVE).astype(np.int64) + 64 for row in (2, 3))
    later = np.rint(marks[1] / (speed * FRAMES_PER_CELL)).astype(np.int64)
    return (first << 32) + (second << 16) + later


def fitted(alignment: Alignment, first: Floats, second: Floats) -> Alignment:
    """The alignment as all landmarks of both recordings (given their peaks) have it, by least squares."""
    marks, index = landmarks(first), Index([second])
    mine, theirs = index.equal(hashed(marks, alignment.speed, alignment.pitch))
    here, there = marks[0][mine].astype(np.float64), index.times[theirs].astype(np.float64)
    for tolerance in TOLERANCES:
        near = np.abs(here * alignment.slope + alignment.offset - there) <= tolerance
        if near.sum() < 2:
            break
        x, y = here[near], there[near]
        slope = alignment.slope
        if np.ptp(x) * 0.01 > tolerance / 4:  # long enough for 1 % to be seen
            slope = float(np.polyfit(x, y, 1)[0])
        slope = float(np.clip(slope, 0.985 / alignment.speed, 1.015 / alignment.speed))
        alignment = replace(alignment, slope=slope, offset=float(np.median(y - slope * x)), hits=int(near.sum()))
    return alignment


def correlation(alignment: Alignment, first: Fingerprint, second: Fingerprint) -> tuple[float, float]:
    """How alike two recordings are at an alignment, and the part of the shorter one that lies in the other.

    Returns:
        the correlation of their bands over the overlap, less each band's and each frame's mean, -1 to 1; the share.
    """
    places = np.arange(len(first.bands)) * alignment.slope + alignment.offset
    inside = (places >= 0) & (places <= len(second.bands) - 1)
    share = inside.sum() / max(1.0, min(len(first.bands), len(second.bands) / alignment.slope))
    if inside.sum() < 2:
        return -1.0, 0.0
    theirs = _between(second.bands, places[inside], axis=0)
    # Where pitch goes with speed, the slope knows it better than the step that found it.
    pitch = 1 / alignment.slope if alignment.pitch == alignment.speed else alignment.pitch
    moved = np.arange(BANDS) + np.log2(pitch) * BANDS_PER_OCTAVE
    kept = (moved >= 0) & (moved <= BANDS - 1)
    a, b = _centred(first.bands[inside][:, kept].astype(np.float32)), _centred(_between(theirs, moved[kept], axis=1))
    energy = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return (float((a * b).sum()) / energy if energy > 0 else -1.0), float(min(1.0, share))


def _between(values: NDArray[np.uint8] | Floats, places: NDArray[np.float64], axis: int) -> Floats:
    """Values at fractional places along an axis, by linear interpolation."""
    below = np.minimum(places.astype(int), values.shape[axis] - 2).clip(0)
    part = (places - below).astype(np.float32)
    low = np.take(values, below, axis).astype(np.float32)
    high = np.take(values, np.minimum(below + 1, values.shape[axis] - 1), axis).astype(np.float32)
    part = part[:, None] if axis == 0 else part
    return low + (high - low) * part


def _centred(values: Floats) -> Floats:
    values = values - values.mean(1, keepdims=True)
    return values - values.mean(0, keepdims=True)
