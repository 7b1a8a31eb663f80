"""Select the tracks of a run: to forget, to keep, and held-out tracks to compare with."""

from __future__ import annotations

import random
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from encore import assets
from encore.data.catalog import Catalog
from encore.data.duplicates import Progress, find_duplicates, refusal, without_duplicates
from encore.data.file_info import FileCache
from encore.data.fingerprints import RATE
from encore.data.shards import ShardCatalog, ShardTracks, catalog_at
from encore.data.track_list import read_list
from encore.data.tracks import Missing, Track
from encore.errors import MOST, InputError, UsageError, together
from encore.tensor_cache import TensorCache
from encore.text import counted, printable

SELF = "self"
HOLDOUT = "holdout"  # splits of a catalogue
RETAIN = "retain"
FORGET = "forget"
SHOWN = 5  # tracks that a note names
HELD_OUT = 256  # held-out tracks of a catalogue in shards that are used; every snapshot measures them
CHECK_SECONDS = 10.0  # when a list is refused, decode its files for this long to name unreadable ones as well


@dataclass(frozen=True)
class Tracks:
    """The tracks of a run.

    Args:
        forget: tracks to forget.
        retain: tracks to keep; empty with `--retain self`. Of a catalogue in shards, `ShardTracks`.
        holdout: held-out tracks; the three are disjoint.
        missing: lines of the list without a known track (only with `allow_missing`).
        skipped: errors of retain and holdout tracks that were left out (only with `skip_unreadable`).
        notes: one sentence each for the user.
        retain_source: description of where retain came from.
        listed: number of tracks in the list; `forget` has fewer where it is one of several requests.
    """

    forget: tuple[Track, ...]
    retain: Sequence[Track]
    holdout: tuple[Track, ...]
    missing: tuple[Missing, ...] = ()
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    retain_source: str = ""
    listed: int | None = None


