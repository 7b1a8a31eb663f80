"""Reading shards: clips by their place, bounded memory, look-ups, and files that were damaged."""

from __future__ import annotations

import gc
import json
import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from encore.data import shards
from encore.data.duplicates import find_duplicates
from encore.data.encoded_tracks import StreamedClips, StreamedTracks, clips_of
from encore.data.file_info import Decoding
from encore.data.shard_writing import Encoded, write_shard, writing_index
from encore.data.shards import ShardCatalog, ShardIndex, ShardTexts, ShardTracks, catalog_at, open_shards, shard_path
from encore.data.splits import reported, select
from encore.data.track_list import read_list
from encore.data.tracks import Track
from encore.errors import InputError

SPLITS = ("forget", "retain", "background", "holdout")


def text(caption: str) -> Tensor:
    return torch.full((len(caption), 2), float(len(caption)))


def encoded(number: int, *, pcm: int | None = None) -> Encoded:
    generator = torch.Generator().manual_seed(number)
    windows = [torch.randint(9, (2, 3 + i), generator=generator, dtype=torch.int16) for i in range(1 + number % 3)]
    track = Track(
        f"t{number}", Path(f"/music/{number}.wav"), f"caption {number}", f"{number:064x}", isrc=f"GB{number % 5}",
        artist=f"A{number} feat. B" if number < 3 else None,
        meta={"split": SPLITS[number % 4]}, more_captions=("more",) if number % 2 else (), caption_source="catalogue",
        place=f"c.jsonl, line {number}",
    )  # fmt: skip
    samples = number if pcm is None else pcm
    decoding = Decoding(f"{samples:064d}", 8000, 1, 8000, "wav")
    return Encoded(track, f"{number}.wav", decoding=decoding, windows=windows)


def write(folder: Path, tracks: Sequence[Encoded], size: int = 4) -> Path:
    folder.mkdir()
    about = {"codec": {"codec": "a hash"}, "model": "m", "catalog": "/music/c.jsonl", "folder": "/music"}
    with writing_index(folder, about) as index:
        index.begin()
        for number, start in enumerate(range(0, len(tracks), size)):
            assert not index.add(write_shard(folder, number, "records", tracks[start : start + size], text))
        index.finish(())
    return folder


@pytest.fixture
def tracks(monkeypatch: pytest.MonkeyPatch) -> list[Encoded]:
    monkeypatch.setattr("encore.data.shard_writing.SHARD_TRACKS", 4)
    return [encoded(number) for number in range(11)]


@pytest.fixture
def folder(tracks: list[Encoded], tmp_path: Path) -> Path:
    return write(tmp_path / "tokens", tracks)


@pytest.fixture
def index(folder: Path) -> ShardIndex:
    return open_shards(folder)


def test_clips_are_those_that_were_written_in_any_order(tracks: list[Encoded], index: ShardIndex) -> None:
    streamed = StreamedTracks(ShardTracks(index, index.numbers()))
    expected = [
        (one.track.id, caption, window.long())
        for one in tracks
        for caption in one.track.captions
        for window in one.windows
    ]
    clips = clips_of(streamed)
    assert isinstance(clips, StreamedClips)
    assert len(clips) == len(expected)
    for place in (5, 0, -1, 12, *range(len(clips))):
        track, caption, codes = expected[place]
        clip = clips[place]
        assert (clip.track, clip.caption) == (track, caption)
        assert torch.equal(clip.codes, codes)
    assert [clip.track for clip in clips[2:5]] == [track for track, *_ in expected[2:5]]
    with pytest.raises(IndexError):
        clips[len(clips)]
    eager = [clip for one in streamed for clip in one.clips]
    assert [(clip.track, clip.caption) for clip in eager] == [(track, caption) for track, caption, _ in expected]


def test_a_clip_in_use_is_one_object_and_others_are_not_kept(index: ShardIndex) -> None:
    clips = StreamedClips(ShardTracks(index, index.numbers()))
    clip = clips[3]
    assert clips[3] is clip
    del clip
    gc.collect()
    assert not clips._in_use


def test_latents_keep_their_type(tmp_path: Path) -> None:
    one = encoded(0)
    latents = replace(one, windows=[torch.randn(3, 5)])
    clip = StreamedClips(ShardTracks(index := open_shards(write(tmp_path / "latents", [latents])), index.numbers()))[0]
    assert torch.equal(clip.codes, latents.windows[0])


