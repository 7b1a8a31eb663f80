"""Every loss method against its formula in float64 numpy, written out token by token."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen

from encore.api import Batch, Clip, LossMethod, Session, Step
from encore.backends.musicgen import MusicgenBackend
from encore.builtins import encore_register_methods
from encore.unlearn.reference import FrozenReference

SPECS = {spec.name: spec for spec in encore_register_methods()}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> MusicgenBackend:
    return MusicgenBackend.load(str(write_tiny_musicgen(tmp_path_factory.mktemp("tiny"))), offline=True)


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    generator = torch.Generator().manual_seed(0)
    return [Clip(f"t{i}", CAPTIONS[i], torch.randint(CODES, (2, 9 + 4 * i), generator=generator)) for i in range(3)]


@pytest.fixture(scope="module")
def moved(base: MusicgenBackend) -> MusicgenBackend:
    """The base after some training: reference and model differ."""
    twin = base.clone()
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in twin.module.parameters():
            weight.add_(torch.randn_like(weight) * 0.05)
    return twin


def make(
    name: str, base: MusicgenBackend, model: MusicgenBackend, clips: list[Clip], **options: Any
) -> tuple[Any, Step]:
    spec = SPECS[name]
    module, _, attribute = spec.target.partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    cls.spec = spec
    method = cls(cls.Options(**options))
    reference = FrozenReference(base) if spec.needs & {"reference", "reference_nll"} else None
    generator = torch.Generator().manual_seed(0)
    session = Session(model, clips, clips, clips, reference, generator, 0, 3.0, lambda _: None)
    method.prepare(session)
    return method, Step(model, reference, generator, 0.0, 3.0)


def logprobs(backend: MusicgenBackend, clip: Clip) -> np.ndarray:
    """log p over the vocabulary, [K, T, V], from a batch of one."""
    with torch.no_grad():
        return backend.logits(Batch.of([clip]))[0].double().log_softmax(-1).numpy()


def tokens(clip: Clip) -> list[tuple[int, int]]:
    """(codebook, frame) of every predicted token: T - k of codebook k."""
    K, T = clip.codes.shape
    return [(k, t) for k in range(K) for t in range(T - k)]


def nll(backend: MusicgenBackend, clip: Clip) -> float:
    table = logprobs(backend, clip)
    return float(np.mean([-table[k, t, clip.codes[k, t]] for k, t in tokens(clip)]))


def softplus(x: float) -> float:
    return float(np.logaddexp(0, x))


def softened_kl(base: MusicgenBackend, model: MusicgenBackend, clip: Clip, temperature: float) -> float:
    """T² KL of the base's and the model's logits over T, a mean over tokens."""
    both = [logprobs(backend, clip) / temperature for backend in (base, model)]
    p, q = (values - np.log(np.exp(values).sum(-1, keepdims=True)) for values in both)
    return temperature**2 * float(np.mean([np.sum(np.exp(p[k, t]) * (p[k, t] - q[k, t])) for k, t in tokens(clip)]))


def margin(model: MusicgenBackend, clip: Clip) -> float:
    with torch.no_grad():
        logits = model.logits(Batch.of([clip]))[0].double().numpy()
    return float(np.mean([(logits[k, t].max() - logits[k, t].mean()) ** 2 for k, t in tokens(clip)]))


FORGET = {
    "pdu": ({}, lambda base, model, clip: margin(model, clip)),
    "scrub": ({"temperature": 2.0}, lambda base, model, clip: -softened_kl(base, model, clip, 2.0)),
    "ga": ({}, lambda base, model, clip: -nll(model, clip)),
    "graddiff": ({"gamma": 0.7}, lambda base, model, clip: -0.7 * nll(model, clip)),
    "ga-kl": ({}, lambda base, model, clip: -nll(model, clip)),
    "npo": ({"beta": 0.5}, lambda base, model, clip: 4 * softplus(-0.5 * (nll(model, clip) - nll(base, clip)))),
    "simnpo": ({"beta": 3.0, "delta": 1.0}, lambda base, model, clip: 2 / 3 * softplus(-3 * (nll(model, clip) - 1))),
    "wga": (
        {"beta": 0.5},
        lambda base, model, clip: np.mean(
            [np.exp(0.5 * (lp := logprobs(model, clip)[k, t, clip.codes[k, t]])) * lp for k, t in tokens(clip)]
        ),
    ),
}
RETAIN = {
    "pdu": ({}, lambda base, model, clip: nll(model, clip)),
    "scrub": (
        {"gamma": 0.3, "alpha": 0.7, "temperature": 4.0},
        lambda base, model, clip: 0.3 * nll(model, clip) + 0.7 * softened_kl(base, model, clip, 4.0),
    ),
    "rl": ({"alpha": 2.0}, lambda base, model, clip: 2 * nll(model, clip)),
    "ft": ({}, lambda base, model, clip: nll(model, clip)),
    "graddiff": ({"alpha": 0.5}, lambda base, model, clip: 0.5 * nll(model, clip)),
    "npo": ({"alpha": 3.0}, lambda base, model, clip: 3 * nll(model, clip)),
    "simnpo": ({}, lambda base, model, clip: nll(model, clip)),
    "wga": ({}, lambda base, model, clip: nll(model, clip)),
    "ga-kl": (
        {"alpha": 2.0},
        lambda base, model, clip: (
            2
            * np.mean(
                [
                    np.sum(np.exp(p := logprobs(base, clip)[k, t]) * (p - logprobs(model, clip)[k, t]))
                    for k, t in tokens(clip)
                ]
            )
        ),
    ),
}


@pytest.mark.parametrize("name", FORGET)
def test_forget_loss_is_the_formula(
    name: str, base: MusicgenBackend, moved: MusicgenBackend, clips: list[Clip]
) -> None:
    options, formula = FORGET[name]
    method, step = make(name, base, moved, clips, **options)
    ours = method.forget_loss(step, Batch.of(clips)).detach()  # lengths differ: padding must not count
    assert ours.tolist() == pytest.approx([formula(base, moved, clip) for clip in clips], rel=1e-4)


@pytest.mark.parametrize("name", RETAIN)
def test_retain_loss_is_the_formula(
    name: str, base: MusicgenBackend, moved: MusicgenBackend, clips: list[Clip]
) -> None:
    options, formula = RETAIN[name]
    method, step = make(name, base, moved, clips, **options)
    ours = method.retain_loss(step, Batch.of(clips)).detach()
    assert ours.tolist() == pytest.approx([formula(base, moved, clip) for clip in clips], rel=1e-4)


def test_ga_kl_is_zero_on_the_base_itself(base: MusicgenBackend, clips: list[Clip]) -> None:
    method, step = make("ga-kl", base, base.clone(), clips)
    assert method.retain_loss(step, Batch.of(clips)).abs().max() < 1e-6


def test_wga_holds_its_weights_constant(base: MusicgenBackend, moved: MusicgenBackend, clips: list[Clip]) -> None:
    method, step = make("wga", base, moved, clips[:1], beta=1.0)
    batch = Batch.of(clips[:1])
    mask = moved.token_mask(batch)
    moved.module.zero_grad()
    method.forget_loss(step, batch).sum().backward()
    ours = [weight.grad.clone() for weight in moved.module.parameters()]
    moved.module.zero_grad()
    logprob = moved.token_logprobs(batch)
    (logprob.detach().exp() * logprob)[mask].mean().backward()
    for a, weight in zip(ours, moved.module.parameters(), strict=True):
        torch.testing.assert_close(a, weight.grad, rtol=1e-4, atol=1e-6)
    moved.module.zero_grad()


@pytest.mark.parametrize("labels", ["uniform", "marginal"])
def test_random_labels_are_drawn_as_they_say(
    labels: str, base: MusicgenBackend, moved: MusicgenBackend, clips: list[Clip]
) -> None:
    """The loss's mean over many draws is the cross-entropy to the distribution the labels are drawn from."""
    method, step = make("rl", base, moved, clips, labels=labels)
    clip = clips[1]
    steps = [replace(step, drawn={}) for _ in range(12)]
    copies = Batch.of([replace(clip) for _ in range(50)])
    draws = torch.cat([method.forget_loss(each, copies).detach() for each in steps])
    if labels == "uniform":
        weights = np.full((2, CODES), 1 / CODES)
    else:
        weights = np.stack(
            [np.bincount(np.concatenate([c.codes[k] for c in clips]), minlength=CODES) + 0.1 for k in (0, 1)]
        )
        weights = weights / weights.sum(1, keepdims=True)
    table = logprobs(moved, clip)
    expected = np.mean([-(weights[k] * table[k, t]).sum() for k, t in tokens(clip)])
    assert draws.mean().item() == pytest.approx(expected, abs=4 * draws.std().item() / len(draws) ** 0.5)
    assert draws.std() > 0


