"""Forget tracks as the base model knows them: each is searched for the places that it was learnt at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from encore.api import Backend
from encore.data.encode import EncodedTrack, TrackEncoder, window_samples
from encore.data.tracks import Piece
from encore.reporter import Reporter
from encore.store.model_name import model_sha256
from encore.text import printable
from encore.unlearn.monitor import track_nll
from encore.unlearn.offset_search import LEAST_SECONDS, MEMORISED, OffsetSearch, generations

VERSION = "1"
"""Part of the cache's key; raised when a search finds something else than before."""

HELD_OUT = 16  # tracks at most whose mean is the held-out level


def with_known_pieces(
    listener: TrackEncoder, forget: Sequence[EncodedTrack], holdout: Sequence[EncodedTrack], reporter: Reporter
) -> list[EncodedTrack]:
    """Forget tracks, those that the model knows at other offsets cut there.

    The clips of such a track are the pieces found, and those of its windows that cost less than held-out music; what
    is left says nothing to the model, and as part of the track's mean would hide what does. All others are as they
    were. A search depends on the model and the file alone, and is cached.

    Args:
        listener: by which the tracks were encoded. holdout: what the held-out level is taken from.
    """
    backend = listener.backend
    if not backend.has_tokens:
        if any(len(one.clips) > len(one.track.captions) for one in forget):
            reporter.note(f"{backend.name} has no tokens: long tracks are cut at multiples of its window, not searched")
        return list(forget)
    if window_samples(backend) < LEAST_SECONDS * backend.sample_rate:
        return list(forget)
    nll = track_nll(backend, [clip for one in forget for clip in one.clips if clip.caption == one.track.caption])
    known = MEMORISED * math.log(backend.codebook_size)
    unknown = {one.track.id: one for one in forget if nll[one.track.id] > known}
    if not unknown:
        return list(forget)
    search = _Searches(listener, [*unknown.values()], reporter)
    level = None
    made = []
    for one in forget:
        pieces = search.of(one) if one.track.id in unknown else []
        if not pieces:
            made.append(one)
            continue
        if level is None:
            held_out = track_nll(backend, [clip for other in holdout[:HELD_OUT] for clip in other.clips]).values()
            level = sum(held_out) / len(held_out) if held_out else 0.0
        made += listener.hear([replace(one.track, pieces=(*pieces, *_windows_below(backend, one, level)))])
    return made


class _Searches:
    """The searches of some tracks, whose captions are generated together when the first is not in the cache."""

    def __init__(self, listener: TrackEncoder, tracks: Sequence[EncodedTrack], reporter: Reporter) -> None:
        self._listener, self._tracks, self._reporter = listener, tracks, reporter
        self._generations: dict[str, torch.Tensor] = {}
        self._model = model_sha256(listener.backend)

    def of(self, heard: EncodedTrack) -> list[Piece]:
        """The pieces of a track that the model knows."""
        key = ("offsets", VERSION, self._model, *self._listener.codes_key, heard.pcm_sha256, *heard.track.captions)
        found = self._listener.cache.get_or_make(key, lambda: self._search(heard))
        if (searched := float(found["searched"])) < 1:
            self._reporter.note(
                f"{printable(heard.track.id)} is long: {searched:.0%} of its offsets were searched, beside those of "
                "generations from its captions"
            )
        return [Piece(start, int(count), nll, grid_nll) for start, count, nll, grid_nll in found["pieces"].tolist()]

    def _search(self, heard: EncodedTrack) -> dict[str, torch.Tensor]:
        track, backend = heard.track, self._listener.backend
        if not self._generations:
            captions = dict.fromkeys(caption for one in self._tracks for caption in one.track.captions)
            self._reporter.progress("generate from captions", 0, 1)
            self._generations = generations(backend, list(captions))
        samples = torch.from_numpy(self._listener.load(track).samples)
        search = OffsetSearch(
            backend, samples, track.caption, [self._generations[caption] for caption in track.captions],
            lambda done, of: self._reporter.progress("search offsets", done, of),
        )  # fmt: skip
        found = [(one.start, one.samples, one.nll, one.grid_nll or 0.0) for one in search.pieces()]
        pieces = torch.tensor(found, dtype=torch.float64).reshape(-1, 4)
        pieces[:, 2:] = pieces[:, 2:].round(decimals=3)
        return {"pieces": pieces, "searched": torch.tensor(search.searched)}


def _windows_below(backend: Backend, heard: EncodedTrack, level: float) -> list[Piece]:
    """The windows of a track, as it was cut before, that cost less than `level`."""
    own = [clip for clip in heard.clips if clip.caption == heard.track.caption]
    nll = track_nll(backend, [replace(clip, track=str(i)) for i, clip in enumerate(own)])  # by window
    window, length = window_samples(backend), round(heard.seconds * backend.sample_rate)
    return [
        Piece(float(i * window), min(window, length - i * window), round(nll[str(i)], 3), None)
        for i in range(len(own))
        if nll[str(i)] < level
    ]


def sentences(heard: Sequence[EncodedTrack], rate: int) -> list[str]:
    """A line a track that says from where to where it is known.

    Args:
        rate: samples a second of the tracks' pieces.
    """
    lines = []
    for one in heard:
        places = [
            f"from {piece.start / rate:.2f} to {(piece.start + piece.samples) / rate:.2f} s (NLL {piece.nll:.2f} "
            f"against {piece.grid_nll:.2f} at multiples of the window)"
            for piece in one.track.pieces
            if piece.grid_nll is not None
        ]
        if places:
            lines.append(f"{printable(one.track.id)} is known {', '.join(places)}")
    return lines
