"""Which tracks a run is about: what to forget, what to keep, and unseen music to compare with."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from encore import assets
from encore.cache import TensorCache
from encore.data.catalog import Catalog
from encore.data.duplicates import Progress, find_duplicates, refusal, without_duplicates
from encore.data.file_info import FileCache
from encore.data.fingerprints import RATE
from encore.data.track_list import read_list
from encore.data.tracks import Missing, Track
from encore.errors import MOST, InputError, UsageError, together
from encore.text import printable

SELF = "self"
HOLDOUT = "holdout"  # splits of a catalogue
RETAIN = "retain"
FORGET = "forget"
SHOWN = 5  # tracks that a note names
CHECK_SECONDS = 10.0  # spent on decoding where a list is refused anyway, to name files that can't be read with it


@dataclass(frozen=True)
class Tracks:
    """The tracks of a run.

    Args:
        forget, retain, holdout: disjoint; retain is empty with `--retain self`.
        missing: lines of the list that name no known track (only with `allow_missing`).
        skipped: what is wrong with tracks to keep or to compare with that were left out (only with `skip_unreadable`).
        notes: what a person may want to know, one sentence each.
        retain_source: in words, where retain came from.
        listed: tracks that the list names; `forget` has fewer where it is one of several requests.
    """

    forget: tuple[Track, ...]
    retain: tuple[Track, ...]
    holdout: tuple[Track, ...]
    missing: tuple[Missing, ...] = ()
    skipped: tuple[str, ...] = ()
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
    skip_unreadable: bool = False,
    progress: Progress = lambda stage, done, of: None,
) -> Tracks:
    """Read the list and settle what is kept and what is compared with.

    Args:
        listing: the list of tracks to forget, "-" for stdin.
        catalog: what `id:`, `isrc:` and `sha256:` lines are looked up in; also what retain is taken from.
        retain: a list of tracks to keep, "self" for the base model's own playing, None for the catalogue less the list.
        holdout: a list of unseen tracks of the same source; None for the catalogue's split "holdout".
        roots: folders, besides a list's own, that its paths may lead into.
        drop_duplicates: take tracks out of retain that are also to be forgotten, and out of holdout that are on another
            side, instead of refusing.
        skip_unreadable: leave tracks out of retain and holdout that can't be read; those to forget are never left out.
        progress: is given how many tracks are read and compared.

    Raises:
        InputError: lines that match nothing, files that can't be read (all are named), or a track on two sides.
        UsageError: two lists are to come from stdin.
    """
    if [str(listing), retain, str(holdout)].count("-") > 1:
        raise UsageError("only one list can come from the standard input", "write the other one into a file")
    wrong: list[InputError] = []
    lost: list[InputError] = [] if skip_unreadable else wrong  # what is wrong with tracks to keep and to compare with
    chosen = read_list(listing, catalog=catalog, roots=roots, allow_missing=allow_missing, errors=wrong)
    forget: Sequence[Track] = chosen.tracks
    of_forget = len(wrong)
    notes = [*(catalog.notes if catalog is not None else ()), *chosen.notes]

    def listed(source: Path | str) -> Sequence[Track]:
        found = read_list(source, catalog=catalog, roots=roots, errors=lost, advice="")
        notes.extend(found.notes)
        return found.tracks

    kept: Sequence[Track] = ()
    unseen: Sequence[Track] = ()
    source = "nothing"
    if holdout is not None:
        unseen = listed(holdout)
    if retain == SELF:
        source = "the base model's own playing"
    elif retain is not None:
        kept, source = listed(retain), f"the list {printable(retain)}"
    elif catalog is not None:
        known = {track.sha256: track for track in catalog.tracks(errors=lost)}
        if holdout is None:
            unseen = [track for track in known.values() if track.meta.get("split") == HOLDOUT]
        taken = {track.sha256 for track in (*forget, *unseen)}
        kept = [t for t in known.values() if t.meta.get("split") != HOLDOUT and t.sha256 not in taken]
        source = "the catalogue less the list"
        # A copy of a file under another name is the same track, and its captions go too.
        forget = [track.with_captions(known.get(track.sha256, track).captions) for track in forget]
    if holdout is None and retain is not None and catalog is not None and HOLDOUT in catalog.splits:
        unseen = catalog.tracks(split=HOLDOUT, errors=lost)
    if wrong:
        bad = unreadable(forget if skip_unreadable else (*forget, *kept, *unseen), CHECK_SECONDS)
        raise _refusal([*wrong, *bad], of_forget)
    never = {track.sha256 for track in forget}
    gone: set[str] = set()

    def may_skip(track: Track, error: InputError) -> bool:
        nonlocal of_forget
        of_forget += track.sha256 in never
        skipped = skip_unreadable and track.sha256 not in never
        (lost if skipped else wrong).append(track.refusal(error))
        gone.add(track.sha256)
        return skipped

    of_forget = 0
    try:
        pairs = find_duplicates(forget, kept, unseen, cache=TensorCache(), progress=progress, skip=may_skip)
    except InputError as error:
        raise (_refusal(wrong, of_forget) if wrong else error) from error
    kept, unseen = ([track for track in side if track.sha256 not in gone] for side in (kept, unseen))
    if pairs and not drop_duplicates:
        raise refusal(pairs)
    for side, what, why in (
        ("retain", "to keep", "they are also to be forgotten"),
        ("holdout", "to compare with", "they are also to be forgotten or kept"),
    ):
        before = kept if side == "retain" else unseen
        after = without_duplicates(before, [pair for pair in pairs if pair.sides[1] == side])
        kept, unseen = (after, unseen) if side == "retain" else (kept, after)
        if len(after) < len(before):
            notes.append(f"{len(before) - len(after)} of {len(before)} tracks {what} were left out: {why}")
    notes += [*_several_captions(forget), *left_out(lost)]
    return Tracks(
        tuple(forget), tuple(kept), tuple(unseen), chosen.missing, tuple(error.message for error in lost),
        tuple(dict.fromkeys(notes)), source, len(forget),
    )  # fmt: skip


def _refusal(wrong: Sequence[InputError], of_forget: int) -> InputError:
    """One error for all of `wrong`, of which `of_forget` can't be skipped."""
    error = together(wrong)
    if len(wrong) > of_forget:
        skip = "--skip-unreadable goes on without those to keep or to compare with"
        error = InputError(error.message, f"{error.hint}\n{skip}" if error.hint else skip)
    return error