def test_few_text_encodings_are_in_memory(index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "TEXTS", 3)
    at_hand = torch.ones(1, 2)
    texts = ShardTexts(index, {"at hand": at_hand}, torch.device("cpu"))
    assert "caption 4" in texts
    assert "caption 99" not in texts
    for number in (*range(11), 3):
        caption = f"caption {number}"
        assert torch.equal(texts[caption], text(caption))
        assert len(texts) <= 4
    assert texts["at hand"] is at_hand
    with pytest.raises(KeyError):
        texts["caption 99"]


def test_lists_name_tracks_by_id_isrc_hash_and_path_without_any_file(folder: Path, tmp_path: Path) -> None:
    catalog = catalog_at(folder)
    assert isinstance(catalog, ShardCatalog)
    lines = ["id:t1", f"sha256:{2:064X}", "3.wav\tmine", "/music/4.wav", "isrc:gb-0"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    found = read_list(tmp_path / "list.txt", catalog=catalog).tracks
    assert [track.id for track in found] == ["t1", "t2", "t3", "t4", "t0", "t5", "t10"]
    assert all(track.shards == folder for track in found)
    assert found[2].captions == ("mine", "caption 3", "more")
    (tmp_path / "list.txt").write_text("artist:b\n")
    assert [track.id for track in read_list(tmp_path / "list.txt", catalog=catalog).tracks] == ["t0", "t1", "t2"]
    (tmp_path / "list.txt").write_text("artist:A22\n")
    with pytest.raises(InputError) as raised:
        read_list(tmp_path / "list.txt", catalog=catalog)
    assert "did you mean 'A2'" in raised.value.hint
    (tmp_path / "list.txt").write_text("id:t11")
    with pytest.raises(InputError, match=r"no track of .*tokens has id 't11'") as raised:
        read_list(tmp_path / "list.txt", catalog=catalog)
    assert "did you mean 'id:t1" in raised.value.hint or "did you mean 't1" in raised.value.hint


def test_the_catalogue_less_the_list_is_kept_and_holdout_is_compared_with(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "list.txt").write_text("id:t0\nid:t1\n")
    chosen = select(tmp_path / "list.txt", catalog=catalog_at(folder))
    assert isinstance(chosen.retain, ShardTracks)
    assert [track.id for track in chosen.retain] == ["t2", "t4", "t5", "t6", "t8", "t9", "t10"]
    assert [track.id for track in chosen.holdout] == ["t3", "t7"]
    assert reported(chosen.retain, 3, 0) == reported(list(chosen.retain), 3, 0)
    (tmp_path / "keep.txt").write_text("id:t9\nid:t5\n")
    chosen = select(tmp_path / "list.txt", catalog=catalog_at(folder), retain=str(tmp_path / "keep.txt"))
    assert isinstance(chosen.retain, ShardTracks)
    assert [track.id for track in chosen.retain] == ["t9", "t5"]
    monkeypatch.setattr("encore.data.splits.HELD_OUT", 1)
    chosen = select(tmp_path / "list.txt", catalog=catalog_at(folder))
    assert len(chosen.holdout) == 1
    assert any("1 of 2 held-out tracks" in note for note in chosen.notes)


def test_copies_are_found_by_their_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("encore.data.shard_writing.SHARD_TRACKS", 4)
    index = open_shards(write(tmp_path / "tokens", [*(encoded(n) for n in range(8)), encoded(9, pcm=2)]))
    retain = ShardTracks(index, index.numbers("id != 't2'"))
    (pair,) = find_duplicates([index.entry(2).track], retain)
    assert (pair.first.id, pair.second.id, pair.kind) == ("t2", "t9", "samples")
    assert len(retain.of_files([pair.second.sha256], others=True)) == 7


def test_damaged_shards_are_refused_by_name(folder: Path, index: ShardIndex) -> None:
    clips = StreamedClips(ShardTracks(index, index.numbers("shard = 0")))
    path = shard_path(folder, 0)
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40], b"", whole[:-400] + bytes(400), b"\xff" * 200):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"shard-00000\.safetensors") as raised:
            [clip.codes for clip in clips] + [index.text(f"caption {number}") for number in range(4)]
        assert "encore encode" in raised.value.hint
    path.unlink()
    with pytest.raises(InputError, match=r"shard-00000\.safetensors: No such file"):
        clips[0]


def test_a_damaged_index_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no shards of tracks"):
        open_shards(tmp_path)
    with sqlite3.connect(folder / shards.INDEX) as database:
        database.execute("UPDATE about SET value = ? WHERE key = 'format'", (json.dumps(99),))
    database.close()
    with pytest.raises(InputError, match="another version of Encore"):
        open_shards(folder)
    (folder / shards.INDEX).write_bytes(b"no database, and longer than its header")
    with pytest.raises(InputError, match="can't be read"):
        open_shards(folder)
