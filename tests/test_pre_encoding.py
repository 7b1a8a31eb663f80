"""`encore encode`: what the shards hold, what a killed run leaves, and runs from shards whose audio is gone."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.tiny_model import write_tiny_musicgen

from encore import pre_encoding
from encore.backends.musicgen import MusicgenBackend
from encore.data import shard_writing
from encore.data.catalog import Catalog
from encore.data.encode import TrackEncoder
from encore.data.encoded_tracks import StreamedTracks, clips_of, encoded_in
from encore.data.file_info import Decoding
from encore.data.open_files import file_sha256
from encore.data.shard_writing import Encoded, write_shard, writing_index
from encore.data.shards import (
    INDEX,
    SHARD_TRACKS,
    ShardCatalog,
    ShardIndex,
    ShardTrack,
    ShardTracks,
    codec_identity,
    open_shards,
    shard_path,
)
from encore.data.track_list import read_list
from encore.data.tracks import Track
from encore.errors import EncoreError, InputError, UsageError
from encore.evaluate.inputs import from_run
from encore.plugins import methods
from encore.pre_encoding import EncodeConfig, encode_catalog
from encore.tensor_cache import TensorCache
from encore.unlearn.config import ForgetConfig
from encore.unlearn.run import forget, prepare


@pytest.fixture
def music(studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the studio's music, eight tracks, in shards of three."""
    monkeypatch.setattr(pre_encoding, "SHARD_TRACKS", 3)
    monkeypatch.setattr(shard_writing, "SHARD_TRACKS", 3)
    return Path(shutil.copytree(studio / "music", tmp_path / "music"))


@pytest.fixture
def config(music: Path, studio: Path) -> EncodeConfig:
    return EncodeConfig(music / "catalog.jsonl", Path("tokens"), str(studio / "model"), device="cpu", workers=1)


def append(music: Path, **record: object) -> None:
    with (music / "catalog.jsonl").open("a") as stream:
        stream.write(json.dumps(record) + "\n")


def test_shards_hold_the_codes_texts_and_facts_that_the_audio_gives(config: EncodeConfig, music: Path) -> None:
    told = encode_catalog(config)
    assert (told["tracks"], told["clips"], told["skipped"], told["shards"], told["written"]) == (8, 10, 0, 3, 3)
    backend = MusicgenBackend.load(config.model, offline=True)
    audio = TrackEncoder(backend, TensorCache()).encode(Catalog.open(config.catalog).tracks())
    index = open_shards(config.out)
    index.check_codec(backend)
    for number, encoded in enumerate(audio):
        track = encoded.track
        stored = encoded_in(index, replace(track, shards=config.out))
        assert stored.decoding == encoded.decoding
        assert [clip.caption for clip in stored.clips] == [clip.caption for clip in encoded.clips]
        for mine, theirs in zip(stored.clips, encoded.clips, strict=True):
            assert torch.equal(mine.codes, theirs.codes)
            assert mine.codes.dtype == torch.int64
        text = index.text(track.caption)
        assert text is not None
        assert torch.equal(text, backend.text_embeddings[track.caption])
        assert index.entry(number).track == replace(track, shards=index.folder, source="", place=track.place)
    assert load_file(shard_path(config.out, 0))["codes"].dtype == torch.int16
    again = encode_catalog(config)
    assert (again["written"], again["tracks"]) == (0, 8)


def test_two_processes_write_the_same_files_as_one(config: EncodeConfig) -> None:
    encode_catalog(config)
    encode_catalog(replace(config, out=Path("two"), workers=2))
    for number in range(3):
        assert shard_path(Path("tokens"), number).read_bytes() == shard_path(Path("two"), number).read_bytes()
    assert open_shards(Path("tokens")).about == open_shards(Path("two")).about


