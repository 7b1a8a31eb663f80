"""A catalogue that was encoded in advance: the codes of its tracks in shards, and an index of them.

A folder that `encore encode` writes holds

- `shard-00000.safetensors`, …: `codes` [F, K], the frames of all windows of `SHARD_TRACKS` tracks one after another
  (int16; float32 latents without tokens), and `text` [L, D], the encodings of their captions likewise;
- `index.sqlite3`: what the codes depend on, the tracks (ids, hashes, captions, windows), and where each is in a shard.

A track is a file. Rows of the catalogue that repeat a file are in a table of their own (`copies`), so that lists can
name them too. A clip is read by its place when it is used, so memory does not grow with the catalogue. No audio is
read, except that a file which was changed since is hashed where a list names it.
"""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from encore.api import Backend
from encore.data.artists import crediting, near_artists
from encore.data.catalog import Catalog, normalised_isrc
from encore.data.file_info import Decoding, FileCache
from encore.data.manifest import Record
from encore.data.tracks import Track
from encore.errors import InputError
from encore.hashing import module_sha256
from encore.text import near, printable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INDEX = "index.sqlite3"
SHARD_TRACKS = 512
FORMAT = 2
"""Raised when the layout of index or shards changes."""

TEXTS = 1024  # text encodings in memory at a time
BOTH = "list and catalogue"  # origin of captions
ARTIST = "json_extract(details, '$.artist')"  # of a track, in the index
NEAR = 2_000  # ids that a misspelt one is compared with
SOME = 500  # values of one SQL statement
DTYPES = {"I16": "int16", "F32": "float32"}  # safetensors' names -> torch's
ROWS = (  # rows of the catalogue: tracks, then those that repeat a track's file, whose numbers are below 0
    f"SELECT * FROM (SELECT number, id, file, isrc, sha256, {ARTIST} FROM tracks WHERE {{where}} "
    f"UNION ALL SELECT -number, id, file, isrc, sha256, {ARTIST} FROM copies WHERE {{where}}) "
    "ORDER BY number < 0, ABS(number)"
)
AGAIN = "delete the file that is damaged, and write it again: encore encode --catalog … --out …"

Numbers = np.ndarray[Any, np.dtype[np.int64]]


def codec_identity(backend: Backend) -> dict[str, str]:
    """What the codes and text encodings of a backend depend on, by name: weights, settings and shapes."""
    parts = {name: module_sha256(part) for name, part in sorted(backend.frozen().items())}
    shape = (backend.sample_rate, backend.channels, backend.frame_rate, backend.codebooks, backend.max_frames)
    return {**parts, "settings": backend.settings, "shape": " ".join(map(str, shape)), "backend": backend.name}


FileState = tuple[int, int]
"""Size and modification time (ns) of a file."""


