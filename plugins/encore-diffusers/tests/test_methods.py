"""Losses of the plugin's own methods, against one clip, one level and one frame at a time."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from encore import plugins
from encore.api import Batch, Clip, Step
from encore.errors import UsageError
from encore_diffusers.base import TIMESTEPS
from encore_diffusers.retrack import ReTrack
from encore_diffusers.siss import Siss


def step(backend, retain=(), forget=()):
    return Step(
        backend, None, torch.Generator().manual_seed(1), 0.0, None, forget=forget, retain=retain,
    )  # fmt: skip


@torch.no_grad()
def ends(backend, clip, partner, source, s, draw):
    """The input at level s noised from `source`, the network's prediction for it, and for both clips the distance
    ‖ε‖² and the training target, from the objective's own two functions; all over the clip's own frames."""
    frames = clip.codes.shape[-1]
    windowed = {name: backend._windowed(codes) for name, codes in (("x", partner), ("a", clip.codes))}
    _, noise, share = backend._noised(clip.codes, draw)
    level = backend.objective.level(share[s : s + 1])
    noisy = backend.objective.noisy(windowed[source][None], noise[s][None], level)
    given = backend._prepare([clip.caption], [frames])
    prediction = backend._predict(noisy, backend.objective.timestep(level), given)[0]
    zero, one = torch.zeros_like(noisy), torch.ones_like(noisy)
    scale, spread = backend.objective.noisy(one, zero, level), backend.objective.noisy(zero, one, level)
    results = {}
    for name, latents in windowed.items():
        between = (noisy - scale * latents) / spread
        results[name] = float(between.double().square().sum()), backend.objective.target(latents[None], between, level)
    return prediction[:, :frames], {name: (d, t[0, :, :frames]) for name, (d, t) in results.items()}


def test_siss_weighs_both_clips_by_their_densities(backend, clips):
    clip, retain = clips[0], [clips[1]]
    method = Siss(Siss.Options(strength=0.3, mixture=0.4))
    backend.encode_text([clip.caption])
    frames = clip.codes.shape[-1]
    partner = torch.cat([clips[1].codes, clips[1].codes], 1)[:, :frames]
    drawn = torch.Generator().manual_seed(1)
    torch.randint(1, (1,), generator=drawn)
    from_forget = torch.rand(1, TIMESTEPS, generator=drawn)[0] < 0.4
    expected = []
    for s in range(TIMESTEPS):
        prediction, found = ends(backend, clip, partner, "a" if from_forget[s] else "x", s, 2)
        x, a = (-distance / 2 for distance, _ in (found["x"], found["a"]))
        top = max(x, a)
        total = 0.6 * math.exp(x - top) + 0.4 * math.exp(a - top)
        errors = {name: float((prediction - target).square().mean()) for name, (_, target) in found.items()}
        expected.append(math.exp(x - top) / total * errors["x"] - 0.3 * math.exp(a - top) / total * errors["a"])
    loss = method.forget_loss(step(backend, retain, [clip]), Batch.of([clip], noise_index=2))
    assert loss.item() == pytest.approx(sum(expected) / TIMESTEPS, rel=1e-3, abs=1e-4)
    loss.sum().backward()


def test_retrack_aims_where_the_nearest_clips_would(backend, clips):
    clip, far = clips[0], Clip("far", clips[1].caption, clips[1].codes + 50)
    method = ReTrack(ReTrack.Options(neighbours=2))
    near = [Clip(f"n{i}", clips[i].caption, clip.codes + 0.05 * (i + 1)) for i in range(2)]
    method.prepare(SimpleNamespace(backend=backend, forget=[clip], retain_sample=lambda: [far, *near]))
    backend.encode_text([clip.caption])
    expected = []
    for s in range(TIMESTEPS):
        found = [ends(backend, clip, other.codes, "a", s, 2) for other in near]
        prediction = found[0][0]
        weights = torch.tensor([-ends_["x"][0] / 2 for _, ends_ in found]).softmax(0)
        target = sum(w * ends_["x"][1] for w, (_, ends_) in zip(weights, found, strict=True))
        expected.append(float((prediction - target).square().mean()))
    loss = method.forget_loss(step(backend), Batch.of([clip], noise_index=2))
    assert loss.item() == pytest.approx(sum(expected) / TIMESTEPS, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("name", ["siss", "retrack"])
def test_other_models_are_refused(name):
    method = plugins.methods().resolve(name)
    with pytest.raises(UsageError, match=f"{name} trains diffusion models"):
        method(method.Options()).forget_loss(step(SimpleNamespace(name="musicgen")), None)