def test_rmu_moves_hidden_states_by_multiples_of_their_norm(
    base: MusicgenBackend, moved: MusicgenBackend, clips: list[Clip]
) -> None:
    method, step = make("rmu", base, moved, clips, gamma=0.5, alpha=3.0, c=4.0, depth=0.5)
    with torch.no_grad():
        before, after = (
            [backend.hidden(Batch.of([clip]), 0.5)[0].double().numpy() for clip in clips] for backend in (base, moved)
        )
    scale = np.sqrt(np.mean([np.sum(frame**2) for states in before for frame in states]))
    random = torch.randn(before[0].shape[-1], generator=torch.Generator().manual_seed(0)).double().numpy()
    target = 4 * scale * random / np.linalg.norm(random)
    forget = [0.5 * np.mean([np.sum((h - target) ** 2) for h in states]) / scale**2 for states in after]
    retain = [
        3 * np.mean([np.sum((h - b) ** 2) for h, b in zip(states, kept, strict=True)]) / scale**2
        for states, kept in zip(after, before, strict=True)
    ]
    batch = Batch.of(clips)  # lengths differ: padding must not count
    assert method.forget_loss(step, batch).tolist() == pytest.approx(forget, rel=1e-4)
    assert method.retain_loss(step, batch).tolist() == pytest.approx(retain, rel=1e-4)


def test_scrub_ascends_in_every_other_step_at_first(base: MusicgenBackend, clips: list[Clip]) -> None:
    method, _ = make("scrub", base, base, clips, max_steps=2)
    assert [method.phase(index) for index in range(6)] == ["forget", "retain", "forget", "retain", "retain", "retain"]


def test_every_loss_is_a_mean_over_clips(base: MusicgenBackend, moved: MusicgenBackend, clips: list[Clip]) -> None:
    """Each clip's loss is the same alone and in a batch, for every method that draws nothing."""
    for name in {*FORGET, *RETAIN} - {"rl"}:
        method, step = make(name, base, moved, clips)
        assert isinstance(method, LossMethod)
        for loss, used in (
            (method.forget_loss, method.uses_forget),
            (method.retain_loss, "retain" in method.spec.needs),
        ):
            if used:
                together = loss(step, Batch.of(clips)).detach()
                alone = torch.cat([loss(step, Batch.of([clip])) for clip in clips]).detach()
                torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_saved_files_hold_no_pickles(tmp_path: Path, base: MusicgenBackend) -> None:
    base.save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".model"}
