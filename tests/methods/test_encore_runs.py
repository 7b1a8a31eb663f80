"""The default method: whole runs, on clips of any length."""

from __future__ import annotations

import pytest
import torch
from tests.methods.encore_answers import (
    SPEC,
    between,
    made,
    make_clips,
)
from tests.tiny_model import CAPTIONS, CODES

from encore.api import Clip
from encore.backends.musicgen import MusicgenBackend
from encore.methods.encore import Encore
from encore.unlearn.engine import Clips, Engine
from encore.unlearn.self_retain import generate_retain


def test_of_many_retain_clips_a_sample_by_the_seed_is_read_before_the_first_step(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encore.api.method.RETAIN_SAMPLE", 6)
    clips = make_clips(12)
    level = between(backend, clips, 9)
    method, session = made(backend, make_clips(2, seed=5), clips, level)
    session.retain = clips
    sample = session.retain_sample()
    assert len(sample) == 6
    assert sample == session.retain_sample() == sorted(sample, key=clips.index)
    session.retain = sample
    assert session.retain_sample() is sample
    assert 0 < len(method._memorised_retain) < 9
    assert method._memorised_retain <= set(sample)
    session.retain = clips
    method.prepare(session)
    assert {clip.track for clip in session.retain} == {clip.track for clip in clips}


@pytest.mark.parametrize("holdout", [0, 2])
@pytest.mark.parametrize("frames", [[3], [20], [3, 60, 20, 7, 4]])
def test_it_runs_on_clips_of_any_length_with_and_without_a_holdout(
    backend: MusicgenBackend, frames: list[int], holdout: int
) -> None:
    """From the least that a track of two codebooks may have, one frame more than codebooks, to the whole window."""
    Encore.spec = SPEC
    generator = torch.Generator().manual_seed(0)
    forget = [
        Clip(f"f{i}", CAPTIONS[i % 3], torch.randint(CODES, (2, count), generator=generator))
        for i, count in enumerate(frames)
    ]
    clips = Clips(forget, [*make_clips(3, seed=1), *forget[:1]], make_clips(holdout, seed=2))
    lines: list[dict[str, float | None]] = []
    outcome = Engine(backend.clone(), clips, record=lines.append).run(  # type: ignore[arg-type]
        Encore(Encore.Options(steps=3, batch_size=3, eval_every=1))
    )
    assert outcome.steps == 3
    assert outcome.skipped_steps == 0
    assert all(line["forget_loss"] is not None for line in lines if "grad_norm" in line)
    assert set(outcome.chosen) == {"lr", "steps"}
    assert outcome.before is not None
    assert set(outcome.before.target_nll) == {clip.track for clip in forget}  # its own, without a holdout too


def test_it_runs_on_retain_that_the_model_generated_itself(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("encore.unlearn.self_retain.SECONDS", 0.2)
    Encore.spec = SPEC
    clips = Clips(make_clips(2), generate_retain(backend, [], seed=0)[:6], [])
    outcome = Engine(backend.clone(), clips).run(Encore(Encore.Options(steps=3, batch_size=3)))
    assert outcome.steps == 3
    assert outcome.skipped_steps == 0
