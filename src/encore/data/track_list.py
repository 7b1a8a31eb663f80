"""`--tracks LIST`: which tracks a list names, each line resolved to a file before anything is done."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

from encore.data.artists import normalised
from encore.data.captions import resolve_captions
from encore.data.catalog import Catalog
from encore.data.file_info import FileCache
from encore.data.manifest import KINDS, LIST_FORMATS, Record, other_format, text_records
from encore.data.open_files import LIST_CAPS, locate, open_regular, read_lines, spot
from encore.data.path_variants import why_missing
from encore.data.shards import ShardCatalog
from encore.data.tracks import Missing, Selection, Track, distinct
from encore.errors import InputError, together
from encore.text import counted, did_you_mean, near, printable

SUGGESTIONS = 5
"""Similar names are searched for at most this many lines of a list."""


class _Unmatched(Exception):
    """A line that matches no track."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def read_list(
    source: Path | str | Literal["-"],
    *,
    catalog: Catalog | None = None,
    roots: Sequence[Path] = (),
    allow_missing: bool = False,
    errors: list[InputError] | None = None,
    advice: str = "--allow-missing skips it",
    stdin: BinaryIO | None = None,
) -> Selection:
    """Read a list of tracks and find all of them.

    The list is plain text (see `manifest.text_records`), `.m3u`, `.csv`, `.tsv` or `.jsonl`; encodings are those of
    `open_files.read_lines`. A path is relative to the list's folder (standard input: the working folder), then to each
    of `roots`, then to the catalogue's folder, and must stay inside these. Captions come from the list and the
    catalogue, else from a side-car file, else from tags.

    Args:
        source: the list's path; `-` reads plain text from standard input.
        catalog: resolves `id:`, `isrc:` and `sha256:`, and supplies captions of its files.
        roots: further folders that listed files may be in.
        allow_missing: record lines without a track in `Selection.missing` instead of raising.
        errors: collects errors of single lines, whose tracks are left out; None to raise them.
        advice: part of the hint for missing tracks.
        stdin: read in place of the process's standard input.

    Raises:
        InputError: lines that can't be read or matched, paths that lead outside or to no regular file, tracks without
            a caption, or a list without tracks. The message names the list and all such lines.
    """
    notes: list[str] = []
    if str(source) == "-":
        folder, name = Path.cwd(), "standard input"
        records = list(text_records(read_lines(stdin or sys.stdin.buffer, name, LIST_CAPS, notes=notes), name))
    else:
        path = Path(source)
        folder, name = path.parent, str(path)
        if hint := other_format(path.suffix):
            raise InputError(f"{printable(name)}: a list is text, {', '.join(LIST_FORMATS)}, not '{path.suffix}'", hint)
        reader = LIST_FORMATS.get(path.suffix.casefold(), text_records)
        with open_regular(path) as stream:
            records = list(reader(read_lines(stream, name, LIST_CAPS, notes=notes), name))
    if not records:
        raise InputError(f"{printable(name)} names no track", "write one path or id: per line")
    resolver = _Resolver(name, folder, catalog, roots, notes)
    return resolver.resolve(records, allow_missing, errors, advice)