@pytest.mark.parametrize("stage", ["before the file", "half a file", "before the index"])
def test_a_run_that_was_killed_at_any_point_is_continued(
    config: EncodeConfig, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    whole = replace(config, out=Path("whole"))
    encode_catalog(whole)
    write, add = pre_encoding.write_shard, shard_writing.IndexWriter.add

    def killed(*arguments: object) -> None:
        raise RuntimeError("killed")

    def killed_while_writing(folder: Path, number: int, *rest: object) -> object:
        if number == 1 and stage == "before the file":
            killed()
        written = write(folder, number, *rest)  # type: ignore[arg-type]
        if number == 1 and stage == "half a file":  # what a file system may leave after a power cut
            path = shard_path(folder, 1)
            path.write_bytes(path.read_bytes()[:100])
            path.with_name(f".staging-1-{path.name}").write_bytes(b"half")
            killed()
        return written

    def killed_before_the_index(index: object, shard: pre_encoding.WrittenShard) -> object:
        return killed() if stage == "before the index" and shard.number == 1 else add(index, shard)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(pre_encoding, "write_shard", killed_while_writing)
        patch.setattr(shard_writing.IndexWriter, "add", killed_before_the_index)
        with pytest.raises(RuntimeError, match="killed"):
            encode_catalog(config)
    with pytest.raises(InputError, match="not complete"):
        ShardCatalog(config.out)
    told = encode_catalog(config)
    assert told["written"] == 2
    assert open_shards(config.out).about == {**open_shards(whole.out).about}
    for number in range(3):
        assert shard_path(config.out, number).read_bytes() == shard_path(whole.out, number).read_bytes()
    assert sorted(path.name for path in config.out.iterdir() if path.name != ".lock") == [
        INDEX, *(shard_path(config.out, number).name for number in range(3)),
    ]  # fmt: skip


def test_what_changed_in_the_catalogue_is_encoded_again(config: EncodeConfig, music: Path) -> None:
    encode_catalog(config)
    shutil.copy(music / "one.wav", music / "copy.wav")
    append(music, file_name="copy.wav", id="copy", caption="the same music", split="forget")
    told = encode_catalog(config)
    assert (told["written"], told["tracks"]) == (1, 8)  # the copy is no track of its own, but another caption
    track = ShardCatalog(config.out).by_id("one")[0]
    assert ShardCatalog(config.out).track(track).captions[-1] == "the same music"
    assert told["clips"] == 11
    lines = (music / "catalog.jsonl").read_text().splitlines()[:3]
    (music / "catalog.jsonl").write_text("\n".join(lines) + "\n")
    assert encode_catalog(config)["tracks"] == 3
    assert not shard_path(config.out, 1).exists()
    shard_path(config.out, 0).unlink()
    assert encode_catalog(config)["written"] == 1


def test_rows_that_repeat_a_file_keep_their_id_and_path_and_share_its_codes(config: EncodeConfig, music: Path) -> None:
    shutil.copy(music / "one.wav", music / "far.wav")
    lines = (music / "catalog.jsonl").read_text().splitlines()
    near = json.dumps({"file_name": "one.wav", "id": "near", "caption": "again", "split": "forget", "artist": "A"})
    (music / "catalog.jsonl").write_text("\n".join([lines[0], near, *lines[1:]]) + "\n")  # near in the same shard
    append(music, file_name="far.wav", id="far", caption="the same music", split="forget")
    encode_catalog(config)
    catalog, audio = ShardCatalog(config.out), Catalog.open(config.catalog)
    assert len(catalog.tracks()) == len(audio.tracks()) == 8
    one = catalog.track(catalog.by_id("one")[0])
    for name, path in (("near", "one.wav"), ("far", "far.wav")):
        track, expected = (source.track(source.by_id(name)[0]) for source in (catalog, audio))
        assert (track.id, track.path, track.artist, track.sha256) == (
            name, (music / path).resolve(), expected.artist, one.sha256,
        )  # fmt: skip
        assert track.caption == expected.caption
        assert {*track.captions} == {*one.captions} > {"again", "the same music"}
        assert torch.equal(
            encoded_in(catalog.shards, track).clips[0].codes, encoded_in(catalog.shards, one).clips[0].codes
        )
    assert [entry.id for entry in catalog.by_path("far.wav")] == ["far"]
    assert [entry.id for entry in catalog.by_path("one.wav")] == ["one", "near"]
    (music.parent / "keep.txt").write_text("id:two\nid:far\n")
    kept = catalog.streamed(read_list(music.parent / "keep.txt", catalog=catalog).tracks)
    assert isinstance(kept, ShardTracks)
    assert [track.id for track in kept] == ["two", "far"]
    assert {clip.track for clip in clips_of(StreamedTracks(kept))} == {"two", "far"}
    assert {track.id for track in kept.of_split("holdout", others=True).by_sha256()[:]} == {"two", "far"}


def test_a_file_that_was_replaced_is_noticed_and_encoded_again(config: EncodeConfig, music: Path) -> None:
    encode_catalog(config)
    (music.parent / "list.txt").write_text("id:one\n")
    before = (music / "one.wav").read_bytes()
    os.utime(music / "one.wav", ns=(1, 1))
    assert encode_catalog(config)["written"] == 0  # the same file at another time
    (music / "one.wav").write_bytes((music / "four.wav").read_bytes() + b"x")
    with pytest.raises(InputError, match=r"one\.wav was replaced since it was encoded"):
        read_list(music.parent / "list.txt", catalog=ShardCatalog(config.out))
    (music / "two.wav").rename(music / "away.wav")
    with pytest.raises(UsageError, match=r"one\.wav was replaced, and can't be encoded again .* two\.wav is gone"):
        encode_catalog(config)
    (music / "away.wav").rename(music / "two.wav")
    assert encode_catalog(config)["written"] == 1
    (track,) = read_list(music.parent / "list.txt", catalog=ShardCatalog(config.out)).tracks
    assert track.sha256 == file_sha256(music / "one.wav")

    lines = [json.loads(line) for line in (music / "catalog.jsonl").read_text().splitlines()]
    hashed = [{**line, "sha256": file_sha256(music / line["file_name"])} for line in lines]
    (music / "catalog.jsonl").write_text("".join(json.dumps(line) + "\n" for line in hashed))
    assert encode_catalog(config)["written"] == 3
    (music / "one.wav").write_bytes(before)
    assert encode_catalog(config)["written"] == 0  # the catalogue says which file is meant, and the codes are its


def test_a_line_less_moves_the_others_and_loses_none(config: EncodeConfig, music: Path) -> None:
    encode_catalog(config)
    lines = (music / "catalog.jsonl").read_text().splitlines()
    (music / "catalog.jsonl").write_text("\n".join(lines[1:]) + "\n")
    assert encode_catalog(config)["tracks"] == len(lines) - 1
    ids = {json.loads(line)["id"] for line in lines[1:]}
    assert {name for (name,) in open_shards(config.out).rows("SELECT id FROM tracks")} == ids
    (music / "catalog.jsonl").write_text("\n".join(lines) + "\n")
    assert encode_catalog(config)["tracks"] == len(lines)


def test_codes_whose_audio_is_gone_are_not_given_up(config: EncodeConfig, music: Path) -> None:
    encode_catalog(config)
    before = {**open_shards(config.out).about}
    (music / "one.wav").unlink()
    lines = (music / "catalog.jsonl").read_text().splitlines()
    (music / "catalog.jsonl").write_text("\n".join([lines[0], *lines[2:]]) + "\n")
    for skip in (False, True):
        with pytest.raises(UsageError, match=r"one.wav can't be encoded again: the audio is gone"):
            encode_catalog(replace(config, skip_unreadable=skip))
        assert open_shards(config.out).about == before
    (music / "catalog.jsonl").write_text("\n".join(lines[1:]) + "\n")  # the catalogue has given it up
    assert encode_catalog(config)["tracks"] == len(lines) - 1


def test_ids_and_splits_are_compared_between_shards(config: EncodeConfig, music: Path) -> None:
    (music / "new.wav").write_bytes((music / "four.wav").read_bytes() + b"x")
    append(music, file_name="new.wav", id="one", caption="another", split="retain")
    with pytest.raises(InputError, match=r"catalog.jsonl, line 9: the id 'one' is already that of .*line 1"):
        encode_catalog(config)
    lines = (music / "catalog.jsonl").read_text().splitlines()[:-1]
    (music / "catalog.jsonl").write_text("\n".join(lines) + "\n")
    append(music, file_name="one.wav", id="again", caption="another", split="holdout")
    with pytest.raises(InputError, match=r"line 9: the same file as .*line 1, in another split"):
        encode_catalog(config)


def test_unreadable_tracks_are_named_or_left_out(config: EncodeConfig, music: Path) -> None:
    (music / "four.wav").write_bytes(b"RIFF of nothing")
    (music / "seven.wav").unlink()
    with pytest.raises(InputError, match=r"2 tracks can't be used: .*four.wav.*seven.wav") as raised:
        encode_catalog(config)
    assert "--skip-unreadable" in raised.value.hint
    with pytest.raises(InputError, match="not complete"):
        ShardCatalog(config.out)
    told = encode_catalog(replace(config, skip_unreadable=True))
    assert (told["tracks"], told["skipped"], told["written"]) == (6, 2, 2)  # the first shard was complete
    assert len(ShardCatalog(config.out).tracks()) == 6
    written = {path.name: path.read_bytes() for path in config.out.glob("*.safetensors")}
    with pytest.raises(InputError, match="2 tracks can't be used"):
        encode_catalog(config)
    assert len(ShardCatalog(config.out).tracks()) == 6  # a refusal leaves what there was
    assert {path.name: path.read_bytes() for path in config.out.glob("*.safetensors")} == written


def test_a_folder_of_something_else_is_refused(config: EncodeConfig, music: Path, tmp_path: Path) -> None:
    encode_catalog(config)
    other = write_tiny_musicgen(tmp_path / "other", seed=1)
    with pytest.raises(UsageError, match="holds the codes of another model"):
        encode_catalog(replace(config, model=str(other)))
    (tmp_path / "elsewhere.jsonl").write_text((music / "catalog.jsonl").read_text())
    with pytest.raises(UsageError, match="holds the codes of another catalogue"):
        encode_catalog(replace(config, catalog=tmp_path / "elsewhere.jsonl"))
    with pytest.raises(UsageError, match="holds other files"):
        encode_catalog(replace(config, out=music))
    backend = MusicgenBackend.load(str(other), offline=True)
    with pytest.raises(InputError, match=r"are of another model, .*differs in codec, text encoder"):
        open_shards(config.out).check_codec(backend)


def test_a_killed_process_is_named(config: EncodeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(pre_encoding, "write_shard", die)
    with pytest.raises(EncoreError, match="a process that encodes was killed"):
        encode_catalog(replace(config, workers=2))


# -------------------------------------------------------------------------------------------------- runs from shards


def request(catalog: Path, studio: Path, music: Path, out: str, **more: object) -> ForgetConfig:
    (music.parent / "ids.txt").write_text("id:one\nid:two\nid:long\n")
    return ForgetConfig(music.parent / "ids.txt", Path(out), model=str(studio / "model"), catalog=catalog, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "options"), [("graddiff", {}), ("encore", {"attack_share": 0.0}), ("ewc", {})])
def test_a_run_from_shards_is_the_run_from_audio(
    config: EncodeConfig,
    music: Path,
    studio: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, float],
) -> None:
    monkeypatch.setattr("encore.unlearn.learned_offsets.MEMORISED", 100.0)  # no search, which needs the audio
    encode_catalog(config)
    chosen = methods().resolve(name)

    def run(catalog: Path, out: str) -> dict[str, object]:
        method = chosen(chosen.Options(steps=3, eval_every=2, **options))
        return forget(prepare(request(catalog, studio, music, out), method), {})

    audio = run(config.catalog, "audio")
    shutil.rmtree(music)
    shards = run(config.out, "shards")
    assert shards["unlearned_sha256"] == audio["unlearned_sha256"]
    assert shards["outcome"] == audio["outcome"]
    assert shards["tracks"] == audio["tracks"]
    inputs = from_run(Path("shards"))
    assert {name: len(members) for name, members in inputs.clips.items()} == {"forget": 5, "retain": 3, "holdout": 2}
    assert not inputs.recordings
    Path("away").mkdir()
    config.out.rename("away/tokens")
    with pytest.raises(InputError, match=r"the shards in .*tokens are missing") as raised:
        from_run(Path("shards"))
    assert "--root" in raised.value.hint
    for root in ("away", "away/tokens"):
        moved = from_run(Path("shards"), roots=[Path(root)])
        assert [clip.track for clip in moved.clips["forget"]] == [clip.track for clip in inputs.clips["forget"]]