def file_state(path: Path | str) -> FileState | None:
    """The state of a file; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def read_state(text: str) -> FileState | None:
    """A state from the index."""
    state = json.loads(text)
    return None if state is None else (int(state[0]), int(state[1]))


def is_replaced(path: Path | str, sha256: str, state: FileState | None) -> bool:
    """Whether a file is there, and is not the one that was encoded.

    Args:
        path: of the file.
        sha256: of the file that was encoded.
        state: of the file that was encoded; the file is hashed only if its state differs. None: its hash is in the
            catalogue, which then decides.
    """
    if state is None or file_state(path) in (None, state):
        return False
    try:
        return FileCache().sha256(path) != sha256
    except InputError:  # it can't be read
        return False


def shard_path(folder: Path, number: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{number:05d}.safetensors"


@dataclass(frozen=True)
class ShardTrack:
    """A row of the index.

    Args:
        track: the track.
        decoding: the result of decoding its file, when it was encoded.
        shard: number of its shard.
        start: first row of its codes.
        windows: frames and CRC-32 of each window.
        state: of its file when it was encoded, see `is_replaced`.
    """

    track: Track
    decoding: Decoding
    shard: int
    start: int
    windows: tuple[tuple[int, int], ...]
    state: FileState | None = None


class ShardIndex:
    """The index of a folder of shards, opened for reading; see `open_shards`.

    Args:
        folder: the folder.

    Attributes:
        about: what the index says of itself: the model, its codec, the catalogue, `content` (hash of all shards).
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._connection: tuple[int, sqlite3.Connection] | None = None
        self._checked: set[str] = set()
        try:
            self.about: dict[str, Any] = {
                key: json.loads(text) for key, text in self.rows("SELECT key, value FROM about")
            }
        except ValueError as error:
            raise self.damaged(error) from error
        if self.about.get("format") != FORMAT:
            raise InputError(f"{printable(folder)} was written by another version of Encore", AGAIN)
        if not self.about.get("content"):
            raise InputError(
                f"{printable(folder)} is not complete: `encore encode` was stopped, or tracks could not be read",
                "run the same `encore encode` command again: it continues where it was stopped",
            )

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a query."""
        if self._connection is None or self._connection[0] != os.getpid():  # SQLite forbids use after a fork
            uri = f"{(self.folder.resolve() / INDEX).as_uri()}?mode=ro"
            try:
                self._connection = os.getpid(), sqlite3.connect(uri, uri=True, check_same_thread=False)
            except sqlite3.Error as error:
                raise self.damaged(error) from error
        try:
            return self._connection[1].execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self.damaged(error) from error

    def damaged(self, error: Exception | str) -> InputError:
        """The error for a file that is not as it was written."""
        return InputError(f"the shards in {printable(self.folder)} can't be read: {error}", AGAIN)

    def check_codec(self, backend: Backend) -> None:
        """Check that the codes are those of a backend's codec and text encoder.

        Raises:
            InputError: they are of another one.
        """
        identity = codec_identity(backend)
        if json.dumps(identity) in self._checked:
            return
        written = self.about.get("codec", {})
        changed = [name for name in {**written, **identity} if written.get(name) != identity.get(name)]
        if changed:
            named = ", ".join(name.replace("_", " ") for name in changed)
            raise InputError(
                f"the codes in {printable(self.folder)} are of another model, {printable(self.about.get('model'))}: "
                f"it differs in {named}",
                "encode the catalogue for this model: encore encode --catalog … --model … --out …",
            )
        self._checked.add(json.dumps(identity))

    # -------------------------------------------------------------------------------------------------------- tracks

    def numbers(self, where: str = "1", values: Sequence[Any] = ()) -> Numbers:
        """Numbers of tracks, in order, that an SQL condition holds for."""
        rows = self.rows(f"SELECT number FROM tracks WHERE {where} ORDER BY number", values)
        return np.fromiter((number for (number,) in rows), np.int64, len(rows))

    def having(self, column: str, values: Iterable[str]) -> Numbers:
        """Numbers of the tracks that have one of these values in a column, in order."""
        each = list(dict.fromkeys(values))
        found = [
            self.numbers(f"{column} IN ({','.join('?' * len(part))})", part)
            for part in (each[i : i + SOME] for i in range(0, len(each), SOME))
        ]
        return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)

    def entry(self, number: int) -> ShardTrack:
        """A track by its number, or by that of a row that repeats its file: with the id, path and captions of that row.

        Raises:
            InputError: the index is damaged.
        """
        row, source = ("copy", "copies AS copy JOIN tracks USING (sha256)") if number < 0 else ("tracks", "tracks")
        rows = self.rows(
            f"SELECT {row}.id, {row}.isrc, sha256, {row}.path, {row}.state, {row}.details, tracks.shard, start, "
            f"windows, tracks.captions FROM {source} WHERE {row}.number = ?",
            (abs(number),),
        )
        if len(rows) != 1:
            raise self.damaged(f"an entry is missing in {INDEX}")
        ((name, isrc, digest, path, state, details, shard, start, windows, captions),) = rows
        try:
            more = json.loads(details)
            texts = json.loads(captions)
            if number < 0:
                texts = list(dict.fromkeys([*more["captions"], *texts]))
            track = Track(
                name, Path(path), texts[0], digest, title=more["title"], artist=more["artist"], isrc=isrc,
                meta=more["meta"], more_captions=tuple(texts[1:]), caption_source=more["caption_source"],
                place=more["place"], shards=self.folder,
            )  # fmt: skip
            clips = tuple((frames, crc) for frames, crc in json.loads(windows))
            return ShardTrack(track, Decoding(**more["decoding"]), shard, start, clips, read_state(state))
        except (ValueError, LookupError, TypeError) as error:
            raise self.damaged(f"the entry of {printable(name)} in {INDEX} is damaged") from error

    def of_file(self, sha256: str) -> ShardTrack | None:
        """The track of the file with that hash; None where there is none."""
        rows = self.rows("SELECT number FROM tracks WHERE sha256 = ?", (sha256,))
        return self.entry(rows[0][0]) if rows else None

    def catalogued(self, where: str, *values: str) -> list[tuple[int, str, str, str | None, str, str | None]]:
        """Rows of the catalogue that an SQL condition holds for: number, id, path as written, ISRC, hash, artist."""
        return self.rows(ROWS.format(where=where), (*values, *values))

    # ------------------------------------------------------------------------------------------------ codes and texts

    def codes(self, entry: ShardTrack, window: int) -> Tensor:
        """The codes of one window [K, T], int64 (latents: float32).

        Raises:
            InputError: the shard is missing or damaged.
        """
        start = entry.start + sum(frames for frames, _ in entry.windows[:window])
        rows = self._read(entry.shard, "codes", start, *entry.windows[window])
        return (rows if rows.is_floating_point() else rows.long()).T.contiguous()

    def text(self, caption: str) -> Tensor | None:
        """The encoding of a caption [L, D]; None where the shards have none.

        Raises:
            InputError: the shard is missing or damaged.
        """
        places = self.rows("SELECT shard, start, length, crc FROM captions WHERE caption = ? LIMIT 1", (caption,))
        return self._read(places[0][0], "text", *places[0][1:]) if places else None

    def has_text(self, caption: str) -> bool:
        """Whether the encoding of a caption is in the shards."""
        return bool(self.rows("SELECT 1 FROM captions WHERE caption = ? LIMIT 1", (caption,)))

    def _read(self, shard: int, name: str, start: int, count: int, crc: int) -> Tensor:
        """`count` rows of a shard's tensor from `start` on."""
        path = shard_path(self.folder, shard)
        import torch

        try:
            with path.open("rb", buffering=0) as stream:
                head = os.pread(stream.fileno(), 4096, 0)  # of two tensors it takes some 200 bytes
                size = int.from_bytes(head[:8], "little")
                layout = json.loads(head[8 : 8 + size])[name]
                dtype, (_, width) = getattr(torch, DTYPES[layout["dtype"]]), layout["shape"]
                row = width * dtype.itemsize
                place = 8 + size + layout["data_offsets"][0] + start * row
                complete = 0 < place <= os.fstat(stream.fileno()).st_size - count * row
                data = os.pread(stream.fileno(), count * row, place) if complete else b""
        except OSError as error:
            raise self.damaged(f"{path.name}: {error.strerror or error}") from error
        except (ValueError, LookupError, TypeError) as error:
            raise self.damaged(f"{path.name} is not a shard: {error}") from error
        if len(data) != count * row or zlib.crc32(data) != crc:
            raise self.damaged(f"{path.name} is not as it was written")
        return torch.frombuffer(bytearray(data), dtype=dtype).view(count, width)


