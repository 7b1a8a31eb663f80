"""Find the same music in two sets: a forget track that is also kept, or a holdout track that is trained on.

Three kinds are found, in this order: the same file, the same samples (a WAV and its FLAC), the same recording:
re-encoded, resampled, louder, equalised, trimmed, padded, cut out of a longer one, or up to 5 % faster, slower, higher
or lower. An index of landmarks proposes alignments of two recordings (`fingerprint_matching.Index`), and the
correlation of their spectra confirms them. Other performances of a piece are not found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from encore.data.file_info import Decoding, FileCache, decoder_sha256
from encore.data.fingerprint_matching import Bands, Index, correlation
from encore.data.fingerprints import FRAMES_PER_SECOND, RATE, Fingerprint, Floats, fingerprint, landmarks
from encore.data.shards import ShardTracks, open_shards
from encore.data.tracks import Track
from encore.errors import InputError, together
from encore.tensor_cache import TensorCache
from encore.text import printable

OVERLAP = 0.75
"""Share of the shorter track that must overlap the longer one."""
LEAST = 4
"""Landmarks that must agree for an alignment to be tested."""
PATIENCE = 30
"""Alignments of one track, best first, that may fail in a row before the rest are skipped."""
SHORT = 1_000
"""Landmarks of a track of some 5 s."""
SOME = 400
"""Landmarks of a track that are searched for in longer tracks."""


def threshold(frames: float) -> float:
    """The least correlation of two recordings that are the same, by frames of overlap.

    It is .80 for 1 s, .59 for 5 s, .45 for 3 minutes, because the correlation of different pieces falls with the
    length. Measured at the alignments that the index proposes, on excerpts of 86 pieces from the soundtracks of six
    free games, and on Encore's embedded music, 154 pieces by one synthesiser:

    ======  ================  ===================================================================================
    length  different pieces  the same piece (of the games), changed: smallest correlation; share found
    ======  ================  ===================================================================================
    1 s     .71 at most, in   speed .95 to 1.05: .95 and more found; low MP3: .97; low Vorbis, noise at 20 dB: .92
            5 million pairs
    5 s     .46 at most, in   speed .68; low MP3 .92; Vorbis .84; noise at 20 dB .85: all found; Opus of 6 kbit/s
            24 000 pairs      .53: .98; tempo alone .48: .93; pitch alone .44: .80
    60 s    .28 at most, in   (90 s) speed .74; Opus of 6 kbit/s .80; tempo alone .74; pitch alone .69: all found
            20 000 pairs
    ======  ================  ===================================================================================

    About one second is the minimum: the index finds no copy of a recording with fewer than some ten peaks.
    """
    return 0.42 + 0.38 / float(np.sqrt(max(frames, 1.0) / FRAMES_PER_SECOND))


Side = Literal["forget", "retain", "holdout"]
PURPOSES: Mapping[Side, str] = {"forget": "to be forgotten", "retain": "to be kept", "holdout": "in the holdout"}
COMPARED: tuple[tuple[Side, Side], ...] = (("forget", "retain"), ("forget", "holdout"), ("retain", "holdout"))
Progress = Callable[[str, int, int], None]
"""Called with a stage, how many of its units are done, and of how many."""


@dataclass(frozen=True)
class Pair:
    """Two equal tracks of different sets.

    Args:
        first: the track that is kept.
        second: the track that `--drop-duplicates` drops.
        sides: the sets of first and second.
        kind: what they share.
        similarity: 1 where bytes or samples are shared, else the correlation.
    """

    first: Track
    second: Track
    sides: tuple[Side, Side]
    kind: Literal["file", "samples", "recording"]
    similarity: float

    def __str__(self) -> str:
        how = f"same {self.kind}" + (f", {self.similarity:.2f}" if self.kind == "recording" else "")
        return f"{printable(self.first.id)} = {printable(self.second.id)} ({how})"


def find_duplicates(
    forget: Sequence[Track],
    retain: Sequence[Track],
    holdout: Sequence[Track] = (),
    *,
    cache: TensorCache | None = None,
    progress: Progress = lambda stage, done, of: None,
    skip: Callable[[Track, InputError], bool] = lambda track, error: False,
) -> list[Pair]:
    """Pairs of tracks of two sets that are the same file, samples or recording, in the lists' order.

    Fingerprints and comparisons are cached. Equal tracks within one set are not reported: they are no contradiction.
    Tracks in shards are compared by the hashes of file and samples in their index; their audio is not read.

    Args:
        forget: tracks to forget.
        retain: tracks to keep.
        holdout: held-out tracks.
        cache: of fingerprints and comparisons; None is the default folder.
        progress: see `Progress`.
        skip: called for each track that can't be decoded; returns whether to leave it out.

    Raises:
        InputError: files can't be decoded; the message names all of them.
    """
    sides: dict[Side, Sequence[Track]] = {"forget": forget, "retain": retain, "holdout": holdout}
    compared = [(a, b) for a, b in COMPARED if sides[a] and sides[b]]
    prints = Fingerprints(cache or TensorCache())
    whole = [sides[side] for side in {*sum(compared, ())} if not isinstance(sides[side], ShardTracks)]
    listed = [track for tracks in whole for track in tracks]
    decodings, errors = prints.decode([track for track in listed if track.shards is None], progress)
    decodings |= _indexed(track for track in listed if track.shards is not None)
    for side, tracks in sides.items():
        if isinstance(tracks, ShardTracks):
            sides[side] = list(tracks.suspects(decoding.sha256_pcm for decoding in decodings.values()))
            decodings |= _indexed(sides[side])
    unread = [(track, errors[track.sha256]) for side in sides.values() for track in side if track.sha256 in errors]
    refused = [track.refusal(error) for track, error in unread if not skip(track, error)]
    if refused:
        raise together(refused)
    for side, tracks in sides.items():
        sides[side] = [track for track in tracks if track.sha256 in decodings]
    return [pair for a, b in compared for pair in _pairs((a, b), sides[a], sides[b], decodings, prints, progress)]


def _indexed(tracks: Iterable[Track]) -> dict[str, Decoding]:
    """Decoding results of tracks in shards, by the hash of the file."""
    entries = (open_shards(track.shards).of_file(track.sha256) for track in tracks if track.shards is not None)
    return {entry.track.sha256: entry.decoding for entry in entries if entry is not None}


def without_duplicates(tracks: Sequence[Track], pairs: Iterable[Pair]) -> Sequence[Track]:
    """`tracks` without the second track of each pair."""
    if isinstance(tracks, ShardTracks):
        return tracks.of_files([pair.second.sha256 for pair in pairs], others=True)
    dropped = {(pair.second.id, pair.second.path) for pair in pairs}
    return [track for track in tracks if (track.id, track.path) not in dropped]


def refusal(pairs: Sequence[Pair]) -> InputError:
    """The error for duplicates without `--drop-duplicates`; it lists all pairs."""
    parts = []
    for first, second in COMPARED:
        matches = [pair for pair in pairs if pair.sides == (first, second)]
        noun = "track is" if len(matches) == 1 else "tracks are"
        if matches:
            listed = "; ".join(map(str, matches))
            parts.append(f"{len(matches)} {noun} both {PURPOSES[first]} and {PURPOSES[second]}: {listed}")
    sides = sorted({pair.sides[1] for pair in pairs}, reverse=True)
    return InputError(". ".join(parts), f"--drop-duplicates takes them out of the {' and '.join(sides)} set")


def _pairs(
    sides: tuple[Side, Side],
    first: Sequence[Track],
    second: Sequence[Track],
    decodings: Mapping[str, Decoding],
    prints: Fingerprints,
    progress: Progress,
) -> list[Pair]:
    pcm = {digest: decoding.sha256_pcm for digest, decoding in decodings.items()}
    audio = [[pcm[track.sha256] for track in tracks if track.shards is None] for tracks in (first, second)]
    alike = prints.alike(audio[0], audio[1], progress) if all(audio) else {}
    by_pcm: dict[str, list[Track]] = {}
    for track in first:
        by_pcm.setdefault(pcm[track.sha256], []).append(track)
    pairs = []
    for track in second:
        digest = pcm[track.sha256]
        for equal in by_pcm.get(digest, ()):
            kind: Literal["file", "samples"] = "file" if equal.sha256 == track.sha256 else "samples"
            pairs.append(Pair(equal, track, sides, kind, 1.0))
        for similar, score in alike.get(digest, ()):
            pairs += [Pair(original, track, sides, "recording", score) for original in by_pcm[similar]]
    return pairs


class Fingerprints:
    """Fingerprints of recordings by the hash of their samples, and comparisons of them; both cached on disk.

    Only peaks are in memory for all recordings at once (some 30 kB for 3 minutes); bands are read when compared.
    """

    def __init__(self, cache: TensorCache) -> None:
        self.cache = cache
        self.files = FileCache(cache.folder)
        self._tracks: dict[str, Track] = {}  # by the hash of their samples
        self._peaks: dict[str, Floats] = {}
        self._uncached: dict[str, Bands] = {}  # where the cache can't be written

    def decode(self, tracks: Iterable[Track], progress: Progress) -> tuple[dict[str, Decoding], dict[str, InputError]]:
        """Decoding results of the readable files, and errors of the others, by the hash of the file."""
        distinct = {track.sha256: track for track in tracks}
        decodings: dict[str, Decoding] = {}
        errors: dict[str, InputError] = {}
        for done, (digest, track) in enumerate(distinct.items()):
            progress("read tracks", done, len(distinct))
            try:
                decodings[digest] = self.files.decoding(digest) or self._make(track)[0]
            except InputError as error:
                errors[digest] = error
                continue
            self._tracks[decodings[digest].sha256_pcm] = track
        progress("read tracks", len(distinct), len(distinct))
        return decodings, errors

    def alike(
        self, first: Iterable[str], second: Iterable[str], progress: Progress
    ) -> dict[str, list[tuple[str, float]]]:
        """Different versions of the same recording, by PCM hash: for each of `second`, those of `first`, with score."""
        a, b = sorted(set(first)), sorted(set(second))
        listed = hashlib.sha256(json.dumps([a, b]).encode()).hexdigest()
        key = ("alike", decoder_sha256(), listed)
        result = self.cache.get_or_make(key, lambda: self._compare(a, b, progress))
        alike: dict[str, list[tuple[str, float]]] = {}
        for (i, j), score in zip(result["pairs"].tolist(), result["scores"].tolist(), strict=True):
            alike.setdefault(b[j], []).append((a[i], score))
        return alike

    def _compare(self, a: Sequence[str], b: Sequence[str], progress: Progress) -> dict[str, torch.Tensor]:
        if len(a) > len(b):  # index the larger set
            result = self._compare(b, a, progress)
            return {**result, "pairs": result["pairs"].flip(1)}
        marks = [landmarks(self._peaks_of(pcm)) for pcm in b]
        groups = []
        for most, chosen in (
            (None, [i for i, points in enumerate(marks) if points.shape[1] <= SHORT]),
            (SOME, [i for i, points in enumerate(marks) if points.shape[1] > SHORT]),
        ):
            groups.append(([b[i] for i in chosen], Index([marks[i] for i in chosen]), most))
        del marks
        column = {pcm: i for i, pcm in enumerate(b)}
        pairs: list[tuple[int, int]] = []
        scores: list[float] = []
        for row, pcm in enumerate(a):
            progress("compare tracks", row, len(a))
            for candidates, index, most in groups:
                for match, score in self._matches(pcm, candidates, index, most):
                    pairs.append((row, column[match]))
                    scores.append(score)
        progress("compare tracks", len(a), len(a))
        table = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        return {"pairs": table, "scores": torch.tensor(scores, dtype=torch.float64)}

    def _matches(
        self, pcm: str, candidates: Sequence[str], index: Index, most: int | None
    ) -> Iterator[tuple[str, float]]:
        """The candidates (the recordings of `index`) that are the same recording as `pcm`, with their correlation."""
        marks = landmarks(self._peaks_of(pcm))
        sample = marks if most is None else marks[:, :: -(-marks.shape[1] // most) or 1]
        failed, bands = 0, None
        for place, alignment in index.find(sample, LEAST):
            if candidates[place] == pcm:
                continue
            if failed == PATIENCE:
                return
            bands = self._bands(pcm) if bands is None else bands
            other = self._bands(candidates[place])
            alignment = index.fitted(alignment, marks, place)
            score, frames = correlation(alignment, bands, other)
            if frames >= OVERLAP * min(len(bands), len(other) / alignment.slope) and score >= threshold(frames):
                yield candidates[place], score
                failed = 0
            else:
                failed += 1

    def _peaks_of(self, pcm: str) -> Floats:
        if pcm not in self._peaks:
            cached = self.cache.get(_key("peaks", pcm))
            self._peaks[pcm] = cached["peaks"].numpy() if cached else self._make(self._tracks[pcm])[1].peaks
        return self._peaks[pcm]

    def _bands(self, pcm: str) -> Bands:
        if pcm in self._uncached:
            return self._uncached[pcm]
        cached = self.cache.get(_key("bands", pcm))
        if cached is None:
            self._uncached[pcm] = self._make(self._tracks[pcm])[1].bands
        return self._uncached[pcm] if cached is None else cached["bands"].numpy()

    def keep(self, pcm: str, result: Fingerprint) -> None:
        """Cache the fingerprint of a recording."""
        self.cache.put(_key("peaks", pcm), {"peaks": torch.from_numpy(result.peaks)})
        self.cache.put(_key("bands", pcm), {"bands": torch.from_numpy(result.bands)})
        self._peaks[pcm] = result.peaks

    def _make(self, track: Track) -> tuple[Decoding, Fingerprint]:
        audio = self.files.load(track.path, track.sha256, sample_rate=RATE)
        result = fingerprint(audio.samples[0])
        self.keep(audio.sha256_pcm, result)
        return Decoding.of(audio), result


def _key(kind: str, pcm: str) -> tuple[str, ...]:
    return kind, decoder_sha256(), pcm