def test_a_run_from_shards_says_what_it_can_not_do(
    config: EncodeConfig, music: Path, studio: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encore.unlearn.learned_offsets.LEAST_SECONDS", 0.1)  # the model's window has .6
    encode_catalog(config)
    shutil.rmtree(music)
    notes: list[str] = []

    class Noting:
        def progress(self, *_: object) -> None: ...

        def note(self, text: str) -> None:
            notes.append(text)

    method = methods().resolve("graddiff")
    prepared = prepare(request(config.out, studio, music, "run"), method(method.Options()), Noting())  # type: ignore[arg-type]
    assert any("other offsets can't be searched, since shards hold no audio: one, two, long" in note for note in notes)
    assert any("no audio of it: copies of a track are found by file and by samples" in n for n in prepared.notes)


def test_a_sample_of_a_large_catalogue_is_read_before_the_first_step(
    studio: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = MusicgenBackend.load(str(studio / "model"), offline=True)
    (tmp_path / "tokens").mkdir()
    about = {"codec": codec_identity(backend), "model": "m", "catalog": "/c.jsonl", "folder": "/"}
    (text,) = backend.encode_text(["a"])
    draw = torch.Generator().manual_seed(0)
    with writing_index(tmp_path / "tokens", about) as index:
        index.begin()
        for shard in range(2):
            tracks = []
            for number in range(shard * SHARD_TRACKS, shard * SHARD_TRACKS + 400):
                codes = torch.randint(32, (2, 20), generator=draw, dtype=torch.int16)
                track = Track(f"t{number}", Path(f"/{number}.wav"), f"caption {number}", f"{number:064x}")
                decoding = Decoding(f"{number:064d}", 8000, 1, 1600, "wav")
                tracks.append(Encoded(track, f"{number}.wav", decoding=decoding, windows=[codes]))
            assert not index.add(write_shard(tmp_path / "tokens", shard, "", tracks, lambda _: text))
        index.finish(())
    read: list[int] = []
    codes_of = ShardIndex.codes

    def codes(index: ShardIndex, entry: ShardTrack, window: int) -> torch.Tensor:
        read.append(entry.start)
        return codes_of(index, entry, window)

    monkeypatch.setattr(ShardIndex, "codes", codes)
    (tmp_path / "list.txt").write_text("id:t7\nid:t700\n")
    config = ForgetConfig(tmp_path / "list.txt", Path("run"), model=str(studio / "model"), catalog=Path("tokens"))
    chosen = methods().resolve("graddiff")
    prepared = prepare(config, chosen(chosen.Options(steps=1)))
    assert len(prepared.retain) == len(clips_of(prepared.retain)) == 798
    assert len(read) == 2
    run = forget(prepared, {})
    assert run["tracks"]["retain"] == 798
    assert len(json.loads(Path("run/request.json").read_text())["retain"]) == 798
    assert len(read) == 2 + 64 + 6  # the forget tracks, the sample that is watched, and one batch


def test_codes_of_another_model_are_refused_by_forget(
    config: EncodeConfig, music: Path, studio: Path, tmp_path: Path
) -> None:
    encode_catalog(config)
    other = write_tiny_musicgen(tmp_path / "other", seed=1)
    method = methods().resolve("graddiff")
    config_ = replace(request(config.out, studio, music, "run"), model=str(other))
    with pytest.raises(InputError, match="are of another model"):
        prepare(config_, method(method.Options()))


@pytest.mark.slow
def test_tracks_of_the_embedded_catalogue_are_forgotten_alike_from_shards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from encore import assets

    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "cache"))
    music = Path(shutil.copytree(assets.FOLDER / "tracks", tmp_path / "music/tracks")).parent
    by_split: dict[str, list[str]] = {"forget": [], "retain": [], "holdout": []}
    for line in assets.CATALOG.read_text().splitlines():
        by_split.get(json.loads(line)["split"], []).append(line)
    few = [line for lines in by_split.values() for line in lines[:2]]
    (tmp_path / "list.txt").write_text("".join(f"id:{json.loads(line)['id']}\n" for line in by_split["forget"][:2]))
    (music / "catalog.jsonl").write_text("\n".join(few) + "\n")
    config = EncodeConfig(music / "catalog.jsonl", tmp_path / "tokens", "tiny", device="cpu", workers=2)
    assert encode_catalog(config)["tracks"] == 6
    chosen = methods().resolve("encore")
    hashes = {
        name: forget(
            prepare(
                ForgetConfig(tmp_path / "list.txt", tmp_path / name, catalog=catalog, device="cpu"),
                chosen(chosen.Options(steps=2)),
            ),
            {},
        )["unlearned_sha256"]
        for catalog, name in ((config.catalog, "audio"), (config.out, "shards"))
    }
    assert len(set(hashes.values())) == 1
