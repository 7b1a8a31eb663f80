"""The same music on both sides: a track to forget that is also to be kept makes the request contradict itself.

Three kinds are found, in this order: the same file, the same samples (a WAV and its FLAC), the same recording
(re-encoded, resampled, louder, trimmed, padded, cut out of a longer one). Recordings are compared by the correlation of
their log spectra, 24 bands between 100 and 3 200 Hz every 32 ms, with each band's and each frame's mean taken away: so
neither loudness nor equalisation counts, only what the music does. Stretched, transposed or newly played versions are
not found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from encore.audio.decode import load
from encore.audio.text import printable
from encore.audio.tracks import Track
from encore.errors import InputError

RATE = 8_000
WINDOW, HOP = 1_024, 256
BANDS, LOW, HIGH = 24, 100.0, 3_200.0
FLOOR = 1e-5
"""Of the loudest band's power: what lies 50 dB below it is the codec's business, not the music's."""

OVERLAP = 0.75
"""Part of the shorter track that must lie inside the longer one."""

THRESHOLD = 0.6
"""Between what was measured on Encore's own music: 11 781 pairs of different pieces of one synthesiser and often one
instrument reach .43 at most; a piece against itself as 16 kbit/s MP3, lowest-quality Vorbis, at other rates, with 20 dB
of noise, clipped, trimmed by 1 s or behind 2 s of silence stays above .90, as 6 kbit/s Opus above .65."""

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Fingerprint:
    """What two tracks are compared by.

    Args:
        sha256_pcm: hash of the decoded samples. features: float32 [BANDS, frames of 32 ms].
    """

    sha256_pcm: str
    features: Features


@dataclass(frozen=True)
class Pair:
    """A track to forget and one to keep that are the same; `similarity` is 1 where bytes or samples are."""

    forget: Track
    retain: Track
    kind: Literal["file", "samples", "recording"]
    similarity: float

    def __str__(self) -> str:
        how = f"same {self.kind}" + (f", {self.similarity:.2f}" if self.kind == "recording" else "")
        return f"{printable(self.forget.id)} = {printable(self.retain.id)} ({how})"


def fingerprint(path: Path) -> Fingerprint:
    """Decode a file and take its fingerprint.

    Raises:
        InputError: what `decode.load` raises.
    """
    audio = load(path, sample_rate=RATE)
    return Fingerprint(audio.sha256_pcm, features_of(audio.samples[0]))


def features_of(samples: NDArray[np.float32]) -> Features:
    """Mono samples [S] at `RATE` -> [BANDS, frames], zero mean along both axes."""
    padded = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    edges = np.geomspace(LOW, HIGH, BANDS + 1) * WINDOW / RATE
    lows = np.floor(edges[:-1]).astype(int)
    highs = np.maximum(np.ceil(edges[1:]).astype(int), lows + 1)
    window = np.hanning(WINDOW).astype(np.float32)
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]  # [frames, WINDOW], a view
    bands = np.empty((BANDS, len(frames)), np.float32)
    for begin in range(0, len(frames), 1024):  # by pieces: an hour's spectrum would take gigabytes
        power = np.abs(np.fft.rfft(frames[begin : begin + 1024] * window)) ** 2
        for row, low, high in zip(bands, lows, highs, strict=True):
            row[begin : begin + 1024] = power[:, low:high].sum(1)
    log = np.log(bands + bands.max() * FLOOR + np.finfo(np.float32).tiny)
    log -= log.mean(0, keepdims=True)
    log -= log.mean(1, keepdims=True)
    return log


def similarity(a: Features, b: Features) -> float:
    """The highest normalised correlation of two tracks over all shifts at which they overlap by `OVERLAP`, -1 to 1."""
    short, long = (a, b) if a.shape[1] <= b.shape[1] else (b, a)
    n, m = short.shape[1], long.shape[1]
    size = 1 << (n + m - 1).bit_length()
    spectrum = (np.fft.rfft(short, size).conj() * np.fft.rfft(long, size)).sum(0)
    slack = int(n * (1 - OVERLAP))
    shifts = np.arange(-slack, m - n + slack + 1)  # short's first frame lies on long's frame `shift`
    products = np.fft.irfft(spectrum, size)[shifts % size]
    begin, end = np.maximum(shifts, 0), np.minimum(shifts + n, m)
    energy = _energy(short, begin - shifts, end - shifts) * _energy(long, begin, end)
    usable = energy > 0
    return float((products[usable] / np.sqrt(energy[usable])).max(initial=-1.0))


def _energy(features: Features, begin: NDArray[np.int_], end: NDArray[np.int_]) -> NDArray[np.float64]:
    total = np.concatenate([[0.0], np.cumsum((features.astype(np.float64) ** 2).sum(0))])
    energy: NDArray[np.float64] = total[end] - total[begin]
    return energy


def find_duplicates(forget: Sequence[Track], retain: Sequence[Track], *, threshold: float = THRESHOLD) -> list[Pair]:
    """Pairs of a forget and a retain track that are the same file, samples or recording, in the lists' order.

    Every file whose bytes don't settle it is decoded once; a comparison takes about .1 ms for clips of 5 s and a
    millisecond for songs.

    Raises:
        InputError: a file that can't be decoded.
    """
    hashes = {track.sha256 for track in forget}
    by_hash: dict[str, Fingerprint] = {}

    def taken(track: Track) -> Fingerprint:
        if track.sha256 not in by_hash:
            by_hash[track.sha256] = fingerprint(track.path)
        return by_hash[track.sha256]

    pairs: list[Pair] = []
    for kept in retain:
        if kept.sha256 in hashes:
            pairs += [Pair(gone, kept, "file", 1.0) for gone in forget if gone.sha256 == kept.sha256]
            continue
        mine = fingerprint(kept.path)
        for gone in forget:
            other = taken(gone)
            if other.sha256_pcm == mine.sha256_pcm:
                pairs.append(Pair(gone, kept, "samples", 1.0))
            elif (score := similarity(other.features, mine.features)) >= threshold:
                pairs.append(Pair(gone, kept, "recording", score))
    return pairs


def without_duplicates(retain: Iterable[Track], pairs: Iterable[Pair]) -> list[Track]:
    """`retain` less the tracks that `pairs` name: what `--drop-duplicates` keeps."""
    dropped = {pair.retain.id for pair in pairs}
    return [track for track in retain if track.id not in dropped]


def refusal(pairs: Sequence[Pair]) -> InputError:
    """The error for pairs nobody asked to be dropped; it lists all of them."""
    listed = "; ".join(map(str, pairs))
    noun = "track is" if len(pairs) == 1 else "tracks are"
    return InputError(
        f"{len(pairs)} {noun} both to be forgotten and to be kept: {listed}",
        "--drop-duplicates takes them out of the retain set",
    )
