"""`--retain self`: what the base model generates is kept, but not its verbatim tracks."""

from __future__ import annotations

import pytest
import torch

from encore.api import Clip
from encore.backends.musicgen import MusicgenBackend
from encore.errors import UsageError
from encore.unlearn import self_retain
from encore.unlearn.self_retain import captions, generate_retain


def test_a_clip_a_caption_the_same_every_time(backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_retain, "SECONDS", 0.2)
    told: list[tuple[int, int]] = []
    played = generate_retain(backend, [], seed=3, progress=lambda done, of: told.append((done, of)))
    assert [clip.caption for clip in played] == captions()
    assert len({clip.track for clip in played}) == len(captions())
    assert all(clip.codes.shape == (2, 20) for clip in played)
    assert told[0] == (0, len(captions()))
    again = generate_retain(backend, [], seed=3)
    assert all(torch.equal(a.codes, b.codes) for a, b in zip(played, again, strict=True))


def test_a_replay_of_a_track_to_forget_is_left_out(backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_retain, "captions", lambda: ["a", "b", "c"])
    played = generate_retain(backend, [], seed=0)
    codes = played[1].codes.clone()
    codes[0, : codes.shape[-1] // 3] = 31 - codes[0, : codes.shape[-1] // 3]  # two thirds are the same
    kept = generate_retain(backend, [Clip("known", "x", codes)], seed=0)
    assert [clip.caption for clip in kept] == ["a", "c"]


def test_with_nothing_but_copies_there_is_nothing_to_keep(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_retain, "captions", lambda: ["a", "b"])
    known = [Clip(clip.caption, "x", clip.codes) for clip in generate_retain(backend, [], seed=0)]
    with pytest.raises(UsageError, match="every generation of the model is a copy"):
        generate_retain(backend, known, seed=0)
