"""A catalogue of tracks, for example those a model was trained on, with look-up by id, ISRC, hash and path."""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from encore.data.artists import crediting, near_artists
from encore.data.captions import distinct, resolve_captions
from encore.data.file_info import FileCache
from encore.data.manifest import CATALOG_FORMATS, Record, other_format
from encore.data.open_files import CATALOG_CAPS, Caps, locate, open_regular, read_lines, spot
from encore.data.path_variants import why_missing
from encore.data.tracks import Track
from encore.errors import InputError, together
from encore.text import did_you_mean, near, printable

FOLDER_NAMES = ("metadata.jsonl", "metadata.csv", "data.jsonl", "data.jsonl.gz", "manifest.jsonl", "catalog.csv")
"""File names that a folder given as a catalogue is searched for, in this order."""


ONE_SPLIT = "a file is in one split: take it out of the other"


def normalised_isrc(isrc: str) -> str:
    """An ISRC without dashes and spaces, in upper case: `gb-ayE-67-00123` becomes `GBAYE6700123`."""
    return "".join(char for char in isrc if char.isalnum()).upper()


class Catalog:
    """Indexed records of a catalogue file. Audio files are opened only when a track is requested.

    Attributes:
        path: the catalogue file.
        name: its name in messages.
        folder: its folder, to which the paths in it are relative.
        roots: folders its files may be in: `folder`, and those the caller allows.
        notes: one sentence each for the user, such as an encoding other than UTF-8.
    """

    def __init__(
        self, path: Path, records: Iterable[Record], roots: Sequence[Path] = (), notes: Sequence[str] = ()
    ) -> None:
        self.path = path
        self.name = str(path)
        self.folder = Path(os.path.realpath(path.parent))
        self.roots = (self.folder, *roots)
        self.records = tuple(records)
        self.notes = tuple(notes)
        self._ids: dict[str, list[Record]] = defaultdict(list)
        self._isrcs: dict[str, list[Record]] = defaultdict(list)
        self._hashes: dict[str, list[Record]] = defaultdict(list)
        self._unhashed = [record for record in self.records if record.path and not record.sha256]
        for record in self.records:
            self._ids[self.id_of(record)].append(record)
            self._isrcs[normalised_isrc(record.isrc)].append(record)
            self._hashes[record.sha256.casefold()].append(record)

    @classmethod
    def open(cls, path: Path | str, *, roots: Sequence[Path] = ()) -> Catalog:
        """Read an audiocraft manifest, Hugging Face metadata, a CSV with a header, or a folder that holds one.

        Args:
            path: `.jsonl`, `.jsonl.gz`, `.csv` (`.csv.gz`), `.tsv`, or a folder.
            roots: further folders that its files may be in.

        Raises:
            InputError: it is missing, of another format, too large, or has a line that can't be read.
        """
        path = find_catalog(Path(path))
        notes: list[str] = []
        records = tuple(read_records(path, CATALOG_CAPS, notes))
        if not records:
            raise InputError(f"{printable(path)}: the catalogue is empty")
        return cls(path, records, roots, notes)

    # ------------------------------------------------------------------------------------------------ looking up

    def id_of(self, record: Record) -> str:
        """A record's id; its path as written where the catalogue gives none."""
        return record.id or record.path

    def by_id(self, name: str) -> tuple[Record, ...]:
        """Records with that id, exactly as written."""
        return tuple(self._ids.get(name, ()))

    def by_isrc(self, isrc: str) -> tuple[Record, ...]:
        """Records with that ISRC; several where one recording has several files."""
        return tuple(self._isrcs.get(normalised_isrc(isrc), ())) if normalised_isrc(isrc) else ()

    def by_artist(self, name: str) -> tuple[Record, ...]:
        """Records that credit an artist; see `encore.data.artists.crediting`."""
        fields = crediting(name, (record.artist for record in self.records))
        return tuple(record for record in self.records if record.artist in fields)

    def near_artists(self, name: str) -> list[str]:
        """Artists with a similar name."""
        return near_artists(name, (record.artist for record in self.records))

    def by_sha256(self, digest: str) -> tuple[Record, ...]:
        """Records whose file has that hash: by the catalogue's column, else by hashing files until one matches."""
        digest = digest.casefold()
        records = self.by_known_sha256(digest)
        if records or not digest:
            return records
        while self._unhashed:
            record = self._unhashed.pop()
            with contextlib.suppress(InputError):  # an unusable file is no match
                path = self._file(record)
                if path is None:
                    continue
                actual = FileCache().sha256(path)
                self._hashes[actual].append(record)
                if actual == digest:
                    return (record,)
        return ()

    def by_known_sha256(self, digest: str) -> tuple[Record, ...]:
        """Records with that hash by the catalogue, or by a file hashed before; hashes no file."""
        return tuple(self._hashes.get(digest.casefold(), ())) if digest else ()

    def by_path(self, path: Path | str) -> tuple[Record, ...]:
        """Records of a file, also with other spellings of its path (links, Unicode forms, case).

        A relative path is relative to the catalogue.
        """
        return tuple(self._files.get(_identity(self._absolute(str(path))), ())) if str(path) else ()

    def records_of(self, path: Path, digest: str) -> tuple[Record, ...]:
        """All records of a file, by its path and by its hash."""
        same = {record.line: record for record in (*self.by_path(path), *self.by_known_sha256(digest))}
        return tuple(same[line] for line in sorted(same))

    def sha256_of(self, record: Record) -> str:
        """The hash of a record's file, by the catalogue where it has it; empty where there is no such file."""
        if record.sha256:
            return record.sha256.casefold()
        with contextlib.suppress(InputError):
            path = self._file(record)
            return FileCache().sha256(path) if path else ""
        return ""

    def same_recording(self, records: Sequence[Record]) -> bool:
        """Whether all records are of one file."""
        return len({self._record_identity(record) for record in records}) == 1

    @cached_property
    def _files(self) -> dict[Hashable, list[Record]]:
        files: dict[Hashable, list[Record]] = defaultdict(list)
        for record in self.records:
            if record.path:
                files[self._record_identity(record)].append(record)
        return files

    def _record_identity(self, record: Record) -> Hashable:
        path = self._absolute(record.path)
        identity = _identity(path)
        if identity == path:  # not there as it is spelt
            with contextlib.suppress(InputError):
                identity = _identity(str(self._file(record) or path))
        return identity

    def near_ids(self, name: str) -> list[str]:
        """Ids similar to `name`, and ids of tracks with a similar title."""
        titles = {record.title: self.id_of(record) for record in self.records if record.title}
        return list(dict.fromkeys([*near(name, self._ids), *(titles[title] for title in near(name, titles))]))[:3]

    @property
    def splits(self) -> list[str]:
        """The splits its records name, in lower case, sorted."""
        return sorted({record.split for record in self.records if record.split})

    # ---------------------------------------------------------------------------------------------------- tracks

    def track(
        self,
        record: Record,
        *,
        path: Path | None = None,
        captions: Sequence[str] = (),
        line: int | None = None,
        source: str = "",
    ) -> Track:
        """The track of a record, with the captions of all records of its file.

        Args:
            record: gives id and metadata.
            path: its file, checked already; None to find it.
            captions: from a list; they precede the catalogue's.
            line: of the list.
            source: text of that line.

        Raises:
            InputError: the file is missing, outside the allowed folders, differs from the catalogue's hash, has no
                caption, or is in two splits.
        """
        where = spot(self.name, record.line)
        path = path or self._file(record)
        if path is None:
            reason = f"no file '{printable(record.path)}'" if record.path else "the record names no file"
            hint = why_missing(record.path, self.folder, self.roots)
            raise InputError(f"{where}: {reason}", hint or "paths in a catalogue are relative to it, or to a --root")
        digest = FileCache().sha256(path)
        records = (record, *self.records_of(path, digest))
        if any(entry.sha256 and entry.sha256.casefold() != digest for entry in records):
            raise InputError(
                f"{where}: '{printable(path.name)}' is not the file the catalogue was written for: its SHA-256 differs",
                "restore the file, or write a new catalogue",
            )
        splits = {entry.split: entry.line for entry in records[1:] if entry.split}
        if len(splits) > 1:
            named = " and ".join(f"'{printable(split)}' (line {at})" for split, at in splits.items())
            raise InputError(f"{where}: '{printable(path.name)}' is in the splits {named}", ONE_SPLIT)
        listed = distinct(captions)
        catalogued = distinct(caption for entry in records for caption in entry.captions)
        origin = "list and catalogue" if listed and catalogued else "list" if listed else "catalogue"
        hint = next((entry.hint for entry in records if entry.hint), "")
        resolved = resolve_captions(path, (*listed, *catalogued), origin, hint, self.roots, where)
        return Track(
            id=printable(self.id_of(record)),
            path=path,
            caption=resolved.texts[0],
            sha256=digest,
            line=line,
            source=source,
            title=record.title or resolved.tags.title or None,
            artist=record.artist or resolved.tags.artist or None,
            isrc=normalised_isrc(record.isrc or resolved.tags.isrc) or None,
            meta={**record.meta, **({"split": next(iter(splits))} if splits else {})},
            more_captions=resolved.texts[1:],
            caption_source=resolved.source,
            place=where,
        )

    def check_split(self, split: str) -> None:
        """Check that there is such a split.

        Raises:
            InputError: there is none.
        """
        if split.casefold() not in self.splits:
            names = f"its splits: {', '.join(printable(name) for name in self.splits) or 'none'}"
            raise InputError(f"{printable(self.name)}: no track of split '{printable(split.casefold())}'", names)

    def tracks(self, split: str | None = None, *, errors: list[InputError] | None = None) -> Sequence[Track]:
        """All tracks, or those of one split, in the catalogue's order; records of one file are one track.

        Args:
            split: its name, in any case; None for all.
            errors: collects errors of single records, whose tracks are left out; None to raise them.

        Raises:
            InputError: there is no such split, two files share an id, or as in `track`.
        """
        split = None if split is None else split.casefold()
        if split is not None:
            self.check_split(split)
        tracks: dict[str, Track] = {}  # by hash of the file
        lines: dict[str, int] = {}  # by id
        done: set[int] = set()
        failures: list[InputError] = []
        for record in self.records:
            if record.line in done or (split is not None and record.split != split):
                continue
            try:
                track = self.track(record)
                done |= {entry.line for entry in self.records_of(track.path, track.sha256)}
                copy = tracks.get(track.sha256)
                if copy is not None and len({copy.meta.get("split"), track.meta.get("split")} - {None}) > 1:
                    raise InputError(f"{track.place}: the same file as {copy.place}, in another split", ONE_SPLIT)
                if copy is None and lines.setdefault(self.id_of(record), record.line) != record.line:
                    raise InputError(
                        f"{spot(self.name, record.line)}: the id '{printable(self.id_of(record))}' is already that of "
                        f"line {lines[self.id_of(record)]}",
                        "give every track another id",
                    )
                tracks[track.sha256] = track if copy is None else copy.with_captions(track.captions)
            except InputError as error:
                failures.append(error)
        if failures and errors is None:
            raise together(failures)
        if errors is not None:
            errors += failures
        return list(tracks.values())

    def _file(self, record: Record) -> Path | None:
        where = spot(self.name, record.line)
        return locate(record.path, self.roots, self.roots, where) if record.path else None

    def _absolute(self, path: str) -> str:
        return os.path.normpath(os.path.join(self.folder, path)) if path else ""


