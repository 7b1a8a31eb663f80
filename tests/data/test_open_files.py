from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from encore.data.open_files import LIST_CAPS, Caps, file_sha256, locate, open_regular, read_lines
from encore.errors import InputError


def lines_of(data: bytes, caps: Caps = LIST_CAPS, *, compressed: bool = False) -> list[tuple[int, str]]:
    return list(read_lines(io.BytesIO(data), "list", caps, compressed=compressed))


def test_mark_and_line_ends_are_taken_off() -> None:
    assert lines_of(b"\xef\xbb\xbfa\r\nb\n\nc") == [(1, "a"), (2, "b"), (3, ""), (4, "c")]


def test_only_line_ends_end_a_line() -> None:
    assert lines_of(b"a\rb\r\r\nc\r") == [(1, "a"), (2, "b"), (3, ""), (4, "c")]
    assert lines_of("a\x0bb\u2028c\x85d".encode()) == [(1, "a\x0bb\u2028c\x85d")]


def test_bytes_that_are_no_utf8_survive() -> None:
    assert lines_of(b"caf\xff.wav") == [(1, "caf\udcff.wav")]


@pytest.mark.parametrize(
    ("data", "caps", "says"),
    [
        (b"x" * 11, Caps(100, 100, 10), "list, line 1: the line is longer than 10 bytes"),
        (b"\n" * 4, Caps(100, 3, 10), "more than 3 lines"),
        (b"abc\n" * 4, Caps(10, 100, 10), "more than 10 bytes"),
        (b"\xff\xfe\0\xd8a\0", LIST_CAPS, "UTF-16"),
        (b"PK\3\4", LIST_CAPS, "list, line 1: not text"),
        (b"ok\na\0b", LIST_CAPS, "list, line 2: not text"),
    ],
)
def test_excess_and_binary_are_refused(data: bytes, caps: Caps, says: str) -> None:
    with pytest.raises(InputError, match=says):
        lines_of(data, caps)


def test_broken_gzip_is_refused() -> None:
    whole = gzip.compress(b"abc\n" * 1000)
    with pytest.raises(InputError, match="can't be read"):
        lines_of(whole[:-12], compressed=True)
    with pytest.raises(InputError, match="can't be read"):
        lines_of(b"not gzip", compressed=True)


def test_hash_is_the_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc" * 100_000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_a_path_is_found_below_the_first_folder_that_has_it(tmp_path: Path, write: Callable[..., Path]) -> None:
    write("one/a.wav")
    second = write("two/b.wav")
    folders = [tmp_path / "one", tmp_path / "two"]
    assert locate("b.wav", folders, folders, "list") == second.resolve()
    assert locate("../two/b.wav", folders, folders, "list") == second.resolve()
    assert locate(str(second), folders, folders, "list") == second.resolve()
    assert locate("c.wav", folders, folders, "list") is None
    assert locate("x" * 5000, folders, folders, "list") is None


def test_composed_and_decomposed_names_are_one(tmp_path: Path, write: Callable[..., Path]) -> None:
    written = write("caf\u00e9.wav")
    assert locate("cafe\u0301.wav", [tmp_path], [tmp_path], "list") == written.resolve()


def test_missing_and_folder_are_refused_by_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="can't be read: No such file") as absolute:
        open_regular(tmp_path / "none")
    assert absolute.value.hint == ""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"^'sub/none' can't be read: No such file") as relative:
        open_regular("sub/none")
    assert relative.value.hint == f"it was searched for in {tmp_path}"
    with pytest.raises(InputError, match="is a folder"):
        open_regular(tmp_path)
    with pytest.raises(InputError, match="can't be read"):
        open_regular(str(tmp_path / "a\0b"))


def test_a_folder_that_is_allowed_twice_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"leads outside {tmp_path}$"):
        locate("/etc/passwd", (tmp_path,), (tmp_path, tmp_path / "x" / ".."), "list, line 1")
