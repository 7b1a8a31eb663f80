"""Write shards of encoded tracks, and their index; see `encore.data.shards` for the layout."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from encore.data.file_info import Decoding
from encore.data.shards import FORMAT, INDEX, SHARD_TRACKS, FileState, is_replaced, read_state, shard_path
from encore.data.tracks import Track
from encore.errors import InputError
from encore.files import atomic_write
from encore.text import printable

SCHEMA = """
CREATE TABLE IF NOT EXISTS about (key TEXT PRIMARY KEY, value TEXT);
CREATE TABLE IF NOT EXISTS shards (
    number INTEGER PRIMARY KEY, records TEXT, tracks INTEGER, sha256 TEXT, bytes INTEGER
);
CREATE TABLE IF NOT EXISTS tracks (
    number INTEGER PRIMARY KEY, id TEXT UNIQUE, isrc TEXT, sha256 TEXT UNIQUE, pcm_sha256 TEXT, path TEXT, file TEXT,
    state TEXT, split TEXT, shard INTEGER, start INTEGER, windows TEXT, clips INTEGER, captions TEXT, details TEXT
);
CREATE TABLE IF NOT EXISTS captions (
    caption TEXT, shard INTEGER, start INTEGER, length INTEGER, crc INTEGER, PRIMARY KEY (caption, shard)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS copies (
    number INTEGER PRIMARY KEY, shard INTEGER, id TEXT, isrc TEXT, sha256 TEXT, path TEXT, file TEXT, state TEXT,
    details TEXT
);
CREATE TABLE IF NOT EXISTS skipped (shard INTEGER, reason TEXT);
CREATE INDEX IF NOT EXISTS by_isrc ON tracks (isrc);
CREATE INDEX IF NOT EXISTS by_pcm ON tracks (pcm_sha256);
CREATE INDEX IF NOT EXISTS by_path ON tracks (path);
CREATE INDEX IF NOT EXISTS by_file ON tracks (file);
CREATE INDEX IF NOT EXISTS by_split ON tracks (split);
CREATE INDEX IF NOT EXISTS by_shard ON tracks (shard);
CREATE INDEX IF NOT EXISTS captions_by_shard ON captions (shard);
CREATE INDEX IF NOT EXISTS copies_by_id ON copies (id);
CREATE INDEX IF NOT EXISTS copies_by_isrc ON copies (isrc);
CREATE INDEX IF NOT EXISTS copies_by_sha256 ON copies (sha256);
CREATE INDEX IF NOT EXISTS copies_by_path ON copies (path);
CREATE INDEX IF NOT EXISTS copies_by_file ON copies (file);
CREATE INDEX IF NOT EXISTS copies_by_shard ON copies (shard);
"""
OF_A_SHARD = ("tracks", "captions", "copies", "skipped")  # tables with rows of shards


@dataclass(frozen=True)
class CatalogRow:
    """A row of the catalogue.

    Args:
        track: its track.
        file: the path of the file as the catalogue writes it.
        state: of the file when it was encoded, see `encore.data.shards.is_replaced`.
    """

    track: Track
    file: str
    state: FileState | None = None


@dataclass(frozen=True)
class Encoded(CatalogRow):
    """A track to write.

    Args:
        decoding: the result of decoding its file.
        windows: codes of each window, [K, T], int16 (latents: float32).
        copies: further rows of the catalogue with this file.
    """

    decoding: Decoding = field(kw_only=True)
    windows: Sequence[Tensor] = field(kw_only=True)
    copies: Sequence[CatalogRow] = field(default=(), kw_only=True)


@dataclass(frozen=True)
class WrittenShard:
    """A shard on the disk, and what the index must know of it.

    Args:
        number: of the shard.
        records: hash of the catalogue's records that it was made of.
        sha256: hash of what it holds.
        tracks: rows of the table `tracks`, without `number`, `shard` and `clips`.
        copies: rows of the table `copies` likewise.
        captions: rows of the table `captions`, without `shard`.
        skipped: why tracks were left out, a sentence each.
        bytes: size of the file; 0 without tracks, as there is none then.
    """

    number: int
    records: str
    sha256: str
    tracks: Sequence[Mapping[str, Any]]
    copies: Sequence[Mapping[str, Any]]
    captions: Sequence[tuple[str, int, int, int]]
    skipped: Sequence[str]
    bytes: int


def write_shard(
    folder: Path,
    number: int,
    records: str,
    tracks: Sequence[Encoded],
    text: Callable[[str], Tensor],
    skipped: Sequence[str] = (),
) -> WrittenShard:
    """Write one shard; the file is there as a whole, or not at all.

    Args:
        folder: of the shards.
        number: of this one.
        records: hash of the catalogue's records that it is made of.
        tracks: at most `SHARD_TRACKS`.
        text: gives the encoding of a caption [L, D].
        skipped: why tracks were left out, a sentence each.
    """
    path = shard_path(folder, number)
    if not tracks:
        path.unlink(missing_ok=True)
        return WrittenShard(number, records, "", (), (), (), skipped, 0)
    rows: list[dict[str, Any]] = []
    codes: list[Tensor] = []
    start = 0
    for encoded in tracks:
        windows = [window.T.contiguous() for window in encoded.windows]  # [T, K]
        crcs = [(len(window), _crc(window)) for window in windows]
        rows.append({**_row(encoded, encoded.decoding), "start": start, "windows": crcs})
        start += sum(map(len, windows))
        codes += windows
    captions: list[tuple[str, int, int, int]] = []
    texts: list[Tensor] = []
    start = 0
    for caption in dict.fromkeys(caption for encoded in tracks for caption in encoded.track.captions):
        states = text(caption).detach().float().cpu().contiguous()
        captions.append((caption, start, len(states), _crc(states)))
        start += len(states)
        texts.append(states)
    with atomic_write(path) as staging:
        save_file({"codes": torch.cat(codes), "text": torch.cat(texts)}, staging)
    copies = [_row(copy, encoded.decoding) for encoded in tracks for copy in encoded.copies]
    described = [{**row, "state": None} for row in (*rows, *copies)]  # the same content of a newer file is the same
    digest = hashlib.sha256(json.dumps([described, captions]).encode()).hexdigest()
    return WrittenShard(number, records, digest, rows, copies, captions, skipped, path.stat().st_size)


def _row(row: CatalogRow, decoding: Decoding) -> dict[str, Any]:
    track = row.track
    details = {
        "title": track.title, "artist": track.artist, "meta": dict(track.meta), "caption_source": track.caption_source,
        "place": track.place, "decoding": asdict(decoding), "captions": track.captions,
    }  # fmt: skip
    return {
        "id": track.id, "isrc": track.isrc, "sha256": track.sha256, "pcm_sha256": decoding.sha256_pcm,
        "path": _storable(str(track.path)), "file": _storable(row.file), "state": row.state,
        "split": track.meta.get("split"), "details": details,
    }  # fmt: skip


def _storable(path: str) -> str:
    """A path without the bytes of an unknown encoding, which SQLite can't store; the audio is not read by it."""
    return path.encode("utf-8", "backslashreplace").decode()


def _crc(rows: Tensor) -> int:
    return zlib.crc32(rows.view(torch.uint8).numpy().tobytes())


def _place(details: str) -> str:
    """The line of the catalogue that a row of the index is from."""
    return str(json.loads(details)["place"])


class IndexWriter:
    """The index of a folder of shards, opened for writing by one process. Every change is there as a whole, or not.

    Args:
        folder: of the shards.
        about: what the index says of itself; see `ShardIndex`.

    Raises:
        InputError: the file is not such an index.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any]) -> None:
        self.folder = folder
        try:
            self._db = sqlite3.connect(folder / INDEX, timeout=60.0)
            self._db.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise InputError(f"{printable(folder / INDEX)} can't be written: {error}", "remove the folder") from error
        self.before = {key: json.loads(text) for key, text in self._db.execute("SELECT key, value FROM about")}
        self._about = {"format": FORMAT, **about}

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def begin(self) -> None:
        """Note what the shards are made of; until `finish` the catalogue can't be opened."""
        with self._db:
            self._db.execute("DELETE FROM about")
            self._db.executemany(
                "INSERT INTO about VALUES (?, ?)", [(key, json.dumps(value)) for key, value in self._about.items()]
            )

    def is_done(self, number: int, records: str) -> bool:
        """Whether a shard of these records is on the disk; tracks may have been left out of it.

        Args:
            number: of the shard.
            records: hash of the records.
        """
        rows = self._db.execute("SELECT records, bytes FROM shards WHERE number = ?", (number,)).fetchall()
        if not rows or rows[0][0] != records:
            return False
        try:
            size = os.stat(shard_path(self.folder, number)).st_size
        except OSError:
            size = 0
        return bool(size == rows[0][1])

    def add(self, shard: WrittenShard) -> list[InputError]:
        """Put a shard into the index, in place of an earlier one of that number.

        A file that another shard has too is one track, with the captions of both; its row is among the copies.

        Returns:
            Errors of tracks that contradict those of other shards; with any, the shard is left out.
        """
        errors: list[InputError] = []
        with self._db:
            self.remove(shard.number)
            for place, row in enumerate(shard.tracks):
                error = self._add_track(shard.number, place, row)
                errors += [error] if error is not None else []
            for row in shard.copies:
                self._add_copy(shard.number, row)
            captions = [(caption, shard.number, *where) for caption, *where in shard.captions]
            self._db.executemany("INSERT INTO captions VALUES (?, ?, ?, ?, ?)", captions)
            self._db.executemany(
                "INSERT INTO skipped VALUES (?, ?)", [(shard.number, reason) for reason in shard.skipped]
            )
            self._db.execute(
                "INSERT INTO shards VALUES (?, ?, ?, ?, ?)",
                (shard.number, shard.records, len(shard.tracks), shard.sha256, shard.bytes),
            )
            if errors:
                self._db.rollback()
        return errors

    def _add_track(self, shard: int, place: int, row: Mapping[str, Any]) -> InputError | None:
        where, details = row["details"]["place"], row["details"]
        same = self._db.execute("SELECT split, details FROM tracks WHERE sha256 = ?", (row["sha256"],)).fetchone()
        if same is not None:
            if same[0] and row["split"] and same[0] != row["split"]:
                return InputError(
                    f"{where}: the same file as {_place(same[1])}, in another split",
                    "a file is in one split: take it out of the other",
                )
            self._add_copy(shard, row)
            return None
        named = self._db.execute("SELECT details FROM tracks WHERE id = ?", (row["id"],)).fetchone()
        if named is not None:
            return InputError(
                f"{where}: the id '{row['id']}' is already that of {_place(named[0])}", "give every track another id"
            )
        self._db.execute(
            f"INSERT INTO tracks VALUES ({', '.join('?' * 15)})",
            (
                shard * SHARD_TRACKS + place, row["id"], row["isrc"], row["sha256"], row["pcm_sha256"], row["path"],
                row["file"], json.dumps(row["state"]), row["split"], shard, row["start"], json.dumps(row["windows"]),
                len(row["windows"]) * len(details["captions"]), json.dumps(details["captions"]), json.dumps(details),
            ),
        )  # fmt: skip
        return None

    def _add_copy(self, shard: int, row: Mapping[str, Any]) -> None:
        values = (row["id"], row["isrc"], row["sha256"], row["path"], row["file"], json.dumps(row["state"]))
        self._db.execute(
            "INSERT INTO copies VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?)", (shard, *values, json.dumps(row["details"]))
        )

    def remove(self, number: int) -> None:
        """Take a shard out of the index."""
        self._db.execute("DELETE FROM shards WHERE number = ?", (number,))
        for table in OF_A_SHARD:
            self._db.execute(f"DELETE FROM {table} WHERE shard = ?", (number,))

    def numbers(self, first: int = 0) -> list[int]:
        """Numbers of the shards from `first` on."""
        return [n for (n,) in self._db.execute("SELECT number FROM shards WHERE number >= ?", (first,))]

    def skipping(self) -> set[int]:
        """Numbers of the shards that tracks were left out of."""
        return {number for (number,) in self._db.execute("SELECT DISTINCT shard FROM skipped")}

    def files(self, numbers: Sequence[int]) -> list[tuple[str, str]]:
        """The file of each track in some shards: as the catalogue names it, and its path.

        Args:
            numbers: of the shards.
        """
        query = "SELECT file, path FROM tracks WHERE shard = ?"
        return [row for number in numbers for row in self._db.execute(query, (number,))]

    def replaced(self) -> dict[int, str]:
        """Shards of which a file was replaced since it was encoded, each with the path of one such file."""
        query = "SELECT shard, path, sha256, state FROM tracks UNION ALL SELECT shard, path, sha256, state FROM copies"
        return {
            shard: path
            for shard, path, sha256, state in self._db.execute(query)
            if is_replaced(path, sha256, read_state(state))
        }

    def drop(self, numbers: Sequence[int]) -> None:
        """Take shards out of the index, and those that repeat a file of one of them: all are encoded again.

        Args:
            numbers: of the shards.
        """
        with self._db:
            for number in numbers:
                self.remove(number)
            orphans = "SELECT DISTINCT shard FROM copies WHERE sha256 NOT IN (SELECT sha256 FROM tracks)"
            while repeating := [number for (number,) in self._db.execute(orphans)]:
                for number in repeating:
                    self.remove(number)

    def cut(self, count: int) -> None:
        """Remove shards from number `count` on: the catalogue has become shorter."""
        numbers = self.numbers(count)
        with self._db:
            for number in numbers:
                self.remove(number)
        for number in numbers:
            shard_path(self.folder, number).unlink(missing_ok=True)

    def finish(self, notes: Sequence[str]) -> dict[str, int]:
        """Complete the index: from now on it can be opened.

        Args:
            notes: sentences on the catalogue for the user.

        Returns:
            Numbers of "tracks", "clips", "skipped", "shards" and "bytes".

        Raises:
            InputError: there are no tracks.
        """
        with self._db:
            columns = "tracks.number, sha256, tracks.details, windows"
            query = f"SELECT DISTINCT {columns} FROM tracks JOIN copies USING (sha256)"
            for number, digest, details, windows in self._db.execute(query).fetchall():
                captions = json.loads(details)["captions"]
                more = self._db.execute("SELECT details FROM copies WHERE sha256 = ? ORDER BY shard, number", (digest,))
                texts = [text for (row,) in more for text in json.loads(row)["captions"]]
                captions = list(dict.fromkeys([*captions, *texts]))
                self._db.execute(
                    "UPDATE tracks SET captions = ?, clips = ? WHERE number = ?",
                    (json.dumps(captions), len(captions) * len(json.loads(windows)), number),
                )
            (tracks, clips) = self._db.execute("SELECT COUNT(*), COALESCE(SUM(clips), 0) FROM tracks").fetchone()
            (skipped,) = self._db.execute("SELECT COUNT(*) FROM skipped").fetchone()
            shards, size = self._db.execute("SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM shards").fetchone()
            if not tracks:
                raise InputError(f"{printable(self.folder)} would hold no track: none could be read")
            digests = [row for (row,) in self._db.execute("SELECT sha256 FROM shards ORDER BY number")]
            content = hashlib.sha256(json.dumps([self._about["codec"], digests]).encode()).hexdigest()
            for key, value in (("content", content), ("notes", list(notes))):
                self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, json.dumps(value)))
        return {"tracks": tracks, "clips": clips, "skipped": skipped, "shards": shards, "bytes": size}


def writing_index(folder: Path, about: Mapping[str, Any]) -> closing[IndexWriter]:
    """An `IndexWriter` that is closed after the block."""
    return closing(IndexWriter(folder, about))