def open_catalog(catalog: Path | None, model: str, roots: Sequence[Path] = ()) -> Catalog | None:
    """The given catalogue, else that of the embedded model, else None."""
    if catalog is not None:
        return catalog_at(catalog, roots)
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
    skip_unreadable: bool = False,
    progress: Progress = lambda stage, done, of: None,
) -> Tracks:
    """Read the list, and select retain and holdout.

    Args:
        listing: the list of tracks to forget, "-" for stdin.
        catalog: resolves `id:`, `isrc:` and `sha256:` lines, and supplies retain.
        retain: a list of tracks to keep, "self" for generations of the base model, None for the catalogue without the
            list.
        holdout: a list of held-out tracks of the same source; None for the catalogue's split "holdout".
        roots: further folders that listed files may be in.
        allow_missing: record lines without a track in `Tracks.missing` instead of raising.
        drop_duplicates: remove forget tracks from retain, and tracks of either from holdout, instead of raising.
        skip_unreadable: leave unreadable tracks out of retain and holdout; forget tracks are never left out.
        progress: see `duplicates.Progress`.

    Raises:
        InputError: lines without a track, unreadable files (all are named), or a track in two sets.
        UsageError: two lists are read from stdin.
    """
    if [str(listing), retain, str(holdout)].count("-") > 1:
        raise UsageError("only one list can come from the standard input", "write the other one into a file")
    errors: list[InputError] = []
    lost: list[InputError] = [] if skip_unreadable else errors  # errors of retain and holdout
    selection = read_list(listing, catalog=catalog, roots=roots, allow_missing=allow_missing, errors=errors)
    forget: Sequence[Track] = selection.tracks
    of_forget = len(errors)
    notes = [*(catalog.notes if catalog is not None else ()), *selection.notes]

    def listed(source: Path | str) -> Sequence[Track]:
        selected = read_list(source, catalog=catalog, roots=roots, errors=lost, advice="")
        notes.extend(selected.notes)
        return catalog.streamed(selected.tracks) if isinstance(catalog, ShardCatalog) else selected.tracks

    kept: Sequence[Track] = ()
    held_out: Sequence[Track] = ()
    source = "nothing"
    if holdout is not None:
        held_out = listed(holdout)
    if retain == SELF:
        source = "generations of the base model"
    elif retain is not None:
        kept, source = listed(retain), f"the list {printable(retain)}"
    elif isinstance(catalog, ShardCatalog):
        kept = ShardTracks(catalog.shards, catalog.shards.numbers())
        if holdout is None:
            held_out = kept.of_split(HOLDOUT)
        kept = kept.of_split(HOLDOUT, others=True).of_files([track.sha256 for track in forget], others=True)
        if holdout is not None:
            kept = kept.of_files([track.sha256 for track in held_out], others=True)
        source = "the catalogue without the list"
    elif catalog is not None:
        known = {track.sha256: track for track in catalog.tracks(errors=lost)}
        if holdout is None:
            held_out = [track for track in known.values() if track.meta.get("split") == HOLDOUT]
        taken = {track.sha256 for track in (*forget, *held_out)}
        kept = [t for t in known.values() if t.meta.get("split") != HOLDOUT and t.sha256 not in taken]
        source = "the catalogue without the list"
        # A copy of a file under another name is the same track, so its captions are forgotten as well.
        forget = [track.with_captions(known.get(track.sha256, track).captions) for track in forget]
    if holdout is None and retain is not None and catalog is not None and HOLDOUT in catalog.splits:
        held_out = catalog.tracks(split=HOLDOUT, errors=lost)
    if isinstance(held_out, ShardTracks):
        if len(held_out) > HELD_OUT:
            notes.append(f"{HELD_OUT} of {len(held_out):,} held-out tracks are compared with, the same in every run")
        sample = random.Random(0).sample(range(len(held_out)), min(HELD_OUT, len(held_out)))
        held_out = [held_out[place] for place in sorted(sample)]
    if errors:
        optional = () if skip_unreadable else (*(() if isinstance(kept, ShardTracks) else kept), *held_out)
        unread = unreadable((*forget, *optional), CHECK_SECONDS)
        raise _refusal([*errors, *unread], of_forget)
    required = {track.sha256 for track in forget}
    failed: set[str] = set()

    def may_skip(track: Track, error: InputError) -> bool:
        nonlocal of_forget
        of_forget += track.sha256 in required
        skipped = skip_unreadable and track.sha256 not in required
        (lost if skipped else errors).append(track.refusal(error))
        failed.add(track.sha256)
        return skipped

    of_forget = 0
    try:
        pairs = find_duplicates(forget, kept, held_out, cache=TensorCache(), progress=progress, skip=may_skip)
    except InputError as error:
        raise (_refusal(errors, of_forget) if errors else error) from error
    if failed:
        kept, held_out = (without_files(side, failed) for side in (kept, held_out))
    if pairs and not drop_duplicates:
        raise refusal(pairs)
    for side, purpose, why in (
        ("retain", "to keep", "they are also to be forgotten"),
        ("holdout", "to compare with", "they are also to be forgotten or kept"),
    ):
        before = kept if side == "retain" else held_out
        after = without_duplicates(before, [pair for pair in pairs if pair.sides[1] == side])
        kept, held_out = (after, held_out) if side == "retain" else (kept, after)
        if len(after) < len(before):
            notes.append(f"{len(before) - len(after)} of {len(before)} tracks {purpose} were left out: {why}")
    notes += [*_several_captions(forget), *left_out(lost)]
    if any(track.shards for track in (*forget, *held_out)) or isinstance(kept, ShardTracks):
        notes.append(
            "the codes of the catalogue are read from its shards, and no audio of it: copies of a track are found by "
            "file and by samples, not in another encoding"
        )
    kept = kept if isinstance(kept, ShardTracks) else tuple(kept)
    return Tracks(
        tuple(forget), kept, tuple(held_out), selection.missing, tuple(error.message for error in lost),
        tuple(dict.fromkeys(notes)), source, len(forget),
    )  # fmt: skip


def without_files(tracks: Sequence[Track], hashes: Collection[str]) -> Sequence[Track]:
    """Tracks without those whose files have one of these SHA-256."""
    if isinstance(tracks, ShardTracks):
        return tracks.of_files(hashes, others=True)
    return [track for track in tracks if track.sha256 not in hashes]


def joined(tracks: Sequence[Track], more: Sequence[Track]) -> Sequence[Track]:
    """Tracks, and more of them after these.

    Raises:
        InputError: the former are in shards, and one of the latter is not.
    """
    return tracks.plus(more) if isinstance(tracks, ShardTracks) else (*tracks, *more)


