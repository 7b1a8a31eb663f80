"""Which tracks a run is about: what to forget, what to keep, and unseen music to compare with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from encore import assets
from encore.audio.catalog import Catalog
from encore.audio.lists import read_list
from encore.audio.tracks import Missing, Selection, Track
from encore.errors import InputError

SELF = "self"
HOLDOUT = "holdout"


@dataclass(frozen=True)
class Tracks:
    """The tracks of a run.

    Args:
        forget, retain, holdout: disjoint; retain is empty with `--retain self`.
        missing: lines of the list that name no known track (only with `allow_missing`).
        notes: what a person may want to know, one sentence each.
        retain_source: in words, where retain came from.
    """

    forget: tuple[Track, ...]
    retain: tuple[Track, ...]
    holdout: tuple[Track, ...]
    missing: tuple[Missing, ...] = ()
    notes: tuple[str, ...] = field(default=())
    retain_source: str = ""

    def as_json(self) -> dict[str, Any]:
        """The tracks as `request.json` keeps them; paths as they were when the run was made."""
        return {
            "forget": [track_json(track) for track in self.forget],
            "retain": [track_json(track) for track in self.retain],
            "holdout": [track_json(track) for track in self.holdout],
            "missing": [{"line": m.line, "text": m.source, "why": m.reason} for m in self.missing],
            "retain_source": self.retain_source,
        }


def track_json(track: Track) -> dict[str, Any]:
    """One track of `request.json`."""
    return {
        "id": track.id,
        "line": track.line,
        "file": str(track.path),
        "sha256": track.sha256,
        "caption": track.caption,
        "title": track.title,
        "split": track.meta.get("split"),
    }


def open_catalog(catalog: Path | None, model: str) -> Catalog | None:
    """The catalogue named, else the model's own (the embedded model has one), else None."""
    if catalog is not None:
        return Catalog.open(catalog)
    return Catalog.open(assets.CATALOG) if assets.model_folder(model) else None


def select(
    listing: Path | str,
    *,
    catalog: Catalog | None,
    retain: str | None = None,
    holdout: Path | None = None,
    allow_missing: bool = False,
) -> Tracks:
    """Read the list and settle what is kept and what is compared with.

    Args:
        listing: the list of tracks to forget, "-" for stdin.
        catalog: what `id:`, `isrc:` and `sha256:` lines are looked up in; also what retain is taken from.
        retain: a list of tracks to keep, "self" for the base model's own playing, None for the catalogue less the list.
        holdout: a list of unseen tracks of the same source; None for the catalogue's split "holdout".

    Raises:
        InputError: a line matches nothing, or there is nothing to keep.
    """
    chosen = read_list(listing, catalog=catalog, allow_missing=allow_missing)
    if not chosen.tracks:
        raise InputError(f"{_name(listing)} names no track", "write one path or id:… a line")
    unheard = _holdout(holdout, catalog)
    taken = {track.sha256 for track in (*chosen.tracks, *unheard)}
    if retain == SELF:
        kept, source = [], "the base model's own playing"
    elif retain is not None:
        kept, source = list(read_list(Path(retain), catalog=catalog).tracks), f"the list {Path(retain).name}"
    elif catalog is not None:
        kept = [t for t in catalog.tracks() if t.meta.get("split") != HOLDOUT and t.sha256 not in taken]
        source = "the catalogue less the list"
    else:
        kept, source = [], "nothing"
    clash = {track.sha256 for track in chosen.tracks} & {track.sha256 for track in unheard}
    if clash:
        names = sorted(track.id for track in chosen.tracks if track.sha256 in clash)
        raise InputError(f"{', '.join(names)} is both to be forgotten and in the holdout", "take it off one of them")
    return Tracks(tuple(chosen.tracks), tuple(kept), unheard, tuple(chosen.missing), tuple(chosen.notes), source)


def _holdout(listing: Path | None, catalog: Catalog | None) -> tuple[Track, ...]:
    if listing is not None:
        return tuple(read_list(listing, catalog=catalog).tracks)
    return tuple(catalog.tracks(split=HOLDOUT)) if catalog is not None else ()


def _name(listing: Path | str) -> str:
    return "the standard input" if str(listing) == "-" else Path(listing).name


def reported(tracks: Sequence[dict[str, Any]], most: int, seed: int) -> list[dict[str, Any]]:
    """The retain tracks an evaluation is about: those of the split "retain" where there is one, else a seeded sample."""
    split = [track for track in tracks if track["split"] == "retain"]
    if split:
        return split
    import random

    return sorted(random.Random(seed).sample(list(tracks), min(most, len(tracks))), key=lambda track: str(track["id"]))


__all__ = ["SELF", "Selection", "Tracks", "open_catalog", "reported", "select", "track_json"]
