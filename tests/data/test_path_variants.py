"""What a path may mean besides what is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from encore.data.path_variants import alike, spellings, why_missing


@pytest.mark.parametrize(
    ("raw", "meant"),
    [("a%20b.wav", "a b.wav"), ("x\\y.wav", "x/y.wav"), ('"a.wav"', "a.wav"), (" a.wav ", "a.wav"), ("x%5Cy", "x/y")],
)
def test_spellings_begin_with_what_is_written(raw: str, meant: str) -> None:
    found = list(spellings(raw))
    assert found[0] == raw
    assert meant in found
    assert len(found) == len(set(found))


def test_a_windows_path_is_not_turned_into_one_of_this_system() -> None:
    assert not any("/" in one for one in spellings("C:\\Music\\a.wav"))


def test_names_are_alike_without_case_where_one_alone_is(tmp_path: Path) -> None:
    (tmp_path / "Sub").mkdir()
    for name in ("One.wav", "TWO.wav", "two.wav"):
        (tmp_path / "Sub" / name).touch()
    if len(list((tmp_path / "Sub").iterdir())) < 3:
        pytest.skip("this file system takes upper and lower case as equal")
    folder = str(tmp_path)
    assert alike(folder, "sub/one.WAV", lambda real: True) == str(tmp_path / "Sub" / "One.wav")
    assert alike(folder, "sub/Two.wav", lambda real: True) is None
    assert alike(folder, "sub/TWO.wav", lambda real: True) == str(tmp_path / "Sub" / "TWO.wav")
    assert alike(folder, "sub/one.WAV", lambda real: False) is None


def test_a_hint_says_where_a_relative_path_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.wav").touch()
    (tmp_path / "lists").mkdir()
    monkeypatch.chdir(tmp_path)
    assert why_missing("data/a.wav", tmp_path / "lists", [tmp_path / "lists"]).endswith("give --root .")
    assert why_missing("data/b.wav", tmp_path / "lists", [tmp_path / "lists"]) == ""
    assert "Windows" in why_missing("D:\\a.wav", tmp_path, [])
