"""The archive: the same bytes every time, and no trust in what a stranger packed."""

from __future__ import annotations

import os
import stat
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from encore.errors import InputError
from encore.evidence.archive import opened, write_archive


def test_there_and_back(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"of a file" * 1000)
    path = tmp_path / "a.zip"
    write_archive(path, {"b/c.txt": tmp_path / "file", "a.txt": b"of bytes"})
    with opened(path) as archive:
        assert archive.names == ["a.txt", "b/c.txt"]
        assert archive.read("a.txt") == b"of bytes"
        assert archive.size("b/c.txt") == 9000
        archive.extract("b/c.txt", tmp_path / "out" / "c.txt")
    assert (tmp_path / "out/c.txt").read_bytes() == b"of a file" * 1000
    before = path.read_bytes()
    os.utime(tmp_path / "file", (1, 1))
    (tmp_path / "file").chmod(0o755)
    write_archive(path, {"a.txt": b"of bytes", "b/c.txt": tmp_path / "file"})
    assert path.read_bytes() == before
    assert not list(tmp_path.glob(".staging*"))
    with zipfile.ZipFile(path) as plain:  # any other reader opens it too
        assert plain.testzip() is None


def member(name: str, data: bytes = b"x", *, mode: int = stat.S_IFREG, compress: int = zipfile.ZIP_STORED) -> Callable:
    def add(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr, info.compress_type = (mode | 0o644) << 16, compress
        archive.writestr(info, data)

    return add


@pytest.mark.parametrize(
    ("adding", "words"),
    [
        ([member("../out")], "a path that leads elsewhere"),
        ([member("a/../../out")], "a path that leads elsewhere"),
        ([member("./a")], "a path that leads elsewhere"),
        ([member("a//b")], "a path that leads elsewhere"),
        ([member("folder/", b"", mode=stat.S_IFDIR)], "a path that leads elsewhere"),
        ([member("/etc/passwd")], "no plain name"),
        ([member("C:\\x")], "no plain name"),
        ([member("a\x1b[31m")], r"a\x1b[31m is no plain name"),
        ([member("link", b"/etc/passwd", mode=stat.S_IFLNK)], "a link"),
        ([member("pipe", mode=stat.S_IFIFO)], "a link, a folder or a device"),
        ([member("bomb", b"\0" * 10_000_000, compress=zipfile.ZIP_DEFLATED)], "compressed"),
        ([member("a"), member("a")], "twice in it"),
        ([member("a.txt"), member("A.txt")], "A.txt is the same file as a.txt on some systems"),
        ([member("caf\u00e9"), member("cafe\u0301")], "the same file as"),
        ([member("a"), member("a/b")], "a/b is below a file"),
        ([member("a" * 300)], "a name that not every system can write"),
        ([member("a /b")], "a name that not every system can write"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_what_is_refused(tmp_path: Path, adding: list[Callable[[zipfile.ZipFile], None]], words: str) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for add in adding:
            add(archive)
    with pytest.raises(InputError) as caught, opened(path):
        pass
    assert words in caught.value.message


def test_members_that_share_bytes(tmp_path: Path) -> None:
    """The bomb that needs no compression: many names for one large piece of the file."""
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"x" * 100_000)
        shared = archive.infolist()[0]
        for name in "bcdef":
            info = zipfile.ZipInfo(name)
            info.header_offset, info.CRC = shared.header_offset, shared.CRC
            info.file_size = info.compress_size = shared.file_size
            archive.filelist.append(info)
            archive.NameToInfo[name] = info
        archive._didModify = True
    with pytest.raises(InputError, match="overlap"), opened(path):
        pass


def test_bytes_that_belong_to_no_member(tmp_path: Path) -> None:
    """A file can be a bundle and something else: nothing may stand before, between or behind its members."""
    path = tmp_path / "a.zip"
    write_archive(path, {"a.txt": b"of bytes", "b.txt": b"of more"})
    whole = path.read_bytes()
    with opened(path) as archive:
        assert archive.names == ["a.txt", "b.txt"]
    for content in (b"<html>" + whole, whole[:-2] + b"\x04\0text"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="another program could read"), opened(path):
            pass


LIES = {  # what, where, and from which byte of that
    "a method in the header alone": ("local", 8, b"\x08\0"),
    "a flag in the header alone": ("local", 6, b"\x08\0"),
    "a checksum in the header alone": ("local", 14, b"\0\0\0\0"),
    "a packed size in the header alone": ("local", 18, b"\1\0\0\0"),
    "a size in the header alone": ("local", 22, b"\1\0\0\0"),
    "a flag in the directory": ("directory", 8, b"\x08\0"),
    "a checksum in the directory alone": ("directory", 16, b"\0\0\0\0"),
    "fewer members at the end": ("end", 8, b"\1\0\1\0"),
    "another disk at the end": ("end", 4, b"\1\0"),
}


@pytest.mark.parametrize(("where", "offset", "data"), LIES.values(), ids=LIES)
def test_what_two_programs_would_read_differently_is_refused(
    tmp_path: Path, where: str, offset: int, data: bytes
) -> None:
    """A program that reads a zip as a stream goes by the headers, others by the directory: both must say the same."""
    path = tmp_path / "a.zip"
    write_archive(path, {"a.txt": b"of bytes", "b.txt": b"of more"})
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = {"local": 0, "directory": archive.start_dir, "end": len(content) - 22}[where] + offset
    content[place : place + len(data)] = data
    path.write_bytes(content)
    with pytest.raises(InputError, match="refused"), opened(path):
        pass


def test_a_second_name_in_the_directory_is_refused(tmp_path: Path) -> None:
    """Of Info-ZIP's Unicode path (field 0x7075), which some programs take for the name, and any other such field."""
    path = tmp_path / "a.zip"
    other = struct.pack("<HHBI", 0x7075, 10, 1, zlib.crc32(b"a.txt")) + b"x.txt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", b"of bytes")
        archive.infolist()[0].extra = other
    with pytest.raises(InputError, match="another program could read"), opened(path):
        pass


def test_an_archive_of_large_members_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond 2 GiB headers are longer; here the limit is 1,000 bytes."""
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 1000)
    path, large = tmp_path / "a.zip", tmp_path / "large"
    large.write_bytes(b"x" * 5000)
    write_archive(path, {"a.txt": b"of bytes", "b/large": large, "c.txt": b"of more"})
    with opened(path) as archive:
        assert archive.size("b/large") == 5000
        assert archive.read("c.txt") == b"of more"


def test_damage_and_what_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    write_archive(path, {"a.txt": b"of bytes" * 100})
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    with opened(path) as archive, pytest.raises(InputError, match=r"a\.txt in .* is damaged"):
        archive.read("a.txt")
    for content in (whole[:-30], b"", b"no archive"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="not an evidence bundle"), opened(path):
            pass
    with pytest.raises(InputError, match="can't be read"), opened(tmp_path / "nowhere"):
        pass


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    told: list[str] = []

    def look() -> None:
        try:
            with opened(tmp_path / "pipe"):
                pass
        except InputError as error:
            told.append(error.message)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(10)
    assert told


def test_a_runs_folder_is_told_from_its_bundle(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run.evidence.zip").write_bytes(b"")
    with pytest.raises(InputError, match="is a folder, and a bundle is a file") as caught, opened(tmp_path / "run"):
        pass
    assert caught.value.hint == f"the bundle of this run: {tmp_path}/run.evidence.zip"
