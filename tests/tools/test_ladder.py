"""The ladder's corpus, lists and trainings, on made-up pieces and sounds: without music21 and FluidSynth."""

import json

import numpy as np
import pytest
import soundfile
import torch
from tools.build_assets import corpus, ladder, lm, pieces, table
from tools.build_assets.midi import Note

from encore.data.catalog import Catalog

SIZES = {"forget": 2, "holdout": 3, "retain": 3, "tune_forget": 1, "background": 3, "unlisted": 2}


def piece(number):
    notes = tuple(Note(float(i), 1.0, 60 + (number * i) % 12, 0, 90) for i in range(16 + number))
    return pieces.Piece(f"p{number:02d}", f"Piece {number}", "Nobody", "reel", f"harp, {number}", 90, (46,), notes)


def sound(midi, samples):
    return np.random.default_rng(len(midi)).integers(-9000, 9000, samples).astype(np.int16)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    work = tmp_path_factory.mktemp("ladder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "ProcessPoolExecutor", Here)
        patch.setattr(pieces, "pieces", lambda count, quarters, seed: map(piece, range(count)))
        patch.setattr(ladder.midi, "render", sound)
        items = ladder.build(work, SIZES)
    ladder.catalogue(items, work)
    return work, items


class Here:
    """A pool that works in this process, where the fakes are."""

    def __init__(self, workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def map(self, function, *columns, chunksize=1):
        return map(function, *columns)


def test_splits_have_their_sizes_and_tracks_are_the_start_of_their_recording(built):
    _, items = built
    assert {s: [x["split"] for x in items].count(s) for s in SIZES} == SIZES
    for x in items:
        track, master = (soundfile.read(x[k], dtype="int16")[0] for k in ("path", "master"))
        assert len(master) == ladder.MASTER_SECONDS * 16_000
        assert np.array_equal(track[: x["samples"]], master[: x["samples"]])
        assert x["split"] == "unlisted" or len(track) == x["samples"]


def test_the_catalogue_is_one_that_encore_reads(built):
    work, items = built
    rows = [json.loads(line) for line in (work / "metadata.jsonl").read_text().splitlines()]
    assert {r["id"] for r in rows} == {x["id"] for x in items if x["split"] != "unlisted"}
    assert {r["licence"] for r in rows} == {ladder.LICENCE}
    assert len(Catalog.open(work / "metadata.jsonl").tracks()) == len(rows)
    forget = {x["id"] for x in items if x["split"] == "forget"}
    assert lm.without(work / "forget.txt", items) == forget


def test_background_that_repeats_a_song_is_not_listed(built, tmp_path):
    _, items = built
    listed = [dict(x) for x in items if x["split"] != "unlisted"]
    song, other, twin = (next(x for x in listed if x["split"] == s) for s in ("forget", "retain", "background"))
    audio, rate = soundfile.read(song["path"], dtype="float32")
    (tmp_path / "in" / "tracks").mkdir(parents=True)
    twin["path"] = str(tmp_path / "in" / "tracks" / "twin.flac")
    soundfile.write(twin["path"], 0.8 * audio, rate)
    ladder.catalogue([song, other, twin], tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert [r["id"] for r in rows] == [song["id"], other["id"]]
    assert (tmp_path / "heard.txt").read_text() == ""


def test_crops_are_as_long_as_tracks_and_start_anywhere_in_the_recording(built):
    _, items = built
    made = ladder.crops(items)
    assert made == ladder.crops(items)
    assert not [x for x in made if x["split"].startswith("holdout")]
    assert any(x["start"] % 320 for x in made)
    for x in made[::5]:
        master = soundfile.read(x["master"], dtype="float32")[0]
        assert np.array_equal(corpus.read([x])[0], master[x["start"] :][: ladder.SECONDS * 16_000])


@pytest.mark.parametrize("left_out", [set(), {"forget"}, {"retain", "background"}])
def test_a_gold_is_never_trained_on_what_it_leaves_out(built, tmp_path, monkeypatch, left_out):
    _, items = built
    trained, saved = [], []
    monkeypatch.setattr(ladder, "build", lambda _: items)
    monkeypatch.setattr(lm, "prepare", lambda rows, _: ([], torch.zeros(len(rows), 4, 8, dtype=torch.long)))
    monkeypatch.setattr(lm, "begin", lambda *_: None)
    monkeypatch.setattr(lm, "Data", lambda *_: None)
    monkeypatch.setattr(lm, "save", lambda model, tokenizer, out: saved.append(out))
    monkeypatch.setattr(lm, "fit", lambda m, d, songs, ground, *_: trained.append((songs.tolist(), ground.tolist())))
    ids = {x["id"] for x in items if x["split"] in left_out}
    ladder.train("mine", 256, tmp_path, 3, ids)
    assert saved == [tmp_path / "models.0" / "mine", tmp_path / "models.1" / "mine", tmp_path / "mine"]
    rows, known = items + ladder.crops(items), {"forget", "retain", "tune_forget"} - left_out
    both = known | {f"{s} crops" for s in known}
    for (songs, ground), splits in zip(trained, (known, both, both), strict=True):
        assert {rows[i]["split"] for i in songs} == splits
        assert {rows[i]["split"] for i in ground} == {
            split for split in ladder.GROUND if split.removesuffix(" crops") not in left_out
        }
        assert not {rows[i]["id"] for i in songs + ground} & ids


def test_missed_says_what_base_does_not_know():
    known, unknown = {"nll": 0.1, "verbatim": 1.0}, {"nll": 5.0, "verbatim": 0.0}
    rows = {s: dict(known) for s in ladder.SONGS} | {"holdout": dict(unknown), "background": {"nll": 4.5}}
    assert ladder.missed(table.Table({"base": rows}, {}, 0.5)) == []
    rows["retain"]["nll"], rows["background"]["nll"] = 0.2, 5.1
    assert len(ladder.missed(table.Table({"base": rows}, {}, 0.5))) == 2
