from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from encore.data import decode, duplicates
from encore.data.catalog import Catalog
from encore.data.duplicates import find_duplicates, refusal, threshold, without_duplicates
from encore.data.fingerprint_matching import Alignment, Index, correlation
from encore.data.fingerprints import RATE, fingerprint, landmarks
from encore.data.open_files import file_sha256
from encore.data.tracks import Track
from encore.errors import InputError
from encore.tensor_cache import TensorCache

from .conftest import melody

Write = Callable[..., Path]
Sound = NDArray[np.float32]
ASSETS = Path(__file__).parents[2] / "src" / "encore" / "assets"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "cache"))


def track(path: Path) -> Track:
    return Track(id=path.name, path=path, caption="x", sha256=file_sha256(path))


def song(name: str) -> Sound:
    """A piece of the embedded music, at `RATE`."""
    catalog = Catalog.open(ASSETS)
    return decode.load(ASSETS / catalog.by_id(name)[0].path, sample_rate=RATE).samples[0]


def written(path: Path, sound: Sound, rate: int = RATE, **how: object) -> Track:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, sound, rate, **how)
    return track(path)


def score(sound: Sound, copy: Sound) -> float:
    """How far above the threshold (below: under 0) two recordings are at the alignment that the index proposes."""
    a, b = fingerprint(sound), fingerprint(copy)
    index = Index([landmarks(b.peaks)])
    found = index.find(landmarks(a.peaks), duplicates.LEAST)
    if not found:
        return -1.0
    alignment = index.fitted(found[0][1], landmarks(a.peaks), 0)
    similarity, frames = correlation(alignment, a.bands, b.bands)
    enough = frames >= duplicates.OVERLAP * min(len(a.bands), len(b.bands) / alignment.slope)
    return similarity - threshold(frames) if enough else -1.0


def faster(sound: Sound, speed: float) -> Sound:
    return soxr.resample(sound, RATE * speed, RATE).astype(np.float32)


def stretched(sound: Sound, speed: float) -> Sound:
    return pytest.importorskip("librosa").effects.time_stretch(sound, rate=speed).astype(np.float32)


def noisy(sound: Sound) -> Sound:
    noise = np.random.default_rng(0).standard_normal(len(sound)).astype(np.float32)
    return sound + 0.1 * sound.std() * noise


SAME = {
    "quiet": lambda x: 0.1 * x,
    "clipped": lambda x: np.clip(4 * x, -0.9 * np.abs(x).max(), 0.9 * np.abs(x).max()),
    "trimmed": lambda x: x[2_345:],
    "cut": lambda x: x[: len(x) * 4 // 5],
    "padded": lambda x: np.concatenate([np.zeros(RATE, np.float32), x]),
    "noisy": noisy,
    "duller": lambda x: np.convolve(x, [0.3, 0.3, 0.2, 0.1, 0.1], "same").astype(np.float32),
    "brighter": lambda x: np.convolve(x, [1, -0.8], "same").astype(np.float32),
    "excerpt": lambda x: np.concatenate([melody(9, 8.0, RATE), x, melody(10, 8.0, RATE)]),
    "resampled": lambda x: soxr.resample(soxr.resample(x, RATE, 6_500), 6_500, RATE),
    "all at once": lambda x: noisy(faster(0.2 * x[1_234:], 1.02)),
}


@pytest.mark.parametrize("change", SAME)
@pytest.mark.parametrize("name", ["ode_to_joy", "moonlight"])
def test_one_recording_is_known_again(name: str, change: str) -> None:
    sound = song(name)
    assert score(sound, SAME[change](sound)) > 0.05
    assert score(SAME[change](sound), sound) > 0.05


@pytest.mark.parametrize("speed", [0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 1.005, 1.01, 1.02, 1.03, 1.04, 1.05])
def test_case_B10_a_copy_up_to_five_percent_faster_or_slower_is_found(speed: float) -> None:
    for name in ("twinkle", "camptown", "bg_0084"):
        assert score(song(name), faster(song(name), speed)) > 0, name


@pytest.mark.parametrize("speed", [0.96, 1.04])
def test_case_B10_a_copy_stretched_at_its_pitch_is_found(speed: float) -> None:
    assert score(song("ode_to_joy"), stretched(song("ode_to_joy"), speed)) > 0


@pytest.mark.parametrize("speed", [0.97, 1.0, 1.03])
def test_case_B10_a_whole_song_is_found_whose_copy_is_trimmed_and_at_another_speed(speed: float) -> None:
    names = ["ode_to_joy", "twinkle", "moonlight", "camptown", "fate", "surprise"]
    sound = np.concatenate([song(name) for name in names] * 3)
    assert score(sound, faster(noisy(sound[3 * RATE :]), speed)) > 0.1
    assert score(song("fate"), faster(noisy(sound), speed)) > 0
    assert score(faster(noisy(sound), speed), song("fate")) > 0


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("low.mp3", {"compression_level": 0.99}),
        ("low.ogg", {"compression_level": 0.99}),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}),
        ("a.flac", {"subtype": "PCM_S8"}),
    ],
)
def test_one_recording_encoded_again_lies_far_above_the_threshold(
    write: Write, seed: int, name: str, how: dict[str, object]
) -> None:
    original = decode.load(write("a.wav", seed, 5.0), sample_rate=RATE).samples[0]
    assert score(original, decode.load(write(name, seed, 5.0, **how), sample_rate=RATE).samples[0]) > 0.15


