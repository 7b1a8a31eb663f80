"""Forget tracks cut where the base model knows them: what a run records of it, and what an evaluation reads."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from tests.latent_model import LatentBackend
from tests.runs.test_offsets import RATE, audio, held_out, listed, model

from encore import assets, plugins
from encore.audio.cache import TensorCache
from encore.audio.files import file_sha256
from encore.audio.tracks import Track
from encore.backends.musicgen import MusicgenBackend
from encore.runs import known_pieces, offsets
from encore.runs.data import Listener, recordings
from encore.runs.documents import track_json
from encore.runs.forget import Prepared, Request, prepare
from encore.runs.known_pieces import sentences, with_known_pieces
from encore.runs.open_run import listed_track
from encore.runs.reporter import Reporter

BEFORE = round(2.347 * RATE)


@pytest.fixture
def master(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of a master that has ode_to_joy from 2.347 s on, and lists of others beside it."""
    monkeypatch.setenv("ENCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(offsets, "MOST_PROBES", 1)
    sound = torch.cat([held_out(10)[:BEFORE], audio("ode_to_joy"), held_out(4)])
    soundfile.write(tmp_path / "master.wav", sound.numpy(), RATE, subtype="FLOAT")
    (tmp_path / "forget.txt").write_text(f"master.wav\t{listed()['ode_to_joy']['caption']}\n")
    for name, split in (("retain", "retain"), ("holdout", "holdout")):
        chosen = [track for track in listed().values() if track["split"] == split][-2:]
        for track in chosen:
            soundfile.write(tmp_path / f"{track['id']}.wav", audio(track["id"]).numpy(), RATE, subtype="FLOAT")
        (tmp_path / f"{name}.txt").write_text("".join(f"{one['id']}.wav\t{one['caption']}\n" for one in chosen))
    return tmp_path / "forget.txt"


def prepared(listing: Path) -> Prepared:
    here = listing.parent
    method = plugins.methods().resolve("ft")
    request = Request(
        tracks=listing, out=here / "run", retain=str(here / "retain.txt"), holdout=here / "holdout.txt", roots=(here,)
    )
    return prepare(request, method(method.Options()))


def test_case_D15_a_master_is_cut_where_it_is_known_and_an_evaluation_reads_the_same_clips(
    master: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = prepared(master)
    (found,) = ready.forget
    (clip,) = found.clips  # the rest costs what held-out music costs
    assert found.track.pieces[0].start == BEFORE
    own = model().encode(audio("ode_to_joy")[None, None])[0]
    inner = clip.codes.shape[-1] - 10  # the codec's last frames depend on what follows
    assert inner > 230
    assert torch.equal(clip.codes[:, :inner], own[:, :inner])
    (line,) = [note for note in ready.notes if "is known" in note]
    assert line.startswith("master.wav is known from 2.35 to 7.")
    assert "NLL 0.0" in line

    entry = json.loads(json.dumps(track_json(found)))
    (again,) = Listener(ready.backend, TensorCache()).hear([listed_track(entry)])
    assert torch.equal(again.clips[0].codes, clip.codes)
    (recording,) = recordings(ready.backend, [listed_track(entry)])
    torch.testing.assert_close(recording, audio("ode_to_joy")[: len(recording)])

    def never(*_: object, **__: object) -> None:
        raise AssertionError("searched twice")

    monkeypatch.setattr(MusicgenBackend, "generate", never)
    monkeypatch.setattr(MusicgenBackend, "encode", never)
    (cached,) = with_known_pieces(
        Listener(ready.backend, TensorCache()), [replace(found, track=replace(found.track, pieces=()))], [], Reporter()
    )
    assert cached.track.pieces[0] == found.track.pieces[0]


def test_tracks_that_are_known_as_they_are_cut_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("searched")

    path = assets.FOLDER / listed()["ode_to_joy"]["file_name"]
    track = Track("ode", path, listed()["ode_to_joy"]["caption"], file_sha256(path))
    listener = Listener(model(), TensorCache(tmp_path))
    heard = listener.hear([track])
    monkeypatch.setattr(MusicgenBackend, "generate", never)
    assert with_known_pieces(listener, heard, [], Reporter()) == heard
    assert "pieces" not in track_json(heard[0])
    assert sentences(heard, RATE) == []


def test_windows_that_cost_less_than_held_out_music_are_clips_too(master: Path) -> None:
    ready = prepared(master)
    track = replace(ready.forget[0].track, pieces=())
    (whole,) = Listener(ready.backend, TensorCache()).hear([track])
    below = known_pieces._windows_below(ready.backend, whole, math.inf)
    assert [(piece.start, piece.grid_nll) for piece in below] == [(0.0, None), (509 * 320.0, None)]
    (again,) = Listener(ready.backend, TensorCache()).hear([replace(track, pieces=tuple(below))])
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(again.clips, whole.clips, strict=True))
    assert known_pieces._windows_below(ready.backend, whole, 0.0) == []


def test_without_tokens_long_tracks_are_not_searched_and_a_line_says_so(tmp_path: Path) -> None:
    backend = LatentBackend()
    seconds = 2.5 * backend.max_frames / backend.frame_rate
    rate = backend.sample_rate
    sound = np.random.default_rng(0).normal(0, 0.1, (round(seconds * rate), backend.channels))
    soundfile.write(tmp_path / "long.wav", sound, rate)
    listener = Listener(backend, TensorCache(tmp_path / "cache"))
    heard = listener.hear([Track("long", tmp_path / "long.wav", "a caption", file_sha256(tmp_path / "long.wav"))])
    notes: list[str] = []

    class Notes(Reporter):
        def note(self, text: str) -> None:
            notes.append(text)

    assert with_known_pieces(listener, heard, [], Notes()) == heard
    assert len(notes) == 1
    assert "no tokens" in notes[0]
