"""An archive that is the same bytes every time, and that can be read without trusting who made it.

It is a zip whose members are stored as they are: any system opens it, no version of a compressor changes it, and
nothing in it can be larger than the file itself.
"""

from __future__ import annotations

import hashlib
import shutil
import stat
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from encore.audio.files import open_regular
from encore.audio.text import printable
from encore.errors import InputError
from encore.files import whole_file
from encore.hub import is_code
from encore.runs.store import writing

MAX_MEMBERS = 10_000
MAX_IN_MEMORY = 64 << 20  # bytes of a member that is read as a whole
PIECE = 1 << 20
FIRST_DAY = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say
HINT = "ask for the bundle again, from whoever made it"


def write_archive(path: Path, members: Mapping[str, bytes | Path]) -> None:
    """Write members in the order of their names, whole or not at all.

    Args:
        members: name -> content, or the file that holds it.

    Raises:
        EncoreError: it can't be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as staging, zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED) as archive:
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
    """The members of a bundle, by name; every name is a plain path below the archive, every member a plain file."""

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
        """Hash of a member's content. Raises InputError where the archive is damaged there."""
        digest = hashlib.sha256()
        for piece in self._pieces(name):
            digest.update(piece)
        return digest.hexdigest()

    def extract(self, name: str, target: Path) -> None:
        """Write a member to a file of ours. Raises InputError where the archive is damaged there."""
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
        InputError: it is no bundle, or holds what no bundle of ours holds.
    """
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
    seen: set[str] = set()
    for info in members:
        wrong = _wrong(info) or ("twice in it" if info.filename in seen else "")
        if wrong:
            raise InputError(f"{path} is refused: {printable(info.orig_filename)} is {wrong}", HINT)
        seen.add(info.filename)
    if sum(info.file_size for info in members) > path.stat().st_size:
        raise InputError(f"{path} is refused: its members overlap", HINT)
    return members


def _wrong(info: zipfile.ZipInfo) -> str:
    """What is wrong with a member, in words that follow "is"; empty where nothing is."""
    name, parts = info.orig_filename, PurePosixPath(info.orig_filename).parts
    if name != info.filename or "\\" in name or not name.isprintable() or name.startswith("/") or ":" in name:
        return "no plain name"
    if not parts or {"..", "."} & set(name.split("/")) or "" in name.split("/"):
        return "a path that leads elsewhere"
    if is_code(name):
        return "code, and no member of a bundle is"
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "a link, a folder or a device"
    if info.flag_bits & 1:
        return "encrypted"
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        return "compressed, which members of a bundle never are"
    return ""