def _refusal(errors: Sequence[InputError], of_forget: int) -> InputError:
    """One error for all of `errors`, of which `of_forget` can't be skipped."""
    error = together(errors)
    if len(errors) > of_forget:
        skip = "--skip-unreadable leaves out those of retain and holdout"
        error = InputError(error.message, f"{error.hint}\n{skip}" if error.hint else skip)
    return error


def unreadable(tracks: Sequence[Track], seconds: float) -> list[InputError]:
    """Errors of the tracks that can't be decoded, with the lines that name them.

    Args:
        tracks: any tracks; those in the cache take no time.
        seconds: time limit, after which no more tracks are decoded.
    """
    files = FileCache()
    errors: list[InputError] = []
    until = time.monotonic() + seconds
    for track in tracks:
        try:
            if track.shards is None and files.decoding(track.sha256) is None and time.monotonic() < until:
                files.load(track.path, track.sha256, sample_rate=RATE)
        except InputError as error:
            errors.append(track.refusal(error))
    return errors


class OptionalTracks:
    """Tracks that may be left out if they can't be read; `skip` is an argument for `TrackEncoder.encode`.

    Attributes:
        lost: errors of the tracks left out.
    """

    def __init__(self, tracks: Iterable[Track]) -> None:
        self._hashes = {track.sha256 for track in tracks}
        self.lost: list[InputError] = []

    def skip(self, track: Track, error: InputError) -> bool:
        """Whether a track may be left out; its error is then recorded."""
        if track.sha256 not in self._hashes:
            return False
        self.lost.append(error)
        return True


def left_out(lost: Sequence[InputError]) -> list[str]:
    """A sentence on the tracks that `--skip-unreadable` left out, if there are any."""
    why = "; ".join(error.message for error in lost[:MOST])
    count = counted(len(lost), "track")
    return [f"left out {count} of retain and holdout that can't be used: {why}"] if lost else []


def _several_captions(forget: Sequence[Track]) -> list[str]:
    several = [track for track in forget if track.more_captions]
    if not several:
        return []
    named = ", ".join(f"{printable(track.id)} ({len(track.captions)})" for track in several[:SHOWN])
    more = f" and {len(several) - SHOWN:,} more" if len(several) > SHOWN else ""
    verb = "has" if len(several) == 1 else "have"
    return [f"all captions of a track are forgotten, and {named}{more} {verb} several"]


def reported(tracks: Sequence[Track], most: int, seed: int) -> list[Track]:
    """The retain tracks that an evaluation measures: the split "retain" where there is one, else a random sample.

    The sample begins with the split "forget": where another list is forgotten, these are kept, and may be the only
    tracks that the model has memorised.

    Args:
        tracks: all retain tracks.
        most: size of the sample.
        seed: of the sample.
    """
    if isinstance(tracks, ShardTracks):
        kept = tracks.of_split(RETAIN)
        if 0 < len(kept) <= HELD_OUT:
            return list(kept)
        first = list(tracks.of_split(FORGET)[:most])
        rest: Sequence[Track] = tracks.of_split(FORGET, others=True)
        chosen = random.Random(seed).sample(range(len(rest)), min(most - len(first), len(rest)))
        return sorted((*first, *(rest[place] for place in chosen)), key=lambda track: track.id)
    split = [track for track in tracks if track.meta.get("split") == RETAIN]
    if split:
        return split
    first = [track for track in tracks if track.meta.get("split") == FORGET][:most]
    others = [track for track in tracks if track.meta.get("split") != FORGET]
    sample = random.Random(seed).sample(others, min(most - len(first), len(others)))
    return sorted((*first, *sample), key=lambda track: track.id)


def retain_sets(kept: Sequence[Track], measured: Sequence[Track], watched: int | None) -> str:
    """A sentence on which retain tracks `encore eval` measures and how many `encore forget` watches.

    Args:
        kept: all retain tracks of the run.
        measured: result of `reported`.
        watched: number of retain tracks in the run's snapshots; None leaves it out.
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
    return f"{text}; `encore forget` watched {watched} of the {len(kept)}"