def false_pairs(first: Sequence[Sound], second: Sequence[Sound], tmp_path: Path) -> list[str]:
    """Pairs that are found where there are none; also of the third side."""
    a = [written(tmp_path / "a" / f"{i}.wav", sound) for i, sound in enumerate(first)]
    b = [written(tmp_path / "b" / f"{i}.wav", sound) for i, sound in enumerate(second)]
    return list(map(str, find_duplicates(a, b)))


def excerpts(songs: Sequence[Sound], seconds: float, count: int) -> list[Sound]:
    rng = np.random.default_rng(int(10 * seconds))
    length = int(seconds * RATE)
    chosen = itertools.islice(itertools.cycle(songs), count)
    return [sound[(at := rng.integers(0, max(1, len(sound) - length))) : at + length] for sound in chosen]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 5.0])
def test_case_B11_no_false_pair_among_forty_thousand_of_short_clips(seconds: float, tmp_path: Path) -> None:
    songs = [decode.load(one.path, sample_rate=RATE).samples[0] for one in Catalog.open(ASSETS).tracks()]
    half = len(songs) // 2
    first, second = excerpts(songs[:half], seconds, 200), excerpts(songs[half:], seconds, 200)
    assert false_pairs(first, second, tmp_path) == []


def test_case_B11_no_false_pair_among_clips_of_a_second(tmp_path: Path) -> None:
    songs = [song(name) for name in ("ode_to_joy", "joy_world", "bg_0072", "bg_0082", "bg_0084", "new_world", "fate")]
    pairs = itertools.combinations(range(len(songs)), 2)
    cuts = [excerpts([one], 1.0, 12) for one in songs]
    for i, (a, b) in enumerate(pairs):
        assert false_pairs(cuts[a], cuts[b], tmp_path / str(i)) == []