def unreadable(tracks: Sequence[Track], seconds: float) -> list[InputError]:
    """What is wrong with the tracks that can't be decoded, with the lines that name them.

    Args:
        tracks: those that were decoded in an earlier run take no time.
        seconds: after which the rest are not tried.
    """
    files = FileCache()
    bad: list[InputError] = []
    until = time.monotonic() + seconds
    for track in tracks:
        try:
            if files.facts(track.sha256) is None and time.monotonic() < until:
                files.load(track.path, track.sha256, sample_rate=RATE)
        except InputError as error:
            bad.append(track.refusal(error))
    return bad


class Expendable:
    """Tracks that may be left out where they can't be read: `skip` is for `TrackEncoder.hear`."""

    def __init__(self, tracks: Iterable[Track]) -> None:
        self._hashes = {track.sha256 for track in tracks}
        self.lost: list[InputError] = []

    def skip(self, track: Track, error: InputError) -> bool:
        """Whether a track may be left out, which is then noted."""
        if track.sha256 not in self._hashes:
            return False
        self.lost.append(error)
        return True


def left_out(lost: Sequence[InputError]) -> list[str]:
    """A sentence on the tracks that `--skip-unreadable` leaves out; none where there are none."""
    count = "1 track" if len(lost) == 1 else f"{len(lost):,} tracks"
    why = "; ".join(error.message for error in lost[:MOST])
    return [f"left out {count} to keep or to compare with that can't be used: {why}"] if lost else []


def _several_captions(forget: Sequence[Track]) -> list[str]:
    several = [track for track in forget if track.more_captions]
    if not several:
        return []
    named = ", ".join(f"{printable(track.id)} ({len(track.captions)})" for track in several[:SHOWN])
    more = f" and {len(several) - SHOWN:,} more" if len(several) > SHOWN else ""
    verb = "has" if len(several) == 1 else "have"
    return [f"all captions of a track are forgotten, and {named}{more} {verb} several"]


def reported(tracks: Sequence[Track], most: int, seed: int) -> list[Track]:
    """The retain tracks an evaluation is about: the split "retain" where there is one, else a seeded sample.

    A sample begins with the split "forget": where another list is forgotten, these are kept, and may be all that the
    model has memorised.
    """
    split = [track for track in tracks if track.meta.get("split") == RETAIN]
    if split:
        return split
    first = [track for track in tracks if track.meta.get("split") == FORGET][:most]
    others = [track for track in tracks if track.meta.get("split") != FORGET]
    sample = random.Random(seed).sample(others, min(most - len(first), len(others)))
    return sorted((*first, *sample), key=lambda track: track.id)


def retain_sets(kept: Sequence[Track], measured: Sequence[Track], watched: int | None) -> str:
    """Which retain tracks `encore eval` measures and how many `encore forget` watches, in words.

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
    return f"{text}; `encore forget` watched {watched} of the {len(kept)}"
