"""Per-artist figures: whether generations for an artist's captions are attributed to the artist."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from encore import stats
from encore.api import ClipSet, Evaluation, Metric, Result, Role
from encore.data.artists import artists_of, normalised, without_note
from encore.metrics.memorization.verbatim import MODELS
from encore.metrics.rows import SETS, available_roles, mean_row, not_finite, unmeasured
from encore.metrics.utility.embedding_distance import (
    cosines,
    embedders_with,
    generation_clips,
    mean_per_track,
    row_name,
)
from encore.metrics.utility.neighbours import UNKNOWN

NEIGHBOURS = 8  # artists nearest to those of the forget tracks, at most
TEMPERATURE = 0.1  # of the softmax over artists' cosines

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Gallery:
    """The real tracks that generations are compared with.

    Args:
        vectors: embeddings of clips minus their mean, [N, D].
        centre: the mean, [D].
        tracks: track of each clip.
        artists: artist of each clip.
        names: all artists, sorted; at least two.
    """

    vectors: Floats
    centre: Floats
    tracks: Sequence[str]
    artists: Sequence[str]
    names: Sequence[str]

    def scores(self, vectors: Floats) -> Floats:
        """The highest cosine of embeddings [M, D] with a clip of each artist, [M, artists]."""
        similar = cosines(vectors - self.centre, self.vectors)
        labels = np.array(self.artists)
        return np.stack([similar[:, labels == name].max(1) for name in self.names], 1)


class Artists(Metric):
    """Attribution of generations to artists by the nearest real track in an embedder's space.

    The gallery is every clip of a forget, retain or holdout track whose artist is known ("traditional" and the like,
    and a text in parentheses, are ignored). A generation for a caption is attributed to the artist of the clip of the
    highest cosine, centred on the gallery's mean. Rows, one of each per embedder:

    - `artist_attribution`: share of the generations for the captions of a track that are attributed to its artist.
    - `artist_rank`: rank of the artist among all artists by the highest cosine; 1 is the nearest.
    - `artist_confidence`: softmax of these cosines over artists at temperature .1, the artist's share.
    - `artist_off_target`, on retain: `artist_attribution` of the artists whose clips are nearest to those of the forget
      tracks, at most 8. What an opt-out must leave alone: artist-level suppression has been seen to spread to them.
    - `artist_ground_truth`, without a model: share of real tracks whose nearest other track is by the same artist, of
      artists with several tracks; `details` have mean cosines within and between artists, and the AUC between the two.
      Where it is no better than chance, attribution tells tracks apart, but not artists.

    Of the forget tracks' rows, `details["artists"]` has the figures of each artist.
    """

    def measure(self, evaluation: Evaluation) -> Iterator[Result]:
        opened, absent = embedders_with(evaluation, "embed")
        for name, why in absent.items():
            yield unmeasured(row_name("artist_attribution", name), "unlearned", "forget", why, unit="share")
        for embedder in opened:
            gallery = _gallery(evaluation, embedder)
            if isinstance(gallery, str):
                yield unmeasured(row_name("artist_attribution", embedder), "unlearned", "forget", gallery, unit="share")
                continue
            yield _ground_truth(evaluation, embedder, gallery)
            neighbours = _nearest(evaluation, gallery)
            for model in available_roles(evaluation, *MODELS):
                yield from _rows(evaluation, embedder, gallery, model)
                yield _off_target(evaluation, embedder, gallery, model, neighbours)


def _artist(evaluation: Evaluation, track: str) -> str:
    """A track's artist, normalised; empty where it is not known."""
    name = without_note(evaluation.track_metadata.get(track, {}).get("artist", ""))
    return "" if UNKNOWN.fullmatch(name) else name


def _credited(evaluation: Evaluation, track: str) -> set[str]:
    """All artists that a track credits, as `A feat. B` does two, normalised."""
    return {normalised(name) for name in artists_of(evaluation.track_metadata.get(track, {}).get("artist", ""))}


def _gallery(evaluation: Evaluation, embedder: str) -> Gallery | str:
    """The gallery, or why there is none."""
    vectors, tracks, artists = [], [], []
    for clips in (name for name in SETS if evaluation.clips.get(name)):
        embedded = evaluation.embeddings("audio", clips, embedder)
        for clip, vector in zip(evaluation.clips[clips], embedded, strict=True):
            if artist := _artist(evaluation, clip.track):
                vectors.append(vector)
                tracks.append(clip.track)
                artists.append(artist)
    if not any(_artist(evaluation, clip.track) for clip in evaluation.clips["forget"]):
        return "no artist of a forget track is known"
    names = sorted(set(artists))
    if len(names) < 2:
        return "all tracks are by one artist"
    rows = np.array(vectors)
    centre = rows.mean(0)
    return Gallery(rows - centre, centre, tracks, artists, names)


