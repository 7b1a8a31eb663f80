"""The same music on two sides: a track to forget that is also kept, or a holdout track that is trained on.

Three kinds are found, in this order: the same file, the same samples (a WAV and its FLAC), the same recording:
re-encoded, resampled, louder, equalised, trimmed, padded, cut out of a longer one, or up to 5 % faster, slower, higher
or lower. An index of landmarks proposes where a recording may lie in another (`matching.Index`), and the correlation of
their spectra there confirms it. Newly played versions are not found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from encore.cache import TensorCache
from encore.data.file_info import Facts, FileCache, decoder_sha256
from encore.data.fingerprint_matching import Bands, Index, correlation
from encore.data.fingerprints import FRAMES_PER_SECOND, RATE, Fingerprint, Floats, fingerprint, landmarks
from encore.data.tracks import Track
from encore.errors import InputError, together
from encore.text import printable

OVERLAP = 0.75
"""Part of the shorter track that must lie inside the longer one."""
LEAST = 4
"""Landmarks that must agree for an alignment to be looked at."""
PATIENCE = 30
"""Alignments of one track, from the best on, that in a row may fail before the rest are left out."""
SHORT = 1_000
"""Landmarks of a track of some 5 s."""
SOME = 400
"""Landmarks with which a track is looked for in longer ones."""


def threshold(frames: float) -> float:
    """The correlation from which on two recordings that overlap by so many frames are one.

    It is .80 for 1 s, .59 for 5 s, .45 for 3 minutes: what different pieces reach falls with the length. Measured at
    the alignments that the index proposes, on excerpts of 86 pieces from the soundtracks of six free games, and on
    Encore's own music, whose 154 pieces are one synthesiser's:

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

    A second is about the least: the index finds no copy of what has fewer than some ten peaks.
    """
    return 0.42 + 0.38 / float(np.sqrt(max(frames, 1.0) / FRAMES_PER_SECOND))


Side = Literal["forget", "retain", "holdout"]
PURPOSES: Mapping[Side, str] = {"forget": "to be forgotten", "retain": "to be kept", "holdout": "in the holdout"}
COMPARED: tuple[tuple[Side, Side], ...] = (("forget", "retain"), ("forget", "holdout"), ("retain", "holdout"))
Progress = Callable[[str, int, int], None]
"""Called with a stage, how many of its units are done, and of how many."""


@dataclass(frozen=True)
class Pair:
    """Two tracks of different sides that are the same.

    Args:
        first, second: the tracks; the second is the one that `--drop-duplicates` drops.
        sides: what either is for.
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
    """Pairs of tracks of two sides that are the same file, samples or recording, in the lists' order.

    A file is decoded once where the cache has no fingerprint of it, and a comparison that was made is not made again.
    Two tracks of one side may be the same: that makes no request contradict itself.

    Args:
        cache: where fingerprints and comparisons are kept; None is the default folder.
        skip: is asked for each track that can't be decoded; where it answers yes, the track is in no pair.

    Raises:
        InputError: files that can't be decoded; it names all of them.
    """
    sides: dict[Side, Sequence[Track]] = {"forget": forget, "retain": retain, "holdout": holdout}
    compared = [(a, b) for a, b in COMPARED if sides[a] and sides[b]]
    prints = Fingerprints(cache or TensorCache())
    facts, errors = prints.decode([track for side in {*sum(compared, ())} for track in sides[side]], progress)
    unread = [(track, errors[track.sha256]) for side in sides.values() for track in side if track.sha256 in errors]
    refused = [track.refusal(error) for track, error in unread if not skip(track, error)]
    if refused:
        raise together(refused)
    for side, tracks in sides.items():
        sides[side] = [track for track in tracks if track.sha256 in facts]
    return [pair for a, b in compared for pair in _pairs((a, b), sides[a], sides[b], facts, prints, progress)]


def without_duplicates(tracks: Iterable[Track], pairs: Iterable[Pair]) -> list[Track]:
    """`tracks` less those that are the second of a pair: what `--drop-duplicates` keeps."""
    dropped = {(pair.second.id, pair.second.path) for pair in pairs}
    return [track for track in tracks if (track.id, track.path) not in dropped]


def refusal(pairs: Sequence[Pair]) -> InputError:
    """The error for pairs nobody asked to be dropped; it lists all of them."""
    parts = []
    for first, second in COMPARED:
        mine = [pair for pair in pairs if pair.sides == (first, second)]
        noun = "track is" if len(mine) == 1 else "tracks are"
        if mine:
            listed = "; ".join(map(str, mine))
            parts.append(f"{len(mine)} {noun} both {PURPOSES[first]} and {PURPOSES[second]}: {listed}")
    sides = sorted({pair.sides[1] for pair in pairs}, reverse=True)
    return InputError(". ".join(parts), f"--drop-duplicates takes them out of the {' and '.join(sides)} set")


def _pairs(
    sides: tuple[Side, Side],
    first: Sequence[Track],
    second: Sequence[Track],
    facts: Mapping[str, Facts],
    prints: Fingerprints,
    progress: Progress,
) -> list[Pair]:
    pcm = {digest: fact.sha256_pcm for digest, fact in facts.items()}
    alike = prints.alike([pcm[track.sha256] for track in first], [pcm[track.sha256] for track in second], progress)
    by_pcm: dict[str, list[Track]] = {}
    for one in first:
        by_pcm.setdefault(pcm[one.sha256], []).append(one)
    pairs = []
    for two in second:
        mine = pcm[two.sha256]
        pairs += [
            Pair(one, two, sides, "file" if one.sha256 == two.sha256 else "samples", 1.0)
            for one in by_pcm.get(mine, ())
        ]
        for other, score in alike.get(mine, ()):
            pairs += [Pair(one, two, sides, "recording", score) for one in by_pcm[other]]
    return pairs


