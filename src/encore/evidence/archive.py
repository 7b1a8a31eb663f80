"""A deterministic archive that is safe to read from untrusted sources.

It is a zip with uncompressed members: it does not depend on a compressor's version, and no member is larger than the
file.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import struct
import unicodedata
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from encore.data.open_files import open_regular
from encore.errors import InputError
from encore.files import atomic_write
from encore.hub import is_code
from encore.store.run_folder import writing
from encore.text import printable

MAX_MEMBERS = 10_000
MAX_IN_MEMORY = 64 << 20  # bytes of a member that is read as a whole
PIECE = 1 << 20
LONGEST_NAME = 255  # bytes of a file's or a folder's name
UTF8 = 0x800  # flag of a member: its name is UTF-8
LOCAL = struct.Struct(
    "<6xHH4x3I2H"
)  # a member's header: flags, method, CRC, packed and whole size, lengths of two fields
BEYOND = 0xFFFFFFFF  # stands for a size or an offset that another field holds
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say
HINT = "ask for the bundle again, from whoever made it"


def write_archive(path: Path, members: Mapping[str, bytes | Path]) -> None:
    """Write members atomically, in the order of their names.

    Args:
        members: contents, or files that hold them, by name.

    Raises:
        EncoreError: it can't be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as staging, zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(members):
                info = zipfile.ZipInfo(name, FIRST_DAY)
                info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
                content = members[name]
                if isinstance(content, bytes):
                    archive.writestr(info, content)
                else:
                    info.file_size = content.stat().st_size  # beyond 2 GiB the header needs to know
                    with open(content, "rb") as source, archive.open(info, "w") as target:
                        shutil.copyfileobj(source, target, PIECE)


class Archive:
    """The members of a bundle by name: plain files with plain relative paths."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        self._members = {info.filename: info for info in _checked(path, archive)}

    @property
    def names(self) -> list[str]:
        return sorted(self._members)

    def size(self, name: str) -> int:
        return self._members[name].file_size

    def read(self, name: str) -> bytes:
        """A member's content.

        Raises:
            InputError: it is not there, too large to be what it should be, or damaged.
        """
        if name not in self._members:
            raise InputError(f"{self.path} has no {name}: it is not an evidence bundle", HINT)
        if self.size(name) > MAX_IN_MEMORY:
            raise InputError(f"{name} in {self.path} is {self.size(name):,} bytes: too large to be what it says", HINT)
        return b"".join(self._pieces(name))

    def sha256(self, name: str) -> str:
        """SHA-256 of a member's content.

        Raises:
            InputError: the archive is damaged there.
        """
        digest = hashlib.sha256()
        for piece in self._pieces(name):
            digest.update(piece)
        return digest.hexdigest()

    def extract(self, name: str, target: Path) -> None:
        """Write a member to a new file.

        Raises:
            InputError: the archive is damaged there.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as file:
            for piece in self._pieces(name):
                file.write(piece)

    def _pieces(self, name: str) -> Iterator[bytes]:
        try:
            with self._archive.open(self._members[name]) as member:
                while piece := member.read(PIECE):
                    yield piece
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{printable(name)} in {self.path} is damaged: {error}", HINT) from error


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """Open a bundle.

    Raises:
        InputError: it is not a bundle of Encore's.
    """
    beside = path.resolve().with_name(f"{path.resolve().name}.evidence.zip")
    if path.is_dir() and beside.is_file():
        raise InputError(f"{path} is a folder, and a bundle is a file", f"the bundle of this run: {beside}")
    with open_regular(path) as file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise InputError(f"{path} is not an evidence bundle, or it is cut off: {error}", HINT) from error
        with archive:
            yield Archive(path, archive)


def _checked(path: Path, archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    members = archive.infolist()
    if len(members) > MAX_MEMBERS:
        raise InputError(f"{path} has {len(members):,} members: it is not an evidence bundle", HINT)
    names: dict[str, str] = {}  # as a file system that ignores case and kinds of accents takes them -> as they are
    for info in members:
        name, wrong = unicodedata.normalize("NFC", info.filename).casefold(), _wrong(info)
        if not wrong and name in names:
            known = names[name]
            wrong = (
                "twice in it" if known == info.orig_filename else f"the same file as {printable(known)} on some systems"
            )
        if wrong:
            raise InputError(f"{path} is refused: {printable(info.orig_filename)} is {wrong}", HINT)
        names[name] = info.orig_filename
    for name, original in names.items():
        if any(str(above) in names for above in PurePosixPath(name).parents):
            raise InputError(f"{path} is refused: {printable(original)} is below a file", HINT)
    if sum(info.file_size for info in members) > path.stat().st_size:
        raise InputError(f"{path} is refused: its members overlap", HINT)
    if not _is_whole(archive, members, path.stat().st_size):
        raise InputError(f"{path} is refused: another program could read another content in it", HINT)
    return members


def _is_whole(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], size: int) -> bool:
    """Whether the archive is only its members and their directory, and headers and directory agree.

    Other zip readers, or readers of another format, could read hidden data between members or in headers.
    """
    file, place = archive.fp, 0
    assert file is not None
    for info in sorted(members, key=lambda info: info.header_offset):
        file.seek(place)
        header = file.read(LOCAL.size)
        if info.header_offset != place or len(header) != LOCAL.size:
            return False
        flags, method, crc, *sizes, name, extra = LOCAL.unpack(header)
        file.seek(name, os.SEEK_CUR)
        more = struct.pack("<2H2Q", 1, 16, info.file_size, info.file_size) if extra else b""  # where sizes may be large
        if (flags, method, crc) != (info.flag_bits, info.compress_type, info.CRC) or file.read(extra) != more:
            return False
        if sizes != [info.file_size] * 2 and not (extra and sizes == [BEYOND] * 2):
            return False
        if info.comment or not _is_plain_extra(info):
            return False
        place += LOCAL.size + name + extra + info.file_size
    directory = sum(46 + len(info.orig_filename.encode()) + len(info.extra) for info in members)
    file.seek(archive.start_dir + directory)
    return archive.start_dir == place and file.read() == _end(len(members), directory, place)


def _is_plain_extra(info: zipfile.ZipInfo) -> bool:
    """Whether a member's extra field in the directory is empty or a necessary zip64 field."""
    large = max(info.file_size, info.header_offset) > zipfile.ZIP64_LIMIT
    return not info.extra or (large and struct.unpack("<2H", info.extra[:4]) == (1, len(info.extra) - 4))


def _end(count: int, size: int, start: int) -> bytes:
    """The end records of a directory of `size` bytes that begins at `start`."""
    plain = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, min(start, BEYOND), 0)
    if start <= zipfile.ZIP64_LIMIT:
        return plain
    large = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    return large + struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1) + plain


def _wrong(info: zipfile.ZipInfo) -> str:
    """Why a member is refused, as words after "is"; empty if it is accepted."""
    name, parts = info.orig_filename, PurePosixPath(info.orig_filename).parts
    if name != info.filename or "\\" in name or not name.isprintable() or name.startswith("/") or ":" in name:
        return "no plain name"
    if not parts or {"..", "."} & set(name.split("/")) or "" in name.split("/"):
        return "a path that leads elsewhere"
    if any(len(part.encode()) > LONGEST_NAME or part.endswith((" ", ".")) for part in parts):
        return "a name that not every system can write"
    if is_code(name):
        return "code, and no member of a bundle is"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "a link, a folder or a device"
    if info.flag_bits & 1:
        return "encrypted"
    if info.flag_bits & ~UTF8:
        return "not stored as members of a bundle are"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "compressed, which members of a bundle never are"
    return ""
