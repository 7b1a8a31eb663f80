from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import soundfile

from encore.data.catalog import Catalog, normalised_isrc
from encore.data.open_files import file_sha256
from encore.errors import InputError

Write = Callable[..., Path]


def test_audiocraft_manifest_with_sidecars(tmp_path: Path, write: Write) -> None:
    path = write("egs/audio/a.flac")
    (tmp_path / "egs/audio/a.json").write_text(json.dumps({"description": "slow waltz", "title": "W"}))
    row = {"path": str(path), "duration": 0.5, "sample_rate": 16000, "amplitude": None, "weight": None}
    for name, data in (
        ("data.jsonl", json.dumps(row).encode()),
        ("data.jsonl.gz", gzip.compress(json.dumps(row).encode())),
    ):
        manifest = tmp_path / "egs" / name
        manifest.write_bytes(data + b"\n" if name.endswith("l") else data)
        catalog = Catalog.open(manifest)
        (track,) = catalog.tracks()
        assert (track.id, track.path, track.caption) == (str(path), path, "slow waltz")
        assert track.meta == {"duration": 0.5, "sample_rate": 16000}
        assert catalog.by_path(path) == catalog.by_path("audio/a.flac") == catalog.records


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_hugging_face_metadata_in_a_folder(tmp_path: Path, write: Write, name: str) -> None:
    path = write("clips/a.wav")
    rows = {"metadata.csv": 'file_name,text,bpm\nclips/a.wav,"fast, loud",120\n'}
    rows["metadata.jsonl"] = '{"file_name": "clips/a.wav", "text": "fast, loud", "bpm": "120"}\n'
    (tmp_path / name).write_text(rows[name])
    (track,) = Catalog.open(tmp_path).tracks()
    assert (track.id, track.path, track.caption) == ("clips/a.wav", path, "fast, loud")
    assert track.meta == {"text": "fast, loud", "bpm": "120"}


def test_lookups(tmp_path: Path, write: Write) -> None:
    path, other = write("a.wav", 1), write("b.wav", 2)
    (tmp_path / "c.csv").write_text("id,file,isrc,caption\nA,a.wav,US-RC1-76-07839,x\nB,b.wav,usrc17607839,y\n")
    catalog = Catalog.open(tmp_path / "c.csv")
    assert [record.id for record in catalog.by_isrc("us rc1 76 07839")] == ["A", "B"]
    assert [record.id for record in catalog.by_id("A")] == ["A"]
    assert catalog.by_isrc("") == catalog.by_sha256("") == catalog.by_id("a") == ()
    assert catalog.by_known_sha256(file_sha256(other)) == ()
    assert [record.id for record in catalog.by_sha256(file_sha256(other).upper())] == ["B"]
    assert [record.id for record in catalog.by_sha256(file_sha256(path))] == ["A"]
    assert catalog.by_sha256("0" * 64) == ()
    assert normalised_isrc("gb-ayE-67-00123") == "GBAYE6700123"


def test_splits(tmp_path: Path, write: Write) -> None:
    write("a.wav", 1)
    write("b.wav", 2)
    (tmp_path / "c.csv").write_text("id,file,caption,split\nA,a.wav,x,forget\nB,b.wav,y,retain\n")
    catalog = Catalog.open(tmp_path / "c.csv")
    assert catalog.splits == ["forget", "retain"]
    assert [track.id for track in catalog.tracks("retain")] == ["B"]
    assert len(catalog.tracks()) == 2
    with pytest.raises(InputError, match="no track of split 'holdout'") as caught:
        catalog.tracks("holdout")
    assert "forget, retain" in caught.value.hint