@functools.lru_cache(maxsize=8)
def _opened(folder: Path, _written: int) -> ShardIndex:
    return ShardIndex(folder)


def open_shards(folder: Path) -> ShardIndex:
    """Open a folder that `encore encode` wrote; one index is shared by all who open the same folder.

    Raises:
        InputError: it holds no shards, is not complete, or is damaged.
    """
    try:
        written = (folder / INDEX).stat().st_mtime_ns
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{printable(folder)} holds no shards of tracks: {reason}", AGAIN) from error
    return _opened(folder.resolve(), written)


class ShardTracks(Sequence[Track]):
    """Tracks of a folder of shards, each read from the index when it is accessed.

    Args:
        shards: the index of the folder.
        numbers: of the tracks, in order.
        named: number of a track -> that of the row which names it here, for tracks that were listed by a row that
            repeats their file.
    """

    def __init__(self, shards: ShardIndex, numbers: Numbers, named: Mapping[int, int] | None = None) -> None:
        self.shards, self.numbers, self._named = shards, numbers, named or {}

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, place: int) -> Track: ...
    @overload
    def __getitem__(self, place: slice) -> ShardTracks: ...
    def __getitem__(self, place: int | slice) -> Track | ShardTracks:
        if isinstance(place, slice):
            return ShardTracks(self.shards, self.numbers[place], self._named)
        return self.entry(place).track

    def entry(self, place: int) -> ShardTrack:
        """The entry of the track at a place."""
        number = int(self.numbers[place])
        return self.shards.entry(self._named.get(number, number))

    def of_split(self, split: str, *, others: bool = False) -> ShardTracks:
        """The tracks of a split, or all others."""
        return self._where(self.shards.numbers("split = ?", (split,)), others)

    def of_files(self, hashes: Iterable[str], *, others: bool = False) -> ShardTracks:
        """The tracks whose files have one of these SHA-256, or all others."""
        return self._where(self.shards.having("sha256", hashes), others)

    def by_sha256(self) -> ShardTracks:
        """The tracks in the order of the hashes of their files."""
        rows = self.shards.rows("SELECT number FROM tracks ORDER BY sha256")
        order = np.fromiter((number for (number,) in rows), np.int64, len(rows))
        return ShardTracks(self.shards, order[np.isin(order, self.numbers)], self._named)

    def shuffled(self, order: Sequence[int]) -> ShardTracks:
        """The tracks at these places."""
        return ShardTracks(self.shards, self.numbers[np.array(order, np.int64)], self._named)

    def suspects(self, pcm: Iterable[str]) -> ShardTracks:
        """The tracks whose samples are those of another track of the shards, or have one of these hashes."""
        twice = "pcm_sha256 IN (SELECT pcm_sha256 FROM tracks GROUP BY pcm_sha256 HAVING COUNT(*) > 1)"
        return self._where(np.union1d(self.shards.numbers(twice), self.shards.having("pcm_sha256", pcm)), False)

    def plus(self, tracks: Sequence[Track]) -> ShardTracks:
        """These tracks, then others of the same shards.

        Raises:
            InputError: one of them is not in the shards.
        """
        more: list[int] = []
        named = dict(self._named)
        for track in tracks:
            rows = self.shards.catalogued("sha256 = ?", track.sha256)
            if not rows:
                raise InputError(
                    f"{printable(track.id)} is not in the shards in {printable(self.shards.folder)}",
                    "encode it with the rest of the catalogue",
                )
            number = rows[0][0]
            by_row = next((row for row, name, *_ in rows if name == track.id), number)
            if by_row != number:
                named[number] = by_row
            more.append(number)
        return ShardTracks(self.shards, np.concatenate([self.numbers, np.array(more, np.int64)]), named)

    def _where(self, numbers: Numbers, others: bool) -> ShardTracks:
        return ShardTracks(self.shards, self.numbers[np.isin(self.numbers, numbers, invert=others)], self._named)


