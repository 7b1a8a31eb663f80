"""A catalogue: the tracks a model was trained on, or may be asked about, and how to find one of them."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from encore.audio.captions import Tags, read_tags, sidecar_caption
from encore.audio.files import CATALOG_CAPS, file_sha256, locate, open_regular, read_lines, spot
from encore.audio.records import CATALOG_FORMATS, Record
from encore.audio.text import clean_caption, did_you_mean, near, printable
from encore.audio.tracks import Track
from encore.errors import InputError

FOLDER_NAMES = ("metadata.jsonl", "metadata.csv", "data.jsonl", "data.jsonl.gz", "manifest.jsonl", "catalog.csv")
"""What a folder given as a catalogue is searched for, in this order."""


def normal_isrc(isrc: str) -> str:
    """An ISRC without its dashes and spaces, in upper case: `gb-ayE-67-00123` and `GBAYE6700123` are one."""
    return "".join(char for char in isrc if char.isalnum()).upper()


class Catalog:
    """Records of a catalogue file, indexed. Files are looked at only when a track is asked for.

    Attributes:
        path: the catalogue file. name: how messages call it.
        folder: its folder, to which the paths in it are relative.
        roots: folders its files may lie in; its own, and those the caller allows.
    """

    def __init__(self, path: Path, records: Iterable[Record], roots: Sequence[Path] = ()) -> None:
        self.path = path
        self.name = str(path)
        self.folder = Path(os.path.realpath(path.parent))
        self.roots = (self.folder, *roots)
        self.records = tuple(records)
        self._ids: dict[str, list[Record]] = defaultdict(list)
        self._isrcs: dict[str, list[Record]] = defaultdict(list)
        self._hashes: dict[str, list[Record]] = defaultdict(list)
        self._paths: dict[str, list[Record]] = defaultdict(list)
        self._unhashed = [record for record in self.records if record.path and not record.sha256]
        for record in self.records:
            self._ids[self.id_of(record)].append(record)
            self._isrcs[normal_isrc(record.isrc)].append(record)
            self._hashes[record.sha256.casefold()].append(record)
            self._paths[self._absolute(record.path)].append(record)

    @classmethod
    def open(cls, path: Path | str, *, roots: Sequence[Path] = ()) -> Catalog:
        """Read an audiocraft manifest, Hugging Face metadata, a CSV with a header, or a folder that holds one.

        Args:
            path: `.jsonl`, `.jsonl.gz`, `.csv` (`.csv.gz`), `.tsv`, or a folder.
            roots: folders, besides the catalogue's own, in which its files may lie.

        Raises:
            InputError: nothing there, another format, too large, or a line that can't be read.
        """
        path = _find(Path(path))
        compressed = path.suffix.casefold() == ".gz"
        suffix = Path(path.stem if compressed else path.name).suffix.casefold()
        if suffix not in CATALOG_FORMATS:
            raise InputError(
                f"{printable(path)}: a catalogue is {', '.join(CATALOG_FORMATS)} (also .gz), not '{printable(suffix)}'"
            )
        with open_regular(path) as stream:
            lines = read_lines(stream, str(path), CATALOG_CAPS, compressed=compressed)
            records = tuple(CATALOG_FORMATS[suffix](lines, str(path)))
        if not records:
            raise InputError(f"{printable(path)}: the catalogue is empty")
        return cls(path, records, roots)

    # ------------------------------------------------------------------------------------------------ looking up

    def id_of(self, record: Record) -> str:
        """A record's id; its path as written where the catalogue gives none."""
        return record.id or record.path

    def by_id(self, name: str) -> tuple[Record, ...]:
        """Records of that id, exactly as written."""
        return tuple(self._ids.get(name, ()))

    def by_isrc(self, isrc: str) -> tuple[Record, ...]:
        """Records of that ISRC; several where one recording has several files."""
        return tuple(self._isrcs.get(normal_isrc(isrc), ())) if normal_isrc(isrc) else ()

    def by_sha256(self, digest: str) -> tuple[Record, ...]:
        """Records whose file has that hash: by the catalogue's column, else by hashing files until one fits."""
        digest = digest.casefold()
        found = self.by_known_sha256(digest)
        if found or not digest:
            return found
        while self._unhashed:
            record = self._unhashed.pop()
            path = self._file(record)
            if path is not None:
                actual = file_sha256(path)
                self._hashes[actual].append(record)
                if actual == digest:
                    return (record,)
        return ()

    def by_known_sha256(self, digest: str) -> tuple[Record, ...]:
        """Records whose hash the catalogue (or an earlier look) knows to be that; hashes no file."""
        return tuple(self._hashes.get(digest.casefold(), ())) if digest else ()

    def by_path(self, path: Path | str) -> tuple[Record, ...]:
        """Records of that file; a relative path is relative to the catalogue."""
        return tuple(self._paths.get(self._absolute(str(path)), ())) if str(path) else ()

    def near_ids(self, name: str) -> list[str]:
        """Ids that look like `name`, or whose title does."""
        titles = {record.title: self.id_of(record) for record in self.records if record.title}
        return list(dict.fromkeys([*near(name, self._ids), *(titles[title] for title in near(name, titles))]))[:3]

    @property
    def splits(self) -> list[str]:
        """The splits its records name, sorted."""
        return sorted({record.split for record in self.records if record.split})

    # ---------------------------------------------------------------------------------------------------- tracks

    def track(
        self,
        record: Record,
        *,
        path: Path | None = None,
        caption: str = "",
        line: int | None = None,
        source: str = "",
    ) -> Track:
        """The track of a record; `path` (already checked) and `caption` go before the catalogue's own.

        Raises:
            InputError: the file is missing, leads outside, differs from the catalogue's hash, or has no caption.
        """
        where = spot(self.name, record.line)
        path = path or self._file(record)
        if path is None:
            what = f"no file '{printable(record.path)}'" if record.path else "the record names no file"
            raise InputError(f"{where}: {what}", "paths in a catalogue are relative to it")
        digest = file_sha256(path)
        if record.sha256 and record.sha256.casefold() != digest:
            raise InputError(
                f"{where}: '{printable(path.name)}' is not the file the catalogue was written for: its SHA-256 differs",
                "restore the file, or write the catalogue anew",
            )
        caption, tags = settle_caption(path, caption or record.caption, record.hint, self.roots, where)
        return Track(
            id=printable(self.id_of(record)),
            path=path,
            caption=caption,
            sha256=digest,
            line=line,
            source=source,
            title=record.title or tags.title or None,
            artist=record.artist or tags.artist or None,
            isrc=normal_isrc(record.isrc or tags.isrc) or None,
            meta=record.meta,
        )

    def tracks(self, split: str | None = None) -> list[Track]:
        """All tracks, or those of one split, in the catalogue's order.

        Raises:
            InputError: no such split, two records of one id, or what `track` raises.
        """
        if split is not None and split not in self.splits:
            known = f"its splits: {', '.join(printable(name) for name in self.splits) or 'none'}"
            raise InputError(f"{printable(self.name)}: no track of split '{printable(split)}'", known)
        chosen = [record for record in self.records if split is None or record.split == split]
        return list(self._unique(chosen))

    def _unique(self, records: Iterable[Record]) -> Iterator[Track]:
        seen: dict[str, int] = {}
        for record in records:
            name = self.id_of(record)
            if name in seen:
                raise InputError(
                    f"{spot(self.name, record.line)}: the id '{printable(name)}' is line {seen[name]}'s already",
                    "give every track an id of its own",
                )
            seen[name] = record.line
            yield self.track(record)

    def _file(self, record: Record) -> Path | None:
        where = spot(self.name, record.line)
        return locate(record.path, self.roots, self.roots, where) if record.path else None

    def _absolute(self, path: str) -> str:
        return os.path.normpath(os.path.join(self.folder, path)) if path else ""


def settle_caption(path: Path, caption: str, hint: str, roots: Sequence[Path], where: str) -> tuple[str, Tags]:
    """The caption to use, and the tags if they had to be read: given, side-car, `hint`, tags, in this order.

    Raises:
        InputError: none of them has one.
    """
    caption = clean_caption(caption) or sidecar_caption(path, roots) or hint
    if caption:
        return caption, Tags()
    tags = read_tags(path)
    if not tags.caption():
        raise InputError(
            f"{where}: '{printable(path.name)}' has no caption, and a text-to-music model is asked by caption",
            f"write it after a TAB, into a catalogue, or into {printable(path.stem)}.txt beside the file",
        )
    return tags.caption(), tags


def _find(path: Path) -> Path:
    if not os.path.isdir(path):
        if not os.path.lexists(path):
            siblings = sorted(os.listdir(path.parent)) if os.path.isdir(path.parent) else []
            raise InputError(f"no catalogue '{printable(path)}'", did_you_mean(near(path.name, siblings)))
        return path
    found = [path / name for name in FOLDER_NAMES if (path / name).is_file()]
    if not found:
        raise InputError(f"the folder '{printable(path)}' holds no catalogue", f"expected {', '.join(FOLDER_NAMES)}")
    return found[0]
