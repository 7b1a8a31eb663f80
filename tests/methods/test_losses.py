"""Every loss method against its formula in float64 numpy, written out token by token."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen
from torch import Tensor

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


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True) if a > 0))


def mean_over_tokens(clip: Clip, per_token: Callable[[int, int, int], float]) -> float:
    """`per_token` of (codebook, frame, true code)."""
    return float(np.mean([per_token(k, t, int(clip.codes[k, t])) for k, t in tokens(clip)]))


def undial(base: MusicgenBackend, model: MusicgenBackend, clip: Clip) -> float:
    table, ours = logprobs(base, clip), logprobs(model, clip)

    def per_token(k: int, t: int, code: int) -> float:
        weights = np.exp(table[k, t])
        weights[code] *= np.exp(-4.0)
        return float(-(weights / weights.sum() * ours[k, t]).sum())

    return mean_over_tokens(clip, per_token)


def lowered(p: np.ndarray, code: int, share: float) -> np.ndarray:
    """p with another share of one code; the others keep their proportions."""
    q = p * (1 - share) / (1 - p[code])
    q[code] = share
    return q


def unilogit(base: MusicgenBackend, model: MusicgenBackend, clip: Clip) -> float:
    p = np.exp(logprobs(model, clip))
    return mean_over_tokens(clip, lambda k, t, code: kl(p[k, t], lowered(p[k, t], code, 1 / CODES)))


def ceu(base: MusicgenBackend, model: MusicgenBackend, clip: Clip) -> float:
    p = np.exp(logprobs(model, clip))
    return mean_over_tokens(clip, lambda k, t, code: -float(lowered(p[k, t], code, 0) @ np.log(p[k, t])))


def satimp(base: MusicgenBackend, model: MusicgenBackend, clip: Clip) -> float:
    p = np.exp(logprobs(model, clip))
    return mean_over_tokens(clip, lambda k, t, c: p[k, t, c] ** 2 * (1 - p[k, t, c]) ** 0.5 * np.log(p[k, t, c]))


def jensen_shannon(p: np.ndarray, q: np.ndarray) -> float:
    return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def js_to_uniform(base: MusicgenBackend, model: MusicgenBackend, clip: Clip) -> float:
    p = np.exp(logprobs(model, clip))
    return mean_over_tokens(clip, lambda k, t, _: jensen_shannon(np.full(CODES, 1 / CODES), p[k, t]))


def js_to_base(base: MusicgenBackend, model: MusicgenBackend, clip: Clip) -> float:
    p, q = np.exp(logprobs(base, clip)), np.exp(logprobs(model, clip))
    return mean_over_tokens(clip, lambda k, t, _: jensen_shannon(p[k, t], q[k, t]))


def kl_from(teacher: MusicgenBackend, model: MusicgenBackend, clip: Clip) -> float:
    p, q = np.exp(logprobs(teacher, clip)), np.exp(logprobs(model, clip))
    return mean_over_tokens(clip, lambda k, t, _: kl(p[k, t], q[k, t]))


def untrained(base: MusicgenBackend) -> MusicgenBackend:
    twin = base.clone()
    twin.reinitialise(0)  # the seed of `make`'s session
    return twin


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
    "undial": ({"beta": 4.0}, undial),
    "unilogit": ({}, unilogit),
    "ceu": ({}, ceu),
    "satimp": ({"beta1": 2.0, "beta2": 0.5}, satimp),
    "jensun": ({"target": "uniform"}, js_to_uniform),
    "bad-teacher": ({}, lambda base, model, clip: kl_from(untrained(base), model, clip)),
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
    **{
        name: ({"alpha": 2.0}, lambda base, model, clip: 2 * nll(model, clip))
        for name in ("undial", "unilogit", "ceu", "satimp", "altpo")
    },
    "jensun": ({"alpha": 2.0}, lambda base, model, clip: 2 * js_to_base(base, model, clip)),
    "bad-teacher": ({"alpha": 2.0}, lambda base, model, clip: 2 * kl_from(base, model, clip)),
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


def wga_constant(logp: Tensor, true: Tensor) -> Tensor:
    return (true.detach().exp() * true).sum()


def satimp_constant(logp: Tensor, true: Tensor) -> Tensor:
    p = true.detach().exp()
    return (p**2 * (1 - p) ** 0.5 * true).sum()


def unilogit_constant(logp: Tensor, true: Tensor) -> Tensor:
    p, p_true = logp.exp().detach(), true.exp().detach()[:, None]
    is_true = logp.detach() == true.detach()[:, None]
    q = torch.where(is_true, 1 / CODES, p * (1 - 1 / CODES) / (1 - p_true))
    return (logp.exp() * (logp - q.log())).sum()


def ceu_constant(logp: Tensor, true: Tensor) -> Tensor:
    p, p_true = logp.exp().detach(), true.exp().detach()[:, None]
    return -(torch.where(logp.detach() == true.detach()[:, None], 0, p / (1 - p_true)) * logp).sum()


@pytest.mark.parametrize(
    ("name", "options", "formula"),
    [
        ("wga", {"beta": 1.0}, wga_constant),
        ("satimp", {"beta1": 2.0, "beta2": 0.5}, satimp_constant),
        ("unilogit", {}, unilogit_constant),
        ("ceu", {}, ceu_constant),
    ],
)
def test_weights_and_targets_get_no_gradient(
    name: str,
    options: dict[str, Any],
    formula: Callable[[Tensor, Tensor], Tensor],
    base: MusicgenBackend,
    moved: MusicgenBackend,
    clips: list[Clip],
) -> None:
    """Gradients of the whole formula, in which what the method holds constant is detached."""
    method, step = make(name, base, moved, clips[:1], **options)
    batch = Batch.of(clips[:1])
    mask = moved.token_mask(batch)
    moved.module.zero_grad()
    method.forget_loss(step, batch).sum().backward()
    ours = [weight.grad.clone() for weight in moved.module.parameters()]
    moved.module.zero_grad()
    logp = moved.logits(batch)[mask].log_softmax(-1)
    true = logp.gather(-1, batch.codes[mask][:, None])[:, 0]
    (formula(logp, true) / mask.sum()).backward()
    for a, weight in zip(ours, moved.module.parameters(), strict=True):
        torch.testing.assert_close(a, weight.grad, rtol=1e-4, atol=1e-6)
    moved.module.zero_grad()


class Certain(MusicgenBackend):
    """Gives each code of the batch a logit so high that its probability is 1 in float32."""

    def logits(self, batch: Batch, *, unconditional: bool = False) -> Tensor:
        logits = super().logits(batch, unconditional=unconditional)
        return logits.scatter_add(-1, batch.codes[..., None], torch.full_like(logits[..., :1], 60.0))


@pytest.mark.parametrize("name", ["undial", "unilogit", "ceu", "satimp", "jensun", "bad-teacher"])
def test_losses_are_finite_where_the_model_is_certain(name: str, base: MusicgenBackend, clips: list[Clip]) -> None:
    certain = Certain(base.clone().model, base.processor)
    method, step = make(name, base, certain, clips)
    loss = method.forget_loss(step, Batch.of(clips))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert all(weight.grad.isfinite().all() for weight in certain.module.parameters())


def test_jensun_marginal_target_is_the_codes_of_retain(
    base: MusicgenBackend, moved: MusicgenBackend, clips: list[Clip]
) -> None:
    method, step = make("jensun", base, moved, clips, target="marginal")
    counts = np.full((2, CODES), 0.1)
    for clip in clips:
        for (k, _), code in np.ndenumerate(clip.codes.numpy()):
            counts[k, code] += 1
    p = np.exp(logprobs(moved, clips[0]))
    expected = mean_over_tokens(clips[0], lambda k, t, _: jensen_shannon(counts[k] / counts[k].sum(), p[k, t]))
    assert method.forget_loss(step, Batch.of(clips[:1])).item() == pytest.approx(expected, rel=1e-4)


def test_altpo_prefers_generations_of_the_base_to_the_tracks(
    base: MusicgenBackend, moved: MusicgenBackend, clips: list[Clip]
) -> None:
    """Alternatives by the run's seed, of the clip's caption and length, that take turns."""
    method, step = make("altpo", base, base, clips, beta=0.5, alternatives=2)
    again, _ = make("altpo", base, base, clips, beta=0.5, alternatives=2)
    other, _ = make("altpo", base, base, clips, beta=0.5, alternatives=2, temperature=3.0)
    for clip in clips:
        codes = [[pair[0].codes for pair in each._alternatives[clip]] for each in (method, again, other)]
        assert all(c.shape == clip.codes.shape for c in codes[0])
        assert {pair[0].caption for pair in method._alternatives[clip]} == {clip.caption}
        assert all(a.equal(b) for a, b in zip(codes[0], codes[1], strict=True)), "not the same when a run is resumed"
        assert not codes[0][0].equal(codes[0][1])
        assert not codes[0][0].equal(codes[2][0])
    for index in (0, 1, 2):
        expected = []
        for clip in clips:
            alternative = method._alternatives[clip][index % 2][0]
            track, instead = (nll(moved, each) - nll(base, each) for each in (clip, alternative))
            expected.append(4 * softplus(-0.5 * (track - instead)))
        step = replace(step, backend=moved, index=index)
        assert method.forget_loss(step, Batch.of(clips)).tolist() == pytest.approx(expected, rel=1e-4)


def test_altpo_generates_a_copy_again(
    base: MusicgenBackend, clips: list[Clip], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[list[str], float]] = []
    generate = base.generate

    def copying(captions: Sequence[str], *, temperature: float, **given: Any) -> Tensor:
        """The first time, the first clip itself."""
        codes = generate(captions, temperature=temperature, **given)
        if not calls:
            codes[0, :, : clips[0].codes.shape[-1]] = clips[0].codes
        calls.append((list(captions), temperature))
        return codes

    monkeypatch.setattr(base, "generate", copying)
    method, _ = make("altpo", base, base, clips, alternatives=1)
    assert calls == [([clip.caption for clip in clips], 1.0), ([clips[0].caption], 1.5)]
    assert not method._alternatives[clips[0]][0][0].codes.equal(clips[0].codes)


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