def _rows(evaluation: Evaluation, embedder: str, gallery: Gallery, model: Role) -> Iterator[Result]:
    """Attribution, rank and confidence of the forget tracks' artists."""
    if reason := not_finite(evaluation, model, "forget"):
        yield unmeasured(row_name("artist_attribution", embedder), model, "forget", reason, unit="share")
        return
    attributed, ranks, shares, owners = _attributed(evaluation, embedder, gallery, model, "forget")
    artists: dict[str, dict[str, Any]] = {}
    for name in sorted(set(owners.values())):
        chosen = [track for track, artist in owners.items() if artist == name]
        artists[name] = {"tracks": len(chosen)} | {
            key: sum(figures[track] for track in chosen) / len(chosen)
            for key, figures in (("attribution", attributed), ("rank", ranks), ("confidence", shares))
        }
    details = {"artists": artists, "gallery": len(gallery.names)}
    figures = (("attribution", attributed, "share"), ("rank", ranks, ""), ("confidence", shares, "share"))
    for kind, tracks, unit in figures:
        row = mean_row(
            row_name(f"artist_{kind}", embedder), model, "forget", tracks, evaluation, unit=unit, direction="gold",
            details=details,
        )  # fmt: skip
        if kind == "rank":
            bounds = (1.0, float(len(gallery.names)))
            low, high = stats.bootstrap_interval(list(tracks.values()), seed=evaluation.seed, bounds=bounds) or (
                1,
                None,
            )
            row = replace(row, low=low, high=high)
        yield row


def _off_target(
    evaluation: Evaluation, embedder: str, gallery: Gallery, model: Role, neighbours: Sequence[str]
) -> Result:
    name = row_name("artist_off_target", embedder)
    if not neighbours:
        why = "there is no other artist among the retain tracks"
        return unmeasured(name, model, "retain", why, unit="share")
    if reason := not_finite(evaluation, model, "retain"):
        return unmeasured(name, model, "retain", reason, unit="share")
    attributed, _, _, owners = _attributed(evaluation, embedder, gallery, model, "retain")
    tracks = {track: share for track, share in attributed.items() if owners[track] in neighbours}
    return mean_row(
        name, model, "retain", tracks, evaluation, unit="share", direction="base",
        details={"artists": list(neighbours)},
    )  # fmt: skip


def _attributed(
    evaluation: Evaluation, embedder: str, gallery: Gallery, model: Role, clips: ClipSet
) -> tuple[dict[str, float], dict[str, float], dict[str, float], dict[str, str]]:
    """Share attributed, mean rank and mean confidence of each track with a known artist, and its artist."""
    prompts = generation_clips(evaluation, clips)
    scores = gallery.scores(evaluation.embeddings(model, clips, embedder))  # [M, artists]
    known = [i for i, clip in enumerate(prompts) if _artist(evaluation, clip.track)]
    prompted, scores = [prompts[i] for i in known], scores[known]
    column = [gallery.names.index(_artist(evaluation, clip.track)) for clip in prompted]
    own = scores[np.arange(len(known)), column]
    ranks = (scores > own[:, None]).sum(1) + 1
    weights = np.exp((scores - scores.max(1, keepdims=True)) / TEMPERATURE)
    confidence = weights[np.arange(len(known)), column] / weights.sum(1)
    owners = {clip.track: _artist(evaluation, clip.track) for clip in prompted}
    attributed, mean_ranks, shares = (
        mean_per_track(prompted, values.astype(float).tolist()) for values in (ranks == 1, ranks, confidence)
    )
    return attributed, mean_ranks, shares, owners


def _nearest(evaluation: Evaluation, gallery: Gallery) -> list[str]:
    """The artists of retain tracks that credit no forgotten one, nearest to the forget tracks' clips first."""
    forgotten = {_artist(evaluation, clip.track) for clip in evaluation.clips["forget"]} - {""}
    credited = {artist for clip in evaluation.clips["forget"] for artist in _credited(evaluation, clip.track)}
    kept = {
        _artist(evaluation, clip.track)
        for clip in evaluation.clips.get("retain", ())
        if credited.isdisjoint(_credited(evaluation, clip.track))
    } - {""}
    rows = [i for i, artist in enumerate(gallery.artists) if artist in forgotten]
    nearest = gallery.scores(gallery.vectors[rows] + gallery.centre).max(0)
    order = sorted(kept, key=lambda name: -nearest[gallery.names.index(name)])
    return order[:NEIGHBOURS]


def _ground_truth(evaluation: Evaluation, embedder: str, gallery: Gallery) -> Result:
    """Whether the embedder tells the artists of real tracks apart."""
    name = row_name("artist_ground_truth", embedder)
    similar = cosines(gallery.vectors, gallery.vectors)
    tracks, artists = np.array(gallery.tracks), np.array(gallery.artists)
    other = tracks[:, None] != tracks[None]
    same = (artists[:, None] == artists[None]) & other
    rows = np.flatnonzero(same.any(1))
    if not len(rows):
        return unmeasured(name, "none", "forget", "no artist has two tracks", unit="share")
    nearest = np.where(other, similar, -np.inf).argmax(1)
    hits: dict[str, list[float]] = {}
    for i in rows:
        hits.setdefault(str(tracks[i]), []).append(float(artists[nearest[i]] == artists[i]))
    per_track = {track: sum(values) / len(values) for track, values in sorted(hits.items())}
    upper = np.triu(other)
    within, between = similar[same & upper], similar[~same & upper]
    area = stats.auc(within, between)
    chance = float((same[rows].sum(1) / other[rows].sum(1)).mean())
    row = mean_row(
        name, "none", "forget", per_track, evaluation, unit="share", direction="higher",
        details={
            "within": float(within.mean()), "between": float(between.mean()), "auc": area, "chance": chance,
            "artists": len({str(artists[i]) for i in rows}), "tracks": per_track,
        },
        note=f"by chance {chance:.2f}; a pair by one artist is nearer than a pair by two with probability {area:.2f}",
    )  # fmt: skip
    return replace(row, per_track={})  # they are of all sets