def test_captions_in_order_of_trust(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    with soundfile.SoundFile(path, "w", 16000, 1, format="FLAC") as file:
        file.title, file.artist, file.genre, file.comment = "Nocturne", "Chopin", "romantic", "solo piano"
        file.write([0.1, -0.1] * 4000)
    rows = tmp_path / "c.jsonl"
    rows.write_text('{"path": "a.flac"}\n')
    (track,) = Catalog.open(rows).tracks()
    assert track.caption == "Nocturne, by Chopin, romantic. solo piano"
    assert (track.title, track.artist) == ("Nocturne", "Chopin")
    rows.write_text('{"path": "a.flac", "title": "Op. 9", "artist": "F. C."}\n')
    assert Catalog.open(rows).tracks()[0].caption == "Op. 9, by F. C."
    (tmp_path / "a.json").write_text('{"title": "t", "caption": "from json"}')
    assert Catalog.open(rows).tracks()[0].caption == "from json"
    (tmp_path / "a.txt").write_text("from\r\ntext")
    assert Catalog.open(rows).tracks()[0].caption == "from text"
    rows.write_text('{"path": "a.flac", "description": "given"}\n')
    assert Catalog.open(rows).tracks()[0].caption == "given"


def test_what_is_no_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no catalogue"):
        Catalog.open(tmp_path)
    (tmp_path / "metadata.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"not '\.parquet'"):
        Catalog.open(tmp_path / "metadata.parquet")
    with pytest.raises(InputError, match="no catalogue") as caught:
        Catalog.open(tmp_path / "metadata.parque")
    assert "metadata.parquet" in caught.value.hint
    (tmp_path / "e.jsonl").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        Catalog.open(tmp_path / "e.jsonl")


def test_one_id_twice_and_missing_files_are_refused_with_their_line(tmp_path: Path, write: Write) -> None:
    write("a.wav")
    write("b.wav", 1)
    (tmp_path / "c.csv").write_text("id,file,caption\nA,a.wav,x\nA,b.wav,y\n")
    with pytest.raises(InputError, match=r"c.csv, line 3: the id 'A' is already that of line 2"):
        Catalog.open(tmp_path / "c.csv").tracks()
    (tmp_path / "c.csv").write_text("id,file,caption\nA,none.wav,x\n")
    with pytest.raises(InputError, match=r"c.csv, line 2: no file 'none.wav'"):
        Catalog.open(tmp_path / "c.csv").tracks()


@pytest.mark.parametrize("sidecar", ['{"caption"', "[" * 60_000])
def test_a_broken_sidecar_is_named(tmp_path: Path, write: Write, sidecar: str) -> None:
    write("a.wav")
    (tmp_path / "a.json").write_text(sidecar)
    (tmp_path / "c.csv").write_text("file\na.wav\n")
    with pytest.raises(InputError, match=r"a.json: not JSON"):
        Catalog.open(tmp_path / "c.csv").tracks()


def test_the_opt_out_list_names_the_forget_split_of_the_embedded_catalogue() -> None:
    from encore.data.track_list import read_list

    catalog = Catalog.open(Path(str(files("encore.assets"))))
    listed = read_list(Path(__file__).parents[2] / "examples" / "opt-out.txt", catalog=catalog)
    assert [track.id for track in listed.tracks] == [track.id for track in catalog.tracks("forget")]


def test_a_split_is_one_in_any_case(tmp_path: Path, write: Write) -> None:
    write("a.wav", 1)
    write("b.wav", 2)
    (tmp_path / "c.csv").write_text("file,caption,Split\na.wav,x,Holdout\nb.wav,y,train \n")
    catalog = Catalog.open(tmp_path / "c.csv")
    assert catalog.splits == ["holdout", "train"]
    assert [track.meta["split"] for track in catalog.tracks()] == ["holdout", "train"]
    assert [track.id for track in catalog.tracks("HOLDOUT")] == ["a.wav"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [("folk", "folk"), (["folk", "rock"], "folk, rock"), (3, "3"), ([None, "nan", "a\nb"], "a b"), ([], None)],
)
def test_a_genre_is_one_line_of_text_whatever_it_was_written_as(
    tmp_path: Path, write: Write, given: object, kept: str | None
) -> None:
    write("a.wav")
    row = {"path": "a.wav", "caption": "x", "Genre": given, "split": ["train"], "title": "T\ud83c"}
    (tmp_path / "c.jsonl").write_text(json.dumps(row) + "\n")
    (track,) = Catalog.open(tmp_path / "c.jsonl").tracks()
    assert (track.meta.get("genre"), track.meta.get("split"), track.title) == (kept, None, "T\ud83c")


def test_a_hash_is_looked_up_past_records_that_lead_nowhere(tmp_path: Path, write: Write) -> None:
    path = write("music/a.wav")
    rows = [{"path": "a.wav", "caption": "x"}, {"path": "/etc/hosts", "caption": "y"}, {"path": ".", "caption": "z"}]
    (tmp_path / "music/c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    catalog = Catalog.open(tmp_path / "music/c.jsonl")
    assert [record.path for record in catalog.by_sha256(file_sha256(path))] == ["a.wav"]