class _Resolver:
    """Finds the tracks of one list's records."""

    def __init__(
        self, name: str, folder: Path, catalog: Catalog | None, roots: Sequence[Path], notes: Sequence[str]
    ) -> None:
        self.name = name
        self.folder = Path(os.path.realpath(folder))
        self.catalog = catalog
        self.roots = (self.folder, *roots, *(catalog.roots if catalog else ()))
        self.notes = list(notes)
        self.suggested = 0

    def resolve(
        self, records: Sequence[Record], allow_missing: bool, errors: list[InputError] | None, advice: str
    ) -> Selection:
        tracks: dict[str, Track] = {}  # by file hash: a file counts once, however it is named
        missing: list[Missing] = []
        failures: list[InputError] = []
        for record in records:
            try:
                matches = list(self._tracks(record))
                for track in matches:
                    self._check_names(record, track)
            except _Unmatched as unmatched:
                missing.append(Missing(record.line, record.source, unmatched.reason))
                if not allow_missing:
                    hint = "; ".join(part for part in (unmatched.hint, advice) if part)
                    failures.append(InputError(f"{spot(self.name, record.line)}: {unmatched.reason}", hint))
                continue
            except InputError as error:
                failures.append(error)
                continue
            for track in matches:
                self._add(track, record, tracks)
        if failures and errors is None:
            raise together(failures)
        if not tracks and not failures:
            hint = missing[0].reason if missing else ""
            raise InputError(f"{printable(self.name)}: none of its {len(records)} lines matches a track", hint)
        if errors is not None:
            errors += failures
        return Selection(tuple(distinct(tracks.values())), tuple(missing) if allow_missing else (), tuple(self.notes))

    def _add(self, track: Track, record: Record, tracks: dict[str, Track]) -> None:
        first = tracks.setdefault(track.sha256, track)
        if first is track:
            return
        tracks[track.sha256] = merged = first.with_captions(track.captions)
        with_both = ", with the captions of both" if merged.captions != first.captions else ""
        if first.line != record.line or with_both:
            line = spot(self.name, record.line)
            self.notes.append(f"{line} is the track of line {first.line}: used once{with_both}")

    def _tracks(self, record: Record) -> Iterator[Track]:
        if record.path:
            yield self._by_path(record)
            return
        kinds = ("id", "sha256", "isrc", "artist")  # those of one file before those of several
        kind, value = next(((kind, text) for kind in kinds if (text := getattr(record, kind))), ("", ""))
        if not kind:
            item = record.source.partition("\t")[0].strip()
            raise InputError(f"{spot(self.name, record.line)}: '{printable(item)}' has no value")
        if self.catalog is None:
            raise InputError(
                f"{spot(self.name, record.line)}: '{kind}:{printable(value)}' needs a catalogue",
                "give one with --catalog",
            )
        entries = getattr(self.catalog, f"by_{kind}")(value)
        if not entries:
            similar = {"id": self.catalog.near_ids, "artist": self.catalog.near_artists}.get(kind)
            raise _Unmatched(
                f"no track of {printable(self.catalog.name)} has {kind} '{printable(value)}'",
                self._suggestion(lambda: similar(value) if similar else []),
            )
        if kind == "id" and not self.catalog.same_recording(entries):
            lines = " and ".join(str(entry.line) for entry in entries[:2])
            raise InputError(
                f"{spot(self.name, record.line)}: the id '{printable(value)}' stands for lines {lines} of "
                f"{printable(self.catalog.name)}",
                "name the track by its path or sha256:",
            )
        if kind == "artist":
            self._note_artist(record, entries)
        # An ISRC names a recording, which may have several files.
        for entry in entries if kind in ("isrc", "artist") else entries[:1]:
            yield self._catalogued(entry, record)

    def _check_names(self, record: Record, track: Track) -> None:
        """Check that all keys of a row name its track: else the track of another key would silently be left out."""
        kinds = ("path", "id", "sha256", "isrc")
        given = [(kind, value) for kind in kinds if (value := getattr(record, kind))]
        wrong = [name for name in given if not self._is_named(track, *name)]
        if wrong or (wrong := [name for name in record.others if self._is_another(track, *name)]):
            names = (f"{kind} '{printable(value)}'" for kind, value in (given[0], wrong[0]))
            raise InputError(
                f"{spot(self.name, record.line)}: {' and '.join(names)} are not the same track",
                "correct or remove one of them; two tracks need two rows",
            )

    def _is_another(self, track: Track, kind: str, value: str) -> bool:
        """Whether a further column names another track; it may hold anything (`location`: a city), or other ids."""
        if kind == "path":
            with contextlib.suppress(InputError):
                path = locate(value, self.roots, self.roots, "", exactly=True)
                return path is not None and FileCache().sha256(path) != track.sha256
            return False
        return self.catalog is not None and bool(self.catalog.by_id(value)) and not self._is_named(track, kind, value)

    def _is_named(self, track: Track, kind: str, value: str) -> bool:
        """Whether a key of a row is a track's; an id or ISRC also where the catalogue gives the track none."""
        if kind == "sha256":
            return value.casefold() == track.sha256
        if kind == "path" or self.catalog is None:
            return True
        named = getattr(self.catalog, f"by_{kind}")(value)
        if named:
            return any(self.catalog.sha256_of(entry) == track.sha256 for entry in named)
        entries = self.catalog.records_of(track.path, track.sha256)
        return all((entry.isrc if kind == "isrc" else entry.id) in ("", entry.path) for entry in entries)

    def _note_artist(self, record: Record, entries: Sequence[Record]) -> None:
        """How many tracks an artist has, and under which names if these differ from the one in the list."""
        assert self.catalog is not None
        names = sorted({entry.artist for entry in entries if normalised(entry.artist) != normalised(record.artist)})
        listed = ", ".join(f"'{printable(name)}'" for name in names[:SUGGESTIONS]) + (
            ", …" if names[SUGGESTIONS:] else ""
        )
        self.notes.append(
            f"{spot(self.name, record.line)}: artist:{printable(record.artist)} is {counted(len(entries), 'track')}"
            + (f", credited as {listed}" if names else "")
        )

    def _catalogued(self, entry: Record, record: Record, path: Path | None = None) -> Track:
        assert self.catalog is not None
        place = spot(self.name, record.line)
        try:
            track = self.catalog.track(
                entry, path=path, captions=record.captions, line=record.line, source=record.source
            )
        except InputError as error:
            raise InputError(f"{place}: {error.message}", error.hint) from error
        return dataclasses.replace(track, place=place)

    def _by_path(self, record: Record) -> Track:
        where = spot(self.name, record.line)
        if isinstance(self.catalog, ShardCatalog):  # its audio need not be there, and is not read
            entries = self.catalog.by_path(record.path) or self.catalog.by_path(self.folder / record.path)
            if entries:
                return self._catalogued(entries[0], record)
        path = locate(record.path, self.roots, self.roots, where)
        if path is None:
            return self._by_catalog_path(record)
        digest = FileCache().sha256(path)
        if self.catalog is not None:
            entries = self.catalog.records_of(path, digest)
            if entries:
                return self._catalogued(entries[0], record, path)
        captions = resolve_captions(path, record.captions, "list", record.hint, self.roots, where)
        return Track(
            id=self._id(record, path),
            path=path,
            caption=captions.texts[0],
            sha256=digest,
            line=record.line,
            source=record.source,
            title=record.title or captions.tags.title or None,
            artist=record.artist or captions.tags.artist or None,
            isrc=record.isrc or captions.tags.isrc or None,
            meta=record.meta,
            more_captions=captions.texts[1:],
            caption_source=captions.source,
            place=where,
        )

    def _by_catalog_path(self, record: Record) -> Track:
        entries = self.catalog.by_path(record.path) if self.catalog else ()
        if entries:
            return self._catalogued(entries[0], record)

        def names() -> list[str]:
            beside = near(os.path.basename(record.path), self._siblings(record.path))
            ids = self.catalog.near_ids(record.path) if self.catalog else []
            return [*beside, *(f"id:{name}" for name in ids)][:3]

        hint = why_missing(record.path, self.folder, self.roots) or self._miswritten(record) or self._suggestion(names)
        raise _Unmatched(f"no file '{printable(record.path)}'", hint)

    def _miswritten(self, record: Record) -> str:
        """A hint for a path that holds what belongs elsewhere; may be empty."""
        kind = record.path.partition(":")[0].strip().casefold()
        if kind in KINDS and ":" in record.path:
            return f"{kind}: is of lists of plain text; " + (
                f"write the {kind} into a column {kind}" if kind != "artist" else "write one with artist:NAME"
            )
        for mark in itertools.islice(re.finditer(r"\s+|[,;|]", record.path), SUGGESTIONS):
            path = record.path[: mark.start()]
            with contextlib.suppress(InputError):
                if locate(path, self.roots, self.roots, "", exactly=True):
                    table = "" if mark[0].isspace() else ", and a table is a .csv file with a header"
                    return f"'{printable(path)}' is a file: a caption follows it after a TAB{table}"
        return "wildcards are not expanded: write one path per line" if "*" in record.path else ""

    def _suggestion(self, names: Callable[[], list[str]]) -> str:
        """`did you mean …?` for the first few lines only, as the search for similar names is slow."""
        self.suggested += 1
        return did_you_mean(names()) if self.suggested <= SUGGESTIONS else ""

    def _siblings(self, raw: str) -> list[str]:
        """Names in the folder of a missing file, if that folder is inside the list's."""
        folder = os.path.realpath(os.path.join(self.folder, os.path.dirname(raw)))
        try:
            names = os.listdir(folder) if Path(folder).is_relative_to(self.folder) else []
            return sorted({*names} - {os.path.basename(raw)})  # the name itself may be a loop of links
        except (OSError, ValueError):
            return []

    def _id(self, record: Record, path: Path) -> str:
        if record.id:
            return printable(record.id)
        below = path.relative_to(self.folder) if path.is_relative_to(self.folder) else Path(path.name)
        return printable(below.as_posix())
