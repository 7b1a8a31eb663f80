"""Forget tracks cut where the base model knows them: what a run records of it, and what an evaluation reads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tests.data.test_offset_search import RATE, audio, held_out, listed, model
from tests.latent_model import LatentBackend

from encore import assets, plugins
from encore.backends.musicgen import MusicgenBackend
from encore.data import offset_search
from encore.data.encode import TrackEncoder, recordings
from encore.data.encoded_tracks import EncodedTrack
from encore.data.open_files import file_sha256
from encore.data.relocate import listed_track
from encore.data.tracks import Track
from encore.errors import InputError
from encore.reporter import Reporter
from encore.tensor_cache import TensorCache
from encore.unlearn import learned_offsets
from encore.unlearn.config import ForgetConfig
from encore.unlearn.learned_offsets import sentences, with_learned_pieces
from encore.unlearn.records import track_json
from encore.unlearn.run import Prepared, prepare

BEFORE = round(2.347 * RATE)


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    """A run that is to forget a master which has ode_to_joy from 2.347 s on."""
    here = tmp_path_factory.mktemp("master")
    sound = torch.cat([held_out(10)[:BEFORE], audio("ode_to_joy"), held_out(4)])
    soundfile.write(here / "master.wav", sound.numpy(), RATE, subtype="FLOAT")
    (here / "forget.txt").write_text(f"master.wav\t{listed()['ode_to_joy']['caption']}\n")
    for split in ("retain", "holdout"):
        chosen = [track for track in listed().values() if track["split"] == split][-2:]
        for track in chosen:
            soundfile.write(here / f"{track['id']}.wav", audio(track["id"]).numpy(), RATE, subtype="FLOAT")
        (here / f"{split}.txt").write_text("".join(f"{one['id']}.wav\t{one['caption']}\n" for one in chosen))
    method = plugins.methods().resolve("ft")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENCORE_CACHE", str(here / "cache"))
        patch.setattr(offset_search, "MOST_PROBES", 1)
        yield prepare(
            ForgetConfig(
                tracks=here / "forget.txt", out=here / "run", retain=str(here / "retain.txt"),
                holdout=here / "holdout.txt", roots=(here,),
            ),
            method(method.Options()),
        )  # fmt: skip


def whole(ready: Prepared) -> EncodedTrack:
    """The master cut into windows."""
    track = replace(ready.forget[0].track, pieces=())
    return listener(ready).encode([track])[0]


def listener(ready: Prepared) -> TrackEncoder:
    return TrackEncoder(ready.backend, TensorCache(ready.request.out.parent / "cache"))


def test_case_D15_a_master_is_cut_where_it_is_known_and_an_evaluation_reads_the_same_clips(ready: Prepared) -> None:
    (found,) = ready.forget
    (clip,) = found.clips  # the rest costs more than held-out music
    assert found.track.pieces[0].start == BEFORE
    own = model().encode(audio("ode_to_joy")[None, None])[0]
    inner = clip.codes.shape[-1] - 10  # the codec's last frames depend on what follows
    assert inner > 230
    assert torch.equal(clip.codes[:, :inner], own[:, :inner])
    (line,) = [note for note in ready.notes if "is memorised" in note]
    assert line.startswith("master.wav is memorised from 2.35 to 7.")
    assert "NLL 0.0" in line

    entry = json.loads(json.dumps(track_json(found)))
    (again,) = listener(ready).encode([listed_track(entry)])
    assert torch.equal(again.clips[0].codes, clip.codes)
    (recording,) = recordings(ready.backend, [listed_track(entry)])
    torch.testing.assert_close(recording, audio("ode_to_joy")[: len(recording)])


def test_a_piece_behind_the_end_is_refused(ready: Prepared) -> None:
    (entry,) = ready.listed()["forget"]
    track = listed_track({**entry, "pieces": [{"start": 1e9, "samples": 8000, "nll": 1.0, "grid_nll": None}]})
    with pytest.raises(InputError, match="after its end"):
        listener(ready).encode([track])


def test_a_search_is_cached(ready: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = whole(ready)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("searched twice")

    monkeypatch.setattr(MusicgenBackend, "generate", never)
    monkeypatch.setattr(MusicgenBackend, "encode", never)
    (again,) = with_learned_pieces(listener(ready), [heard], ready.holdout, Reporter())
    assert again.track.pieces == ready.forget[0].track.pieces


def test_tracks_that_are_known_as_they_are_cut_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("searched")

    path = assets.FOLDER / listed()["ode_to_joy"]["file_name"]
    track = Track("ode", path, listed()["ode_to_joy"]["caption"], file_sha256(path))
    own = TrackEncoder(model(), TensorCache(tmp_path))
    heard = own.encode([track])
    monkeypatch.setattr(MusicgenBackend, "generate", never)
    assert with_learned_pieces(own, heard, [], Reporter()) == heard
    assert "pieces" not in track_json(heard[0])
    assert sentences(heard, RATE) == []


def test_windows_that_cost_less_than_held_out_music_are_clips_too(ready: Prepared) -> None:
    heard = whole(ready)
    below = learned_offsets._windows_below(ready.backend, heard, math.inf)
    assert [(piece.start, piece.grid_nll) for piece in below] == [(0.0, None), (509 * 320.0, None)]
    (again,) = listener(ready).encode([replace(heard.track, pieces=tuple(below))])
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(again.clips, heard.clips, strict=True))
    assert learned_offsets._windows_below(ready.backend, heard, 0.0) == []


def test_without_tokens_long_tracks_are_not_searched_and_a_line_says_so(tmp_path: Path) -> None:
    backend = LatentBackend()
    seconds = 2.5 * backend.max_frames / backend.frame_rate
    rate = backend.sample_rate
    sound = np.random.default_rng(0).normal(0, 0.1, (round(seconds * rate), backend.channels))
    soundfile.write(tmp_path / "long.wav", sound, rate)
    own = TrackEncoder(backend, TensorCache(tmp_path / "cache"))
    heard = own.encode([Track("long", tmp_path / "long.wav", "a caption", file_sha256(tmp_path / "long.wav"))])
    notes: list[str] = []

    class Notes(Reporter):
        def note(self, text: str) -> None:
            notes.append(text)

    assert with_learned_pieces(own, heard, [], Notes()) == heard
    assert len(notes) == 1
    assert "no tokens" in notes[0]
