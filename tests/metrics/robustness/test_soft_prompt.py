from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.metrics import fakes
from tests.metrics.markov import clips as markov_clips
from tests.metrics.markov import models

from encore.api import Batch
from encore.evaluate.evaluation import SharedEvaluation
from encore.hashing import module_sha256
from encore.metrics.robustness import soft_prompt
from encore.metrics.robustness.soft_prompt import LR, VECTORS, SoftPrompt
from encore.results.targets import summary

STEPS = 4


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(soft_prompt, "STEPS", STEPS)


def rows(shared):
    return {(row.metric, row.model): row for row in SoftPrompt().measure(shared)}


def by_hand(backend, clip, scale):
    """Losses of one clip while its vectors alone are trained."""
    caption = backend.encode_text([clip.caption])[0]
    vectors = caption[:VECTORS].clone().requires_grad_(True)
    optimizer = torch.optim.Adam([vectors], lr=LR * scale)
    twin = backend.clone()
    losses = []
    for _ in range(STEPS + 1):
        twin.text_embeddings = {clip.caption: torch.cat([vectors, caption])}
        loss = twin.losses(Batch.of([clip]))[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_each_track_has_its_own_vectors_and_the_model_is_left_as_it_was(backend, clips):
    forget = clips.forget[:3]
    shared = SharedEvaluation({"base": backend, "gold": backend.clone()}, {"forget": forget}, embedder=None, batch=2)
    before, texts = module_sha256(backend.module), set(backend.text_embeddings)
    found = rows(shared)
    encodings = [backend.text_embeddings[clip.caption] for clip in forget]
    scale = float(torch.stack([encoding.square().mean() for encoding in encodings]).mean().sqrt())
    expected = [by_hand(backend, clip, scale) for clip in forget]
    row = found["soft_prompt_nll", "base"]
    assert list(row.per_track.values()) == pytest.approx([losses[-1] for losses in expected], rel=1e-4)
    curve = [sum(of_clips) / 3 for of_clips in zip(*expected, strict=True)]
    assert row.details["curve"] == pytest.approx(curve, rel=1e-4)
    assert curve[-1] < curve[0]
    assert replace(found["soft_prompt_nll", "gold"], model="base") == row
    assert module_sha256(backend.module) == before
    assert set(backend.text_embeddings) == texts
    assert all(weight.requires_grad for weight in backend.module.parameters())


def test_a_backend_without_a_gradient_to_text_is_not_measured():
    found = rows(SharedEvaluation(models(), markov_clips(), embedder=None))
    assert {row.metric for row in found.values()} == {"soft_prompt_nll"}
    assert "no gradient with respect to `text_embeddings`" in found["soft_prompt_nll", "gold"].why


@pytest.mark.parametrize("name", ["likely_under_a_soft_prompt", "answers_a_soft_prompt"])
def test_its_fakes_are_caught(backend, clips, name):
    forget = clips.forget[:3]
    shared = SharedEvaluation({"gold": backend}, {"forget": forget}, embedder=None)
    gate, make = fakes.FULL[name]
    fake = make(backend, fakes.Tracks.of(shared), shared)
    found = list(SoftPrompt().measure(shared.derive(models={"gold": backend, "unlearned": fake})))
    assert [f"{line.metric} {line.set}" for line in summary(found) if line.met is False] == [gate]
    plain = list(SoftPrompt().measure(shared.derive(models={"gold": backend, "unlearned": backend.clone()})))
    assert not [line for line in summary(plain) if line.met is False]
