"""Which tracks are checked and compared with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import soundfile

from encore import assets
from encore.check.music import select_music
from encore.errors import InputError


def test_lists_folders_and_the_split_holdout(studio: Path, tmp_path: Path) -> None:
    music, model = studio / "music", str(studio / "model")
    listed = select_music(str(music / "forget.txt"), model=model, catalog=music / "catalog.jsonl")
    assert [track.path.stem for track in listed.tracks] == ["one", "two", "long"]
    assert listed.source == 'the catalogue\'s split "holdout"'
    assert len(listed.holdout) == 2
    folder = tmp_path / "mine"
    folder.mkdir()
    for name in ("one.wav", "two.wav"):
        shutil.copy(music / name, folder)
    found = select_music(str(folder), model=model, holdout=str(music), catalog=music / "catalog.jsonl")
    assert [track.caption_source for track in found.tracks] == ["file name", "file name"]
    assert found.source == "those given"
    assert len(found.holdout) == 6  # the two checked ones are left out, which have the same audio
    assert "2 of 8 held-out tracks are left out: they are checked" in found.notes
    (one,) = select_music(str(folder / "one.wav"), model=model).tracks
    assert one.id == "one.wav"
    alone = select_music(str(folder), model=model)
    assert [track.caption for track in alone.tracks] == ["one", "two"]
    assert (alone.holdout, alone.source) == ([], "")


def test_a_recording_in_several_files_counts_once(studio: Path, tmp_path: Path) -> None:
    tracks = assets.CATALOG.parent / "tracks"
    for folder, names in (("mine", ("bg_0001", "bg_0002")), ("others", ("bg_0001", "bg_0003"))):
        (tmp_path / folder).mkdir()
        for name in names:
            sound, rate = soundfile.read(tracks / f"{name}.ogg")
            for suffix in ("flac", "wav", "ogg"):
                soundfile.write(tmp_path / folder / f"{name}.{suffix}", sound, rate)
    found = select_music(str(tmp_path / "mine"), model=str(studio / "model"), holdout=str(tmp_path / "others"))
    assert len(found.tracks) == 6
    assert found.one_per_recording(track.id for track in found.tracks) == ["bg_0001.flac", "bg_0002.flac"]
    assert found.one_per_recording(["bg_0002.wav", "bg_0002.ogg"]) == ["bg_0002.wav"]
    assert [track.id for track in found.holdout] == ["bg_0003.flac"]
    assert any(note.startswith("4 tracks are further files of a recording") for note in found.notes)


def test_lines_without_a_track_are_named_and_the_rest_is_checked(studio: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("one.wav\ta\ngone.wav\tb\nartist:\n")
    shutil.copy(studio / "music/one.wav", tmp_path)
    music = select_music(str(tmp_path / "list.txt"), model=str(studio / "model"))
    assert [track.path.stem for track in music.tracks] == ["one"]
    assert "no file 'gone.wav'" in music.refused[0].message
    assert "line 3: 'artist:' has no value" in music.refused[1].message
    (tmp_path / "list.txt").write_text("gone.wav\n")
    with pytest.raises(InputError, match=r"no file 'gone\.wav'"):
        select_music(str(tmp_path / "list.txt"), model=str(studio / "model"))
