"""Which tracks a run is about."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile

from encore import assets
from encore.data.splits import open_catalog, reported, retain_sets, select
from encore.data.tracks import Track
from encore.errors import InputError, UsageError


@pytest.fixture
def music(studio: Path) -> Path:
    return studio / "music"


def ids(tracks: tuple[Track, ...] | list[Track]) -> list[str]:
    return [track.id for track in tracks]


def test_lists_only(music: Path) -> None:
    chosen = select(music / "forget.txt", catalog=None, retain=str(music / "retain.txt"), holdout=music / "holdout.txt")
    assert ids(chosen.forget) == ["one.wav", "two.wav", "long.wav"]
    assert ids(chosen.retain) == ["four.wav", "five.wav", "six.wav"]
    assert ids(chosen.holdout) == ["seven.wav", "eight.wav"]
    alone = select(music / "forget.txt", catalog=None)
    assert (alone.retain, alone.holdout, alone.retain_source) == ((), (), "nothing")


def test_a_catalogue_gives_what_no_list_does(music: Path) -> None:
    catalog = open_catalog(music / "catalog.jsonl", "a model")
    chosen = select(music / "forget.txt", catalog=catalog)
    assert ids(chosen.forget) == ["one", "two", "long"]  # known files go by the catalogue's ids
    assert ids(chosen.retain) == ["four", "five", "six"]
    assert ids(chosen.holdout) == ["seven", "eight"]
    own = select(music / "forget.txt", catalog=catalog, retain="self")
    assert (own.retain, own.retain_source) == ((), "generations of the base model")


def test_the_embedded_model_has_its_catalogue_and_others_none(music: Path) -> None:
    assert open_catalog(None, str(music)) is None
    if assets.CATALOG.exists():
        catalog = open_catalog(None, "tiny")
        assert catalog is not None
        assert {"forget", "retain", "holdout"} <= set(catalog.splits)


def test_holdout_is_on_no_other_side(music: Path) -> None:
    with pytest.raises(InputError, match=r"both to be forgotten and in the holdout: one\.wav"):
        select(music / "forget.txt", catalog=None, holdout=music / "forget.txt")
    with pytest.raises(InputError, match=r"both to be kept and in the holdout: four\.wav"):
        select(music / "forget.txt", catalog=None, retain=str(music / "retain.txt"), holdout=music / "retain.txt")


def encoded(source: Path, target: Path) -> Path:
    """A recording in another file, as its name says."""
    sound, rate = soundfile.read(source, dtype="int16")
    soundfile.write(target, sound, rate)
    return target


@pytest.mark.parametrize("side", ["forget", "retain"])
def test_case_B9_a_holdout_track_that_is_another_sides_in_other_bytes_is_refused_or_dropped(
    music: Path, tmp_path: Path, side: str
) -> None:
    for name in ("forget", "retain", "holdout"):
        rows = (music / f"{name}.txt").read_text()
        (tmp_path / f"{name}.txt").write_text(rows)
    for file in music.glob("*.wav"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    known = {"forget": "one.wav", "retain": "four.wav"}[side]
    encoded(music / known, tmp_path / "same.flac")
    with (tmp_path / "holdout.txt").open("a") as listing:
        listing.write("same.flac\tunder another name\n")
    told: list[tuple[str, int, int]] = []
    how = {"catalog": None, "retain": str(tmp_path / "retain.txt"), "holdout": tmp_path / "holdout.txt"}
    why = {"forget": "to be forgotten", "retain": "to be kept"}[side]
    with pytest.raises(InputError, match=rf"both {why} and in the holdout: {known} = same\.flac \(same samples\)"):
        select(tmp_path / "forget.txt", **how, progress=lambda *step: told.append(step))
    assert {stage for stage, _, _ in told} == {"read tracks", "compare tracks"}
    chosen = select(tmp_path / "forget.txt", **how, drop_duplicates=True)
    assert ids(chosen.forget) == ["one.wav", "two.wav", "long.wav"]
    assert ids(chosen.retain) == ["four.wav", "five.wav", "six.wav"]
    assert ids(chosen.holdout) == ["seven.wav", "eight.wav"]
    assert "1 of 3 tracks to compare with were left out: they are also to be forgotten or kept" in chosen.notes


def test_a_root_lets_a_list_lead_elsewhere(music: Path, tmp_path: Path) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text(f"{music / 'one.wav'}\tx\n")
    with pytest.raises(InputError, match="leads outside") as caught:
        select(listing, catalog=None)
    assert "--root" in caught.value.hint
    assert ids(select(listing, catalog=None, roots=[music]).forget) == ["one.wav"]


def test_duplicates_are_refused_or_dropped(music: Path) -> None:
    twice = str(music / "forget.txt")
    with pytest.raises(InputError, match="3 tracks are both to be forgotten and to be kept"):
        select(music / "forget.txt", catalog=None, retain=twice)
    dropped = select(music / "forget.txt", catalog=None, retain=twice, drop_duplicates=True)
    assert dropped.retain == ()
    assert "3 of 3 tracks to keep were left out" in dropped.notes[-1]


def test_stdin_serves_one_list(music: Path) -> None:
    with pytest.raises(UsageError, match="only one list"):
        select("-", catalog=None, holdout=Path("-"))


def test_what_an_evaluation_reports_on() -> None:
    plain = [Track(f"t{i}", Path("x"), "c", "0") for i in range(40)]
    assert len(reported(plain, 32, seed=1)) == 32
    assert reported(plain, 32, seed=1) == reported(plain, 32, seed=1) != reported(plain, 32, seed=2)
    assert len(reported(plain[:5], 32, seed=0)) == 5
    split = [Track("r", Path("x"), "c", "0", meta={"split": "retain"}), *plain]
    assert ids(reported(split, 32, seed=0)) == ["r"]
    known = [Track(f"k{i}", Path("x"), "c", "0", meta={"split": "forget"}) for i in range(8)]
    found = ids(reported([*plain, *known], 32, seed=0))
    assert (len(found), set(ids(known)) - set(found)) == (32, set())


def test_case_E7_the_retain_sets_of_forget_and_eval_are_named() -> None:
    plain = [Track(f"t{i}", Path("x"), "c", "0") for i in range(40)]
    split = [Track("r", Path("x"), "c", "0", meta={"split": "retain"}), *plain]
    said = retain_sets(split, reported(split, 32, 0), 16)
    assert said == (
        '`encore eval` measures retain on 1 of 41 tracks kept, the catalogue\'s split "retain"; '
        "`encore forget` watched 16 of the 41"
    )
    assert "32 of 40 tracks kept, chosen by --seed" in retain_sets(plain, reported(plain, 32, 0), 16)
    assert retain_sets(plain[:5], plain[:5], 5) == "`encore eval` measures retain on all 5 tracks kept"
    assert "forget" not in retain_sets(plain, plain[:3], None)