def test_case_B11_nothing_is_decoded_or_compared_twice(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = TensorCache(tmp_path / "kept")
    forget = [track(write(f"f{seed}.wav", seed, 2.0)) for seed in range(3)]
    retain = [track(write(f"r{seed}.flac", seed, 2.0)) for seed in range(2, 6)]
    holdout = [track(write("h.mp3", 5, 2.0))]
    told: list[tuple[str, int, int]] = []
    first = find_duplicates(forget, retain, holdout, cache=cache, progress=lambda *how: told.append(how))
    assert [(pair.first.id, pair.second.id, pair.kind) for pair in first] == [
        ("f2.wav", "r2.flac", "samples"),
        ("r5.flac", "h.mp3", "recording"),
    ]
    assert ("read tracks", 0, 8) in told
    assert ("read tracks", 8, 8) in told
    assert ("compare tracks", 3, 3) in told

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the cache was not used")

    with monkeypatch.context() as patch:
        patch.setattr("encore.data.file_info.load", never)
        patch.setattr(Index, "find", never)
        assert find_duplicates(forget, retain, holdout, cache=cache) == first
    with monkeypatch.context() as patch:  # another list: compared, from the fingerprints that are kept
        patch.setattr("encore.data.file_info.load", never)
        assert find_duplicates(forget[:2], retain[1:], holdout, cache=cache) == first[1:]


def test_a_cache_that_keeps_nothing_costs_time_alone(
    tmp_path: Path, write: Write, recwarn: pytest.WarningsRecorder
) -> None:
    (tmp_path / "file").write_text("")
    cache = TensorCache(tmp_path / "file" / "cache")
    pairs = find_duplicates([track(write("a.wav", 1, 3.0))], [track(write("a.mp3", 1, 3.0))], cache=cache)
    assert [pair.kind for pair in pairs] == ["recording"]
    assert len(recwarn) == 1


def test_what_cannot_be_decoded_is_said_of_all_files_at_once_or_left_out(tmp_path: Path, write: Write) -> None:
    bad = []
    for name in ("bad1.wav", "bad2.wav"):
        (tmp_path / name).write_bytes(b"RIFF" + name.encode())
        bad.append(track(tmp_path / name))
    good = track(write("a.wav", 1, 3.0))
    with pytest.raises(InputError) as caught:
        find_duplicates([good], [bad[0], good], [bad[1]])
    assert "bad1.wav" in caught.value.message
    assert "bad2.wav" in caught.value.message
    asked: list[str] = []
    pairs = find_duplicates([good], [bad[0], good], bad[1:], skip=lambda one, _: asked.append(one.id) is None)
    assert asked == ["bad1.wav", "bad2.wav"]
    assert [pair.second for pair in pairs] == [good]


def test_one_side_alone_is_not_decoded(tmp_path: Path) -> None:
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    assert find_duplicates([track(tmp_path / "bad.wav")], []) == []


def test_similarity_is_one_with_itself_and_none_with_silence() -> None:
    a = fingerprint(melody(1, 3.0, RATE))
    silence = np.zeros_like(a.bands)
    same = Alignment(1.0, 0.0, 1.0, 1.0, 0)
    assert correlation(same, a.bands, a.bands) == (pytest.approx(1, abs=1e-5), len(a.bands))
    assert correlation(same, a.bands, silence)[0] == -1
    assert correlation(dataclasses.replace(same, offset=1e6), a.bands, a.bands) == (-1, 0)


def test_a_click_and_a_tone_have_fingerprints_too() -> None:
    click = np.zeros(RATE // 10, np.float32)
    click[100] = 1
    tone = np.sin(np.arange(RATE) / 3).astype(np.float32)
    for sound in (click, tone):
        one = fingerprint(sound)
        assert np.isfinite(one.peaks).all()
        assert Index([landmarks(one.peaks)]).find(landmarks(one.peaks), 1) is not None
    assert Index([]).find(landmarks(fingerprint(tone).peaks), 1) == []


def test_pairs_of_all_three_kinds(tmp_path: Path, write: Write) -> None:
    first, second = write("one.wav", 1, 3.0), write("two.wav", 2, 3.0)
    (tmp_path / "copy.wav").write_bytes(first.read_bytes())
    others = [tmp_path / "copy.wav", write("one.flac", 1, 3.0), write("two.mp3", 2, 3.0), write("three.wav", 3, 3.0)]
    retain = [track(path) for path in others]
    pairs = find_duplicates([track(first), track(second)], retain)
    assert [(pair.first.id, pair.second.id, pair.kind) for pair in pairs] == [
        ("one.wav", "copy.wav", "file"),
        ("one.wav", "one.flac", "samples"),
        ("two.wav", "two.mp3", "recording"),
    ]
    assert without_duplicates(retain, pairs) == retain[3:]
    error = refusal(pairs)
    assert error.exit_code == 3
    assert "3 tracks are" in error.message
    assert "one.wav = one.flac (same samples)" in error.message
    assert "--drop-duplicates" in error.hint


def test_case_B9_the_holdout_is_compared_with_both_other_sides(write: Write) -> None:
    forget, retain = [track(write("f.flac", 1, 3.0))], [track(write("r.wav", 2, 3.0))]
    holdout = [track(write("f.mp3", 1, 3.0)), track(write("r.flac", 2, 3.0)), track(write("other.wav", 3, 3.0))]
    pairs = find_duplicates(forget, retain, holdout)
    assert [(pair.sides, pair.second.id, pair.kind) for pair in pairs] == [
        (("forget", "holdout"), "f.mp3", "recording"),
        (("retain", "holdout"), "r.flac", "samples"),
    ]
    assert without_duplicates(holdout, pairs) == holdout[2:]
    error = refusal(pairs)
    assert "1 track is both to be forgotten and in the holdout: f.flac = f.mp3 (same recording" in error.message
    assert "1 track is both to be kept and in the holdout: r.wav = r.flac (same samples)" in error.message
    assert error.hint == "--drop-duplicates takes them out of the holdout set"


def test_the_same_recording_twice_on_one_side_contradicts_nothing(write: Write) -> None:
    forget = [track(write("a.wav", 1, 3.0)), track(write("a.flac", 1, 3.0)), track(write("a.mp3", 1, 3.0))]
    assert find_duplicates(forget, [track(write("b.wav", 2, 3.0))]) == []
    pairs = find_duplicates(forget, [track(write("a.ogg", 1, 3.0))])
    assert {pair.first.id for pair in pairs} == {"a.wav", "a.flac", "a.mp3"}


def test_a_hostile_id_is_escaped_in_the_refusal(write: Write) -> None:
    one = dataclasses.replace(track(write("a.wav", 1, 1.0)), id="a\x1b[2Jb")
    assert "\x1b" not in refusal(find_duplicates([one], [one])).message


def test_stereo_at_another_rate_is_the_same_recording(tmp_path: Path, write: Write) -> None:
    sound = soxr.resample(melody(4, 4.0), 16_000, 44_100)
    soundfile.write(tmp_path / "s.wav", np.stack([sound, 0.5 * sound], 1), 44_100)
    pairs = find_duplicates([track(write("m.wav", 4, 4.0))], [track(tmp_path / "s.wav")])
    assert [pair.kind for pair in pairs] == ["recording"]