def _identity(path: str) -> Hashable:
    """A key that is equal for all spellings of a file's path; the path itself where there is no file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return path
    # Some network and user-space file systems have no inode numbers.
    return (status.st_dev, status.st_ino) if status.st_ino else os.path.realpath(path)


def read_records(path: Path, caps: Caps, notes: list[str]) -> Iterator[Record]:
    """The records of a catalogue file, one after another.

    Args:
        path: the file, see `find_catalog`.
        caps: its size limits.
        notes: receives a sentence where the text is not UTF-8.

    Raises:
        InputError: it is of another format, too large, or has a line that can't be read.
    """
    compressed = path.suffix.casefold() == ".gz"
    suffix = Path(path.stem if compressed else path.name).suffix.casefold()
    if suffix not in CATALOG_FORMATS:
        raise InputError(
            f"{printable(path)}: a catalogue is {', '.join(CATALOG_FORMATS)} (also .gz), not '{printable(suffix)}'",
            other_format(suffix),
        )
    with open_regular(path) as stream:
        lines = read_lines(stream, str(path), caps, compressed=compressed, notes=notes)
        yield from CATALOG_FORMATS[suffix](lines, str(path))


def find_catalog(path: Path) -> Path:
    """The catalogue file at a path, or in the folder there.

    Raises:
        InputError: there is none.
    """
    if not os.path.isdir(path):
        if not os.path.lexists(path):
            siblings = sorted(os.listdir(path.parent)) if os.path.isdir(path.parent) else []
            raise InputError(f"no catalogue '{printable(path)}'", did_you_mean(near(path.name, siblings)))
        return path
    files = [path / name for name in FOLDER_NAMES if (path / name).is_file()]
    if not files:
        raise InputError(f"the folder '{printable(path)}' holds no catalogue", f"expected {', '.join(FOLDER_NAMES)}")
    return files[0]
