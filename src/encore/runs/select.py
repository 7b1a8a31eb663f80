"""Which tracks a run is about: what to forget, what to keep, and unseen music to compare with."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from encore import assets
from encore.audio.catalog import Catalog
from encore.audio.duplicates import find_duplicates, refusal, without_duplicates
from encore.audio.lists import read_list
from encore.audio.text import printable
from encore.audio.tracks import Missing, Track
from encore.errors import InputError, UsageError

SELF = "self"
HOLDOUT = "holdout"  # splits of a catalogue
RETAIN = "retain"


@dataclass(frozen=True)
class Tracks:
    """The tracks of a run.

    Args:
        forget, retain, holdout: disjoint; retain is empty with `--retain self`.
        missing: lines of the list that name no known track (only with `allow_missing`).
        notes: what a person may want to know, one sentence each.
        retain_source: in words, where retain came from.
        listed: tracks that the list names; `forget` has fewer where it is one of several requests.
    """

    forget: tuple[Track, ...]
    retain: tuple[Track, ...]
    holdout: tuple[Track, ...]
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = ()
    retain_source: str = ""
    listed: int | None = None


def open_catalog(catalog: Path | None, model: str, roots: Sequence[Path] = ()) -> Catalog | None:
    """The catalogue named, else the model's own (the embedded model has one), else None."""
    if catalog is not None:
        return Catalog.open(catalog, roots=roots)
    return Catalog.open(assets.CATALOG) if assets.model_folder(model) else None


def select(
    listing: Path | str,
    *,
    catalog: Catalog | None,
    retain: str | None = None,
    holdout: Path | None = None,
    roots: Sequence[Path] = (),
    allow_missing: bool = False,
    drop_duplicates: bool = False,
) -> Tracks:
    """Read the list and settle what is kept and what is compared with.

    Args:
        listing: the list of tracks to forget, "-" for stdin.
        catalog: what `id:`, `isrc:` and `sha256:` lines are looked up in; also what retain is taken from.
        retain: a list of tracks to keep, "self" for the base model's own playing, None for the catalogue less the list.
        holdout: a list of unseen tracks of the same source; None for the catalogue's split "holdout".
        roots: folders, besides a list's own, that its paths may lead into.
        drop_duplicates: take tracks out of retain that are also to be forgotten, instead of refusing.

    Raises:
        InputError: a line matches nothing, or a track is on two sides.
        UsageError: two lists are to come from stdin.
    """
    if [str(listing), retain, str(holdout)].count("-") > 1:
        raise UsageError("only one list can come from the standard input", "write the other one into a file")
    chosen = read_list(listing, catalog=catalog, roots=roots, allow_missing=allow_missing)
    unheard: Sequence[Track] = ()
    if holdout is not None:
        unheard = read_list(holdout, catalog=catalog, roots=roots).tracks
    elif catalog is not None and HOLDOUT in catalog.splits:
        unheard = catalog.tracks(split=HOLDOUT)
    _refuse_shared(chosen.tracks, unheard, "to be forgotten")

    kept: Sequence[Track] = ()
    source = "nothing"
    if retain == SELF:
        source = "the base model's own playing"
    elif retain is not None:
        kept, source = read_list(retain, catalog=catalog, roots=roots).tracks, f"the list {printable(retain)}"
        _refuse_shared(kept, unheard, "to be kept")
    elif catalog is not None:
        taken = {track.sha256 for track in (*chosen.tracks, *unheard)}
        kept = [t for t in catalog.tracks() if t.meta.get("split") != HOLDOUT and t.sha256 not in taken]
        source = "the catalogue less the list"
    notes = list(chosen.notes)
    pairs = find_duplicates(chosen.tracks, kept)
    if pairs and not drop_duplicates:
        raise refusal(pairs)
    if pairs:
        before = len(kept)
        kept = without_duplicates(kept, pairs)
        notes.append(f"{before - len(kept)} of {before} tracks to keep were left out: they are also to be forgotten")
    return Tracks(chosen.tracks, tuple(kept), tuple(unheard), chosen.missing, tuple(notes), source, len(chosen.tracks))


def _refuse_shared(tracks: Sequence[Track], holdout: Sequence[Track], purpose: str) -> None:
    """The holdout stands for music the model never heard: none of it may be on another side."""
    unheard = {track.sha256 for track in holdout}
    names = [printable(track.id) for track in tracks if track.sha256 in unheard]
    if names:
        raise InputError(f"both {purpose} and in the holdout: {', '.join(names)}", "take it off one of the two")


def reported(tracks: Sequence[Track], most: int, seed: int) -> list[Track]:
    """The retain tracks an evaluation is about: the split "retain" where there is one, else a seeded sample."""
    split = [track for track in tracks if track.meta.get("split") == RETAIN]
    if split:
        return split
    return sorted(random.Random(seed).sample(list(tracks), min(most, len(tracks))), key=lambda track: track.id)


def retain_sets(kept: Sequence[Track], measured: Sequence[Track], watched: int | None) -> str:
    """Which retain tracks `encore eval` measures and which ones `encore forget` shows the mean of, in words.

    Args:
        kept: all retain tracks of the run.
        measured: of them, those that `reported` returns.
        watched: how many of them the run was stopped by; None where that is not known, and nothing is said of it.
    """
    if len(measured) == len(kept):
        which = f"all {len(kept)} tracks kept"
    elif all(track.meta.get("split") == RETAIN for track in measured):
        which = f'{len(measured)} of {len(kept)} tracks kept, the catalogue\'s split "{RETAIN}"'
    else:
        which = f"{len(measured)} of {len(kept)} tracks kept, chosen by --seed"
    text = f"`encore eval` measures retain on {which}"
    if watched is None or watched == len(kept) == len(measured):
        return text
    return f"{text}; `encore forget` shows the mean of {watched} of the {len(kept)}, chosen at random"
