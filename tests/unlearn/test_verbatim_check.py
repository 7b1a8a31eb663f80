"""What counts as generated verbatim, on a model whose own greedy generations are the tracks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tests.latent_model import LatentBackend
from tests.tiny_model import CAPTIONS

from encore.api import Clip
from encore.backends.musicgen import MusicgenBackend
from encore.unlearn.engine import Clips
from encore.unlearn.verbatim_check import MOST, VerbatimCheck


@pytest.fixture(autouse=True)
def _memorised_by_nll_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tiny model generates repeats itself, and would be called predictable."""
    monkeypatch.setattr("encore.memorised.KNOWN_SHARE", math.inf)


def generations(backend: MusicgenBackend) -> list[Clip]:
    codes = backend.generate(CAPTIONS, seconds=0.5, temperature=0.0, guidance=1.0)
    return [Clip(f"own{i}", caption, row) for i, (caption, row) in enumerate(zip(CAPTIONS, codes, strict=True))]


def other(backend: MusicgenBackend) -> MusicgenBackend:
    """The same model with other weights."""
    changed = backend.clone()
    changed.reinitialise(7)
    return changed


def test_what_the_model_generates_itself_is_verbatim_until_its_weights_change(
    backend: MusicgenBackend, clips: Clips
) -> None:
    own = generations(backend)
    check = VerbatimCheck(backend, own[:2], [own[2], *clips.forget[:3]])
    tried = {"before": 2, "after": 2, "tracks": 2, "lost": []}
    none = {"before": 0, "after": 0, "tracks": 0, "lost": []}  # a window is shorter than the prompt
    assert check.after() == {
        "retain": {"1 s": none, "caption": tried},
        "forget": {"1 s": {"after": [], "tracks": 0}, "caption": {"after": ["own2"], "tracks": 4}},
    }
    backend.module.load_state_dict(other(backend).module.state_dict())
    found = check.after()
    assert found is not None
    assert found["retain"]["caption"] == {"before": 2, "after": 0, "tracks": 2, "lost": ["own0", "own1"]}
    assert found["forget"]["caption"] == {"after": [], "tracks": 4}


def test_of_many_tracks_those_are_tried_that_the_base_knows_best(backend: MusicgenBackend) -> None:
    generator = torch.Generator().manual_seed(0)
    (known,) = generations(backend)[:1]
    many = [Clip(f"t{i}", CAPTIONS[0], torch.randint(32, (2, 20), generator=generator)) for i in range(MOST + 5)]
    windows = [Clip("own0", CAPTIONS[1], torch.randint(32, (2, 20), generator=generator)), known]
    found = VerbatimCheck(backend, [], [*many, *windows]).after()
    assert found is not None
    assert found["forget"]["caption"] == {"after": ["own0"], "tracks": MOST}  # by the window that it knows


def test_a_model_that_cannot_generate_loses_the_check_alone(
    backend: MusicgenBackend, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no\nmemory")

    monkeypatch.setattr(backend, "generate", broken)
    check = VerbatimCheck(backend, clips.retain, clips.forget)
    assert (check.after(), check.failed) == (None, "RuntimeError: no memory")


def test_without_tokens_nothing_is_generated(clips: Clips) -> None:
    backend = LatentBackend()
    latents = [Clip(clip.track, clip.caption, torch.randn(3, 20)) for clip in clips.forget]
    check = VerbatimCheck(backend, latents, latents)
    assert (check.after(), check.failed) == (None, "")


def test_codes_that_any_model_continues_are_not_tried(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A held tone has a low NLL and a lower entropy; a clip of a high NLL is tried whatever its entropy is."""
    monkeypatch.undo()
    tone = Clip("tone", CAPTIONS[0], torch.full((2, 20), 3))
    plain = Clip("plain", CAPTIONS[1], torch.full((2, 20), 5))
    nll = {"tone": 0.3, "plain": 3.0}
    monkeypatch.setattr(
        "encore.unlearn.verbatim_check.lowest_loss_clips", lambda _, clips: [(clip, nll[clip.track]) for clip in clips]
    )
    found = VerbatimCheck(backend, [], [tone, plain]).after()
    assert found is not None
    assert found["forget"]["caption"]["tracks"] == 1
