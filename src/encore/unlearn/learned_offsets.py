"""Forget tracks cut where the base model learnt them: each is searched for the offsets of its training excerpts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from encore.api import Backend
from encore.data.encode import TrackEncoder, window_samples
from encore.data.encoded_tracks import EncodedTrack, clips_of
from encore.data.offset_search import LEAST_SECONDS, MEMORISED, OffsetSearch, generations
from encore.data.tracks import Piece, Track
from encore.reporter import Reporter
from encore.store.model_name import model_sha256
from encore.text import printable
from encore.unlearn.monitor import track_nll

VERSION = "1"
"""Part of the cache key; raised when the search changes."""

SHOWN = 5  # tracks that a note names
HELD_OUT = 16  # at most this many tracks are averaged for the held-out NLL


def with_learned_pieces(
    encoder: TrackEncoder, forget: Sequence[EncodedTrack], holdout: Sequence[EncodedTrack], reporter: Reporter
) -> list[EncodedTrack]:
    """The forget tracks; those that the model learnt at other offsets are cut there.

    The clips of such a track are the pieces found, and those of its windows whose NLL is below that of held-out music.
    The rest of it is not memorised, and would hide the memorised part in the track's mean. All other tracks are
    unchanged. A search depends only on the model and the file, and is cached.

    Args:
        encoder: encoded the tracks, and encodes the new pieces.
        forget: tracks to forget.
        holdout: tracks that the held-out NLL is computed on.
        reporter: receives progress and notes.
    """
    backend = encoder.backend
    if not backend.has_tokens:
        if any(len(encoded.clips) > len(encoded.track.captions) for encoded in forget):
            reporter.note(f"{backend.name} has no tokens: long tracks are cut at multiples of its window, not searched")
        return list(forget)
    if window_samples(backend) < LEAST_SECONDS * backend.sample_rate:
        return list(forget)
    nll = track_nll(backend, [clip for track in forget for clip in track.clips if clip.caption == track.track.caption])
    memorised = MEMORISED * math.log(backend.codebook_size)
    unknown = {encoded.track.id: encoded for encoded in forget if nll[encoded.track.id] > memorised}
    if not unknown:
        return list(forget)
    if in_shards := [name for name, encoded in unknown.items() if encoded.track.shards is not None]:
        named = ", ".join(map(printable, in_shards[:SHOWN])) + (", …" if len(in_shards) > SHOWN else "")
        reporter.note(
            f"{len(in_shards)} tracks are not memorised as they are cut, and other offsets can't be searched, since "
            f"shards hold no audio: {named}"
        )
    unknown = {name: encoded for name, encoded in unknown.items() if encoded.track.shards is None}
    if not unknown:
        return list(forget)
    search = _Searches(encoder, [*unknown.values()], reporter)
    limit = None
    result = []
    for encoded in forget:
        pieces = search.of(encoded) if encoded.track.id in unknown else []
        if not pieces:
            result.append(encoded)
            continue
        if limit is None:
            held_out = track_nll(backend, clips_of(holdout[:HELD_OUT])).values()
            limit = sum(held_out) / len(held_out) if held_out else 0.0
        pieces += _windows_below(backend, encoded, limit)
        result += encoder.encode([replace(encoded.track, pieces=tuple(pieces))])
    return result


class _Searches:
    """The searches of some tracks; their captions are generated together when one is not in the cache."""

    def __init__(self, encoder: TrackEncoder, tracks: Sequence[EncodedTrack], reporter: Reporter) -> None:
        self._encoder, self._tracks, self._reporter = encoder, tracks, reporter
        self._generations: dict[str, torch.Tensor] = {}
        self._model = model_sha256(encoder.backend)

    def of(self, encoded: EncodedTrack) -> list[Piece]:
        """The pieces of a track that the model memorised."""
        key = ("offsets", VERSION, self._model, *self._encoder.codes_key, encoded.pcm_sha256, *encoded.track.captions)
        result = self._encoder.cache.get_or_make(key, lambda: self._search(encoded.track))
        if (searched := float(result["searched"])) < 1:
            self._reporter.note(
                f"{printable(encoded.track.id)} is long: {searched:.0%} of its offsets were searched, beside those of "
                "generations from its captions"
            )
        return [Piece(start, int(count), nll, grid_nll) for start, count, nll, grid_nll in result["pieces"].tolist()]

    def _search(self, track: Track) -> dict[str, torch.Tensor]:
        backend = self._encoder.backend
        if not self._generations:
            captions = dict.fromkeys(caption for encoded in self._tracks for caption in encoded.track.captions)
            self._reporter.progress("generate from captions", 0, 1)
            self._generations = generations(backend, list(captions))
        samples = torch.from_numpy(self._encoder.load(track).samples)
        search = OffsetSearch(
            backend, samples, track.caption, [self._generations[caption] for caption in track.captions],
            lambda done, of: self._reporter.progress("search offsets", done, of),
        )  # fmt: skip
        rows = [(piece.start, piece.samples, piece.nll, piece.grid_nll or 0.0) for piece in search.pieces()]
        pieces = torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)
        pieces[:, 2:] = pieces[:, 2:].round(decimals=3)
        return {"pieces": pieces, "searched": torch.tensor(search.searched)}


def _windows_below(backend: Backend, encoded: EncodedTrack, limit: float) -> list[Piece]:
    """The windows of a track whose NLL is below `limit`."""
    clips = [clip for clip in encoded.clips if clip.caption == encoded.track.caption]
    nll = track_nll(backend, [replace(clip, track=str(i)) for i, clip in enumerate(clips)])  # by window
    window, length = window_samples(backend), round(encoded.seconds * backend.sample_rate)
    return [
        Piece(float(i * window), min(window, length - i * window), round(nll[str(i)], 3), None)
        for i in range(len(clips))
        if nll[str(i)] < limit
    ]


def sentences(tracks: Sequence[EncodedTrack], rate: int) -> list[str]:
    """One sentence per track that was cut at learnt offsets.

    Args:
        tracks: all forget tracks.
        rate: sample rate of their pieces, Hz.
    """
    lines = []
    for encoded in tracks:
        places = [
            f"from {piece.start / rate:.2f} to {(piece.start + piece.samples) / rate:.2f} s (NLL {piece.nll:.2f} "
            f"against {piece.grid_nll:.2f} at multiples of the window)"
            for piece in encoded.track.pieces
            if piece.grid_nll is not None
        ]
        if places:
            lines.append(f"{printable(encoded.track.id)} is memorised {', '.join(places)}")
    return lines
