"""What is known of audio files: each is hashed once while it stays as it is, and decoded once as long as decoders do.

Two kinds of records lie in one SQLite file of the cache folder: a file's identity (device, inode, size, times) with its
SHA-256, and a SHA-256 with what decoding found. So a second run reads no audio, and a copied or renamed file is known
by its content. A record is stored only after the file that was decoded was seen to be the one that was hashed, and each
carries a checksum of its own. What does not fit is measured again; a cache that can't be used costs time alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from encore.data.decode import Audio, load
from encore.data.open_files import open_regular
from encore.errors import InputError
from encore.settings import cache_folder
from encore.text import printable

SETTLED = 2.0
"""Seconds that a file must have been left alone before its identity is trusted: the coarsest clock of a file system in
use (FAT) ticks every 2 s, and a file written twice within a tick has one identity and two contents."""

WAIT = 5.0
"""Seconds to wait for another process that writes a record."""


@dataclass(frozen=True)
class Facts:
    """What decoding a file found; that there are facts says that nothing about the file was refused.

    Args:
        sha256_pcm: see `Audio.sha256_pcm`.
        rate: Hz.
        channels, frames: the file's own.
        format: see `Audio.format`.
        declared: frames by the container; None where it doesn't say.
    """

    sha256_pcm: str
    rate: int
    channels: int
    frames: int
    format: str
    declared: int | None = None

    @classmethod
    def of(cls, audio: Audio) -> Facts:
        return cls(
            audio.sha256_pcm, audio.source_rate, audio.source_channels, audio.frames_decoded, audio.format,
            audio.frames_declared,
        )  # fmt: skip

    @property
    def seconds(self) -> float:
        """Length as decoded."""
        return self.frames / self.rate


class FileCache:
    """Hashes and facts of files, kept between runs. Any number of processes may share one.

    Args:
        folder: made when first written to; default `settings.cache_folder()`.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.path = (cache_folder() if folder is None else Path(folder)) / "files.sqlite3"

    def sha256(self, path: Path | str) -> str:
        """SHA-256 of a file's bytes, hexadecimal; they are read unless size, times and inode are known already.

        Raises:
            InputError: it is missing, unreadable or not a regular file.
        """
        with open_regular(path) as stream:
            identity = _identity(os.fstat(stream.fileno()))
            known = self._get(identity)
            if known is not None:
                return str(known["sha256"])
            begun = time.time()
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            after = os.fstat(stream.fileno())
        if _identity(after) == identity and begun - max(after.st_mtime, after.st_ctime) > SETTLED:
            self._put(identity, {"sha256": digest})
        return digest

    def facts(self, sha256: str) -> Facts | None:
        """What decoding found in the file of that hash, where these decoders have read it before."""
        known = self._get(_audio_key(sha256))
        return None if known is None else Facts(**known)

    def load(self, path: Path | str, sha256: str, *, sample_rate: int, channels: int = 1) -> Audio:
        """Decode a file as `decode.load` does, and remember the facts.

        Args:
            sha256: of the file as it was listed.

        Raises:
            InputError: what `decode.load` raises; or the file is another one by now.
        """
        audio = load(path, sample_rate=sample_rate, channels=channels)
        if self.sha256(path) != sha256:
            raise InputError(f"{printable(path)} was changed after it was listed", "run the command again")
        self._put(_audio_key(sha256), asdict(Facts.of(audio)))
        return audio

    # --------------------------------------------------------------------------------------------------- records

    def _get(self, key: str) -> dict[str, Any] | None:
        if not self.path.exists():
            return None
        try:
            with closing(sqlite3.connect(self.path, timeout=WAIT)) as records:
                row = records.execute("SELECT value, checksum FROM records WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            self._discard(error)
            return None
        if row is None or row[1] != _checksum(key, row[0]):
            return None
        value: dict[str, Any] = json.loads(row[0])
        return value

    def _put(self, key: str, value: dict[str, Any]) -> None:
        text = json.dumps(value, sort_keys=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=WAIT)) as records, records:
                records.execute("PRAGMA synchronous = OFF")  # what a power cut loses or tears is measured again
                records.execute("CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, value TEXT, checksum TEXT)")
                records.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (key, text, _checksum(key, text)))
        except (OSError, sqlite3.Error) as error:
            self._discard(error)

    def _discard(self, error: Exception) -> None:
        """Remove a file that SQLite can't read, so that the next record begins another; leave one that is only busy."""
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            with suppress(OSError):  # a folder that may only be read
                self.path.unlink(missing_ok=True)


def _identity(stat: os.stat_result) -> str:
    """What changes when a file's content does. The change time can't be set back, as the modification time can."""
    return f"file {stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _audio_key(sha256: str) -> str:
    return f"audio {decoder_sha256()} {sha256}"


@cache
def decoder_sha256() -> str:
    """Hash of what samples follow from beside the file: Encore's own code for audio, and the libraries it decodes with.

    A changed line or another version has every file decoded, and refused or not, once more.
    """
    import av
    import soxr

    digest = hashlib.sha256(json.dumps([av.__version__, soxr.__version__, soxr.__libsoxr_version__]).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


def _checksum(key: str, value: str) -> str:
    return hashlib.sha256(f"{key}\0{value}".encode()).hexdigest()
