"""A folder of audio: which files are tracks, and where their captions come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from encore.data.catalog import Catalog
from encore.data.folders import read_folder
from encore.errors import InputError


def test_a_folder_is_its_audio_files_with_the_captions_there_are(tmp_path: Path) -> None:
    folder = tmp_path / "music"
    (folder / "album").mkdir(parents=True)
    for number, name in enumerate(("03 - Slow_Waltz.wav", "album/b.flac", "album/c.wav", "d.wav", "none.wav")):
        soundfile.write(folder / name, np.sin(np.arange(800) * (number + 1) / 9).astype("float32"), 8000)
    shutil.copy(folder / "album/b.flac", folder / "e.flac")
    (folder / "album/c.txt").write_text("a choir")
    (folder / "d.json").write_text("{")  # a side-car file that can't be read
    (folder / "cover.png").write_bytes(b"png")
    (folder / ".hidden.wav").write_bytes(b"")
    (tmp_path / "elsewhere.wav").write_bytes(b"")
    (folder / "leads out.wav").symlink_to(tmp_path / "elsewhere.wav")
    (folder / "metadata.jsonl").write_text(
        '{"file_name": "album/b.flac", "id": "b", "caption": "brass", "artist": "B"}'
    )
    errors: list[InputError] = []
    notes: list[str] = []
    tracks = read_folder(folder, catalog=Catalog.open(folder), errors=errors, notes=notes)
    assert [(track.id, track.caption, track.caption_source, track.artist) for track in tracks] == [
        ("03 - Slow_Waltz.wav", "Slow Waltz", "file name", None),
        ("b", "brass", "catalogue", "B"),
        ("album/c.wav", "a choir", "side-car", None),
        ("none.wav", "music", "file name", None),
    ]
    assert "d.json" in errors[0].message
    assert "leads outside" in errors[1].message
    assert notes[0] == "e.flac is the same file as b: used once"
    assert notes[1].startswith("2 of 7 files have no caption beside them")


def test_two_files_of_one_id_are_two_tracks_and_a_broken_link_is_named(tmp_path: Path) -> None:
    for name, level in (("a.wav", 0.1), ("b.wav", 0.2)):
        soundfile.write(tmp_path / name, np.full(800, level), 8000)
    (tmp_path / "gone.wav").symlink_to(tmp_path.parent / "nowhere.wav")
    rows = [{"file_name": f"{name}.wav", "id": "s1", "text": name} for name in "ab"]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    errors: list[InputError] = []
    tracks = read_folder(tmp_path, catalog=Catalog.open(tmp_path), errors=errors, notes=[])
    assert [track.id for track in tracks] == ["s1", f"s1~{tracks[1].sha256[:8]}"]
    assert "'gone.wav' can't be read" in errors[0].message


def test_a_folder_without_audio_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no audio file"):
        read_folder(tmp_path, errors=[], notes=[])
