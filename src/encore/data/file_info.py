"""A cache of file hashes and decoding results: a file is hashed and decoded again only when it or a decoder changes.

One SQLite file in the cache folder has two kinds of records: a file's identity (device, inode, size, times) with its
SHA-256, and a SHA-256 with the decoding result. So a second run reads no audio, and a copied or renamed file is found
by its content. A result is stored only after a check that the decoded file is the hashed one, and each record has a
checksum. Invalid records are computed again; an unusable cache only costs time.
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
"""Seconds since a file's last change before its identity is trusted: the coarsest file system clock in use (FAT) ticks
every 2 s, and a file written twice within a tick has one identity and two contents."""

WAIT = 5.0
"""Seconds to wait for another process that writes a record."""


@dataclass(frozen=True)
class Decoding:
    """The result of decoding a file that passed all checks.

    Args:
        sha256_pcm: see `Audio.sha256_pcm`.
        rate: sample rate of the file, Hz.
        channels: of the file.
        frames: decoded frames.
        format: see `Audio.format`.
        declared: frames declared by the container; None without a declaration.
    """

    sha256_pcm: str
    rate: int
    channels: int
    frames: int
    format: str
    declared: int | None = None

    @classmethod
    def of(cls, audio: Audio) -> Decoding:
        """The result without the samples."""
        return cls(
            audio.sha256_pcm, audio.source_rate, audio.source_channels, audio.frames_decoded, audio.format,
            audio.frames_declared,
        )  # fmt: skip

    @property
    def seconds(self) -> float:
        """Decoded length."""
        return self.frames / self.rate


class FileCache:
    """Cached hashes and decoding results of files. Any number of processes may share one.

    Args:
        folder: created on the first write; default `settings.cache_folder()`.
    """

    def __init__(self, folder: Path | str | None = None) -> None:
        self.path = (cache_folder() if folder is None else Path(folder)) / "files.sqlite3"

    def sha256(self, path: Path | str) -> str:
        """SHA-256 of a file's bytes, hexadecimal; the file is read only if its identity is not in the cache.

        Raises:
            InputError: it is missing, unreadable or not a regular file.
        """
        with open_regular(path) as stream:
            identity = _identity(os.fstat(stream.fileno()))
            known = self._get(identity)
            if known is not None:
                return str(known["sha256"])
            started = time.time()
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            after = os.fstat(stream.fileno())
        if _identity(after) == identity and started - max(after.st_mtime, after.st_ctime) > SETTLED:
            self._put(identity, {"sha256": digest})
        return digest

    def decoding(self, sha256: str) -> Decoding | None:
        """The cached decoding result of the file with that hash; None where these decoders have not read it."""
        known = self._get(_audio_key(sha256))
        return None if known is None else Decoding(**known)

    def load(self, path: Path | str, sha256: str, *, sample_rate: int, channels: int = 1) -> Audio:
        """Decode a file with `decode.load`, and cache the result.

        Args:
            path: a regular file.
            sha256: of the file when it was listed.
            sample_rate: of the result, Hz.
            channels: of the result.

        Raises:
            InputError: as in `decode.load`; or the file was changed.
        """
        audio = load(path, sample_rate=sample_rate, channels=channels)
        if self.sha256(path) != sha256:
            raise InputError(f"{printable(path)} was changed after it was listed", "run the command again")
        self._put(_audio_key(sha256), asdict(Decoding.of(audio)))
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
                records.execute("PRAGMA synchronous = OFF")  # records lost in a power cut are computed again
                records.execute("CREATE TABLE IF NOT EXISTS records (key TEXT PRIMARY KEY, value TEXT, checksum TEXT)")
                records.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", (key, text, _checksum(key, text)))
        except (OSError, sqlite3.Error) as error:
            self._discard(error)

    def _discard(self, error: Exception) -> None:
        """Remove a file that SQLite can't read, so that the next record creates a new one; keep a busy file."""
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            with suppress(OSError):  # a read-only folder
                self.path.unlink(missing_ok=True)


def _identity(stat: os.stat_result) -> str:
    """A key that changes with a file's content: unlike the modification time, the change time can't be set back."""
    return f"file {stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _audio_key(sha256: str) -> str:
    return f"audio {decoder_sha256()} {sha256}"


@cache
def decoder_sha256() -> str:
    """Hash of everything the samples depend on beside the file: the code of this package, and the decoding libraries.

    After any change, every file is decoded and checked again.
    """
    import av
    import soxr

    digest = hashlib.sha256(json.dumps([av.__version__, soxr.__version__, soxr.__libsoxr_version__]).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + hashlib.sha256(source.read_bytes()).digest())
    return digest.hexdigest()


def _checksum(key: str, value: str) -> str:
    return hashlib.sha256(f"{key}\0{value}".encode()).hexdigest()