class Fingerprints:
    """Fingerprints of recordings by the hash of their samples, and which of them are alike; both kept on disk.

    Only peaks are held for all recordings at once (some 30 kB for 3 minutes); bands are read for those to be compared.
    """

    def __init__(self, cache: TensorCache) -> None:
        self.cache = cache
        self.files = FileCache(cache.folder)
        self._tracks: dict[str, Track] = {}  # by the hash of their samples: where to make a fingerprint from
        self._peaks: dict[str, Floats] = {}
        self._unkept: dict[str, Bands] = {}  # where the cache can't keep them

    def decode(self, tracks: Iterable[Track], progress: Progress) -> tuple[dict[str, Facts], dict[str, InputError]]:
        """Facts of each file that can be decoded, and what is wrong with each other one, by the hash of the file."""
        distinct = {track.sha256: track for track in tracks}
        facts: dict[str, Facts] = {}
        errors: dict[str, InputError] = {}
        for done, (digest, track) in enumerate(distinct.items()):
            progress("read tracks", done, len(distinct))
            try:
                facts[digest] = self.files.facts(digest) or self._make(track)[0]
            except InputError as error:
                errors[digest] = error
                continue
            self._tracks[facts[digest].sha256_pcm] = track
        progress("read tracks", len(distinct), len(distinct))
        return facts, errors

    def alike(
        self, first: Iterable[str], second: Iterable[str], progress: Progress
    ) -> dict[str, list[tuple[str, float]]]:
        """Different recordings that are one, by PCM hash: for each of `second`, those of `first` and how alike."""
        mine, theirs = sorted(set(first)), sorted(set(second))
        listed = hashlib.sha256(json.dumps([mine, theirs]).encode()).hexdigest()
        key = ("alike", decoder_sha256(), listed)
        kept = self.cache.get_or_make(key, lambda: self._compare(mine, theirs, progress))
        alike: dict[str, list[tuple[str, float]]] = {}
        for (i, j), score in zip(kept["pairs"].tolist(), kept["scores"].tolist(), strict=True):
            alike.setdefault(theirs[j], []).append((mine[i], score))
        return alike

    def _compare(self, mine: Sequence[str], theirs: Sequence[str], progress: Progress) -> dict[str, torch.Tensor]:
        if len(mine) > len(theirs):  # the index is of the larger side
            kept = self._compare(theirs, mine, progress)
            return {**kept, "pairs": kept["pairs"].flip(1)}
        marks = [landmarks(self._peaks_of(one)) for one in theirs]
        groups = []
        for most, chosen in (
            (None, [i for i, one in enumerate(marks) if one.shape[1] <= SHORT]),
            (SOME, [i for i, one in enumerate(marks) if one.shape[1] > SHORT]),
        ):
            groups.append(([theirs[i] for i in chosen], Index([marks[i] for i in chosen]), most))
        del marks
        column = {one: i for i, one in enumerate(theirs)}
        pairs: list[tuple[int, int]] = []
        scores: list[float] = []
        for row, one in enumerate(mine):
            progress("compare tracks", row, len(mine))
            for others, index, most in groups:
                for other, score in self._found(one, others, index, most):
                    pairs.append((row, column[other]))
                    scores.append(score)
        progress("compare tracks", len(mine), len(mine))
        table = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        return {"pairs": table, "scores": torch.tensor(scores, dtype=torch.float64)}

    def _found(self, one: str, others: Sequence[str], index: Index, most: int | None) -> Iterator[tuple[str, float]]:
        """Of `others`, which `index` is of, those that are the recording `one`, with their correlation."""
        marks = landmarks(self._peaks_of(one))
        some = marks if most is None else marks[:, :: -(-marks.shape[1] // most) or 1]
        failed, mine = 0, None
        for place, alignment in index.find(some, LEAST):
            if others[place] == one:
                continue
            if failed == PATIENCE:
                return
            mine = self._bands(one) if mine is None else mine
            theirs = self._bands(others[place])
            alignment = index.fitted(alignment, marks, place)
            score, frames = correlation(alignment, mine, theirs)
            if frames >= OVERLAP * min(len(mine), len(theirs) / alignment.slope) and score >= threshold(frames):
                yield others[place], score
                failed = 0
            else:
                failed += 1

    def _peaks_of(self, pcm: str) -> Floats:
        if pcm not in self._peaks:
            kept = self.cache.get(_key("peaks", pcm))
            self._peaks[pcm] = kept["peaks"].numpy() if kept else self._make(self._tracks[pcm])[1].peaks
        return self._peaks[pcm]

    def _bands(self, pcm: str) -> Bands:
        if pcm in self._unkept:
            return self._unkept[pcm]
        kept = self.cache.get(_key("bands", pcm))
        if kept is None:
            self._unkept[pcm] = self._make(self._tracks[pcm])[1].bands
        return self._unkept[pcm] if kept is None else kept["bands"].numpy()

    def keep(self, pcm: str, made: Fingerprint) -> None:
        """Keep the fingerprint of a recording."""
        self.cache.put(_key("peaks", pcm), {"peaks": torch.from_numpy(made.peaks)})
        self.cache.put(_key("bands", pcm), {"bands": torch.from_numpy(made.bands)})
        self._peaks[pcm] = made.peaks

    def _make(self, track: Track) -> tuple[Facts, Fingerprint]:
        audio = self.files.load(track.path, track.sha256, sample_rate=RATE)
        made = fingerprint(audio.samples[0])
        self.keep(audio.sha256_pcm, made)
        return Facts.of(audio), made


def _key(what: str, pcm: str) -> tuple[str, ...]:
    return what, decoder_sha256(), pcm