class ShardCatalog(Catalog):
    """A catalogue in shards. Its tracks need no audio file; a path in a list is looked up as the catalogue wrote it.

    Args:
        folder: the folder of the shards.
        roots: further folders that audio files of lists may be in.
    """

    def __init__(self, folder: Path, roots: Sequence[Path] = ()) -> None:
        self.shards = open_shards(folder)
        self.path, self.name, self.folder = folder, str(folder), self.shards.folder
        self.roots, self.notes = tuple(roots), tuple(self.shards.about.get("notes", ()))

    def by_id(self, name: str) -> tuple[Record, ...]:
        return self._records("id = ?", name)

    def by_isrc(self, isrc: str) -> tuple[Record, ...]:
        return self._records("isrc = ?", normalised_isrc(isrc)) if normalised_isrc(isrc) else ()

    def by_artist(self, name: str) -> tuple[Record, ...]:
        fields = sorted(crediting(name, self._artists()))
        found = [self._records(f"{ARTIST} = ?", field) for field in fields]
        once = (record for records in found for record in records if record.line >= 0)  # without repeats of a file
        return tuple(sorted(once, key=lambda record: record.line))

    def near_artists(self, name: str) -> list[str]:
        return near_artists(name, self._artists())

    def _artists(self) -> list[str]:
        return [name for (name,) in self.shards.rows(f"SELECT DISTINCT {ARTIST} FROM tracks") if name]

    def by_sha256(self, digest: str) -> tuple[Record, ...]:
        return self.by_known_sha256(digest)

    def by_known_sha256(self, digest: str) -> tuple[Record, ...]:
        return self._records("sha256 = ?", digest.casefold()) if digest else ()

    def by_path(self, path: Path | str) -> tuple[Record, ...]:
        whole = os.path.normpath(os.path.join(self.shards.about["folder"], path))
        return self._records("file = ? OR path = ? OR path = ?", str(path), whole, os.path.realpath(whole))

    def same_recording(self, records: Sequence[Record]) -> bool:
        return len({record.sha256 for record in records}) == 1

    def near_ids(self, name: str) -> list[str]:
        both = "SELECT id FROM tracks UNION SELECT id FROM copies"
        rows = self.shards.rows(f"SELECT id FROM ({both}) WHERE substr(id, 1, 2) = ? LIMIT ?", (name[:2], NEAR))
        return near(name, [name for (name,) in rows])[:3]

    @property
    def splits(self) -> list[str]:
        return sorted(split for (split,) in self.shards.rows("SELECT DISTINCT split FROM tracks") if split)

    def track(
        self,
        record: Record,
        *,
        path: Path | None = None,
        captions: Sequence[str] = (),
        line: int | None = None,
        source: str = "",
    ) -> Track:
        entry = self.shards.entry(record.line)
        track = entry.track
        if is_replaced(track.path, track.sha256, entry.state):
            raise InputError(
                f"{printable(track.path)} was replaced since it was encoded: its hash differs",
                "put the file back, or run the same `encore encode` command again, which encodes what changed",
            )
        texts = tuple(dict.fromkeys((*captions, *track.captions)))
        origin = BOTH if captions else track.caption_source
        return replace(
            track, path=path or track.path, caption=texts[0], more_captions=texts[1:], caption_source=origin, line=line,
            source=source,
        )  # fmt: skip

    def tracks(self, split: str | None = None, *, errors: list[InputError] | None = None) -> Sequence[Track]:
        """All tracks, or those of one split, in the catalogue's order.

        Raises:
            InputError: there is no such split.
        """
        if split is None:
            return ShardTracks(self.shards, self.shards.numbers())
        self.check_split(split)
        return ShardTracks(self.shards, self.shards.numbers("split = ?", (split.casefold(),)))

    def streamed(self, tracks: Sequence[Track]) -> Sequence[Track]:
        """Listed tracks as `ShardTracks`, where all are in the shards and have their captions from there."""
        if all(track.shards and track.caption_source != BOTH for track in tracks):
            return ShardTracks(self.shards, np.zeros(0, np.int64)).plus(tracks)
        return tracks

    def _records(self, where: str, *values: str) -> tuple[Record, ...]:
        """Records of tracks; `line` is the number of `ShardIndex.entry`."""
        return tuple(
            Record(number, name, path=file, id=name, isrc=isrc or "", sha256=digest, artist=artist or "")
            for number, name, file, isrc, digest, artist in self.shards.catalogued(where, *values)
        )


def catalog_at(path: Path, roots: Sequence[Path] = ()) -> Catalog:
    """The catalogue at a path: a `ShardCatalog` where the folder holds shards, else as `Catalog.open`.

    Raises:
        InputError: it can't be opened.
    """
    return ShardCatalog(path, roots) if (path / INDEX).exists() else Catalog.open(path, roots=roots)


class ShardTexts(dict[str, "Tensor"]):
    """`Backend.text_embeddings` of a catalogue in shards: encodings are read when used, a bounded number is kept.

    Args:
        index: of the shards.
        texts: encodings that are at hand already; they stay.
        device: where encodings go.
    """

    def __init__(self, index: ShardIndex, texts: dict[str, Tensor], device: torch.device) -> None:
        super().__init__(texts)
        self.index, self._device = index, device
        self._read: dict[str, None] = {}  # those from the shards, the oldest first

    def __contains__(self, caption: object) -> bool:
        return super().__contains__(caption) or (isinstance(caption, str) and self.index.has_text(caption))

    def __missing__(self, caption: str) -> Tensor:
        states = self.index.text(caption)
        if states is None:
            raise KeyError(caption)
        if len(self._read) >= TEXTS:
            oldest = next(iter(self._read))
            del self._read[oldest]
            self.pop(oldest, None)
        self._read[caption] = None
        self[caption] = states = states.to(self._device)
        return states


def grouped(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Values in lists of `size`, the last one shorter."""
    part: list[Any] = []
    for value in values:
        part.append(value)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
