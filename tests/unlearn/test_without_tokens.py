"""A run and an evaluation on a model that has latents where others have codes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from tests.latent_model import LatentBackend, latent_clips, noise

from encore import plugins
from encore.api import Batch, Session
from encore.curvature.fisher_cache import cached_fisher
from encore.data.encode import TrackEncoder
from encore.data.open_files import file_sha256
from encore.data.tracks import Track
from encore.errors import UsageError
from encore.evaluate.measure import evaluate
from encore.methods.npo import Npo
from encore.tensor_cache import TensorCache
from encore.unlearn.engine import Clips, Engine
from encore.unlearn.monitor import StoppingMonitor
from encore.unlearn.reference import FrozenReference
from encore.unlearn.self_retain import captions, generate_retain


@pytest.fixture
def clips():
    return Clips(latent_clips(3), latent_clips(5, first=3), latent_clips(4, first=8))


def method(name, **options):
    found = plugins.methods().resolve(name)
    return found(found.Options(**options))


def test_every_step_has_noise_of_its_own_and_the_reference_the_same(clips):
    backend, seen = LatentBackend(), []

    class Watched(Npo):
        spec = plugins.methods().get("npo").spec

        def forget_loss(self, step, batch):
            theirs = step.reference.nll(batch)
            if not seen:  # the first step's weights are the base's
                torch.testing.assert_close(theirs, step.backend.losses(batch))
            seen.append(batch.noise_index)
            return super().forget_loss(step, batch)

    Engine(backend, clips).run(Watched(Npo.Options(steps=4, stop="never", micro_batch_size=3)))
    assert seen == [1, 2, 3, 4]


def test_the_reference_keeps_the_fixed_draw_alone(clips):
    reference, batch = FrozenReference(LatentBackend()), Batch.of(clips.forget)
    fixed = reference.nll(batch)
    other = reference.nll(Batch.of(clips.forget, noise_index=7))
    expected = LatentBackend().losses(Batch.of(clips.forget, noise_index=7))
    torch.testing.assert_close(other, expected.detach())
    assert torch.equal(reference.nll(batch), fixed)
    assert not torch.equal(other, fixed)


def test_retain_may_lose_five_percent_however_small_the_loss(clips):
    backend = LatentBackend()
    judge = StoppingMonitor(backend, clips.forget, clips.retain, clips.holdout, seed=0)
    with torch.no_grad():
        backend.module.bias.add_(0.05)
    assert not judge.memorised  # a loss has a floor of noise, which tells nothing of memorisation
    now, base = (sum(look.not_memorised.values()) / 7 for look in (judge.snapshot(), judge.first))
    assert judge.snapshot().harm["not_memorised"] == pytest.approx(max(0.0, now - base) / (0.05 * base))
    assert judge.snapshot().harm.keys() == {"not_memorised"}


def test_a_track_is_at_the_level_when_it_has_gone_all_but_five_percent_of_the_way(clips):
    """A floor of noise under all losses does not make tracks that were never told apart look forgotten."""

    class Floor(LatentBackend):
        floor = 0.0

        def losses(self, batch):
            return super().losses(batch) / 10 + self.floor + torch.tensor([float(c.track < "t3") for c in batch.clips])

    def judge(floor, forget, holdout):
        backend = Floor()
        backend.floor = floor
        return StoppingMonitor(backend, forget, clips.retain, holdout, seed=0)

    for floor in (0.0, 50.0):
        judged = judge(floor, clips.holdout, clips.forget)  # forget's loss is 1 below the level, with any floor
        base = judged.first
        gap = judged.holdout_nll - sum(base.forget.values()) / len(base.forget)
        track = next(iter(base.forget))
        near = base.tolerance[track]
        assert near == pytest.approx(0.05 * max(gap, 0.1 * judged.holdout_nll))
        for short, reached in ((0.9, True), (1.1, False)):
            look = replace(base, forget={track: judged.holdout_nll - short * near})
            assert look.reached(track) is reached


def test_caches_are_keyed_by_settings(tmp_path, clips):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 6000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, LatentBackend.sample_rate, subtype="FLOAT")
    track = Track("a", tmp_path / "a.wav", "slow", file_sha256(tmp_path / "a.wav"))

    class Scaled(LatentBackend):
        settings = "scale 2"

        def encode(self, waveforms):
            return 2 * super().encode(waveforms)

    def heard(backend):
        return TrackEncoder(backend, TensorCache(tmp_path / "cache")).encode([track])[0].clips[0].codes

    torch.testing.assert_close(heard(Scaled()), 2 * heard(LatentBackend()))
    for backend in (LatentBackend(), Scaled()):
        cached_fisher(backend, clips.forget, tmp_path / "fishers")
    assert len(list((tmp_path / "fishers").iterdir())) == 2


def test_relearning_leaves_what_is_not_trained(clips):
    class Half(LatentBackend):
        def clone(self):
            twin = super().clone()
            cloned.append(twin)
            return twin

    cloned = []
    backend = Half()
    backend.module.bias.requires_grad_(False)
    models = {"unlearned": backend}
    evaluate(models, {"forget": clips.forget}, metrics=["relearn"], embedder=None)
    assert cloned
    for twin in cloned:
        assert not twin.module.bias.requires_grad
    assert torch.equal(cloned[0].module.bias, backend.module.bias)
    assert not torch.equal(cloned[0].module.weight, backend.module.weight)


@pytest.mark.parametrize("name", ["ga", "rl", "ft", "graddiff", "npo", "simnpo", "task-vector", "ssd", "ewc", "salun"])
def test_methods_without_logits_run(clips, name):
    backend = LatentBackend()
    before = backend.module.weight.clone()
    train = {"steps": 3} if "steps" in plugins.methods().resolve(name).Options.model_fields else {}
    Engine(backend, clips).run(method(name, **train))
    assert torch.isfinite(backend.module.weight).all()
    assert name in ("ssd", "ga", "simnpo") or not torch.equal(backend.module.weight, before)


def test_random_labels_are_random_targets(clips):
    batch = Batch.of(clips.forget)
    chosen, backend = method("rl"), LatentBackend()
    session = Session(backend, clips.forget, clips.retain, (), None, torch.Generator(), 0, None, lambda _: None)
    chosen.prepare(session)
    step = type("Step", (), {"backend": backend, "generator": torch.Generator().manual_seed(5)})
    expected = backend.random_losses(batch, torch.Generator().manual_seed(5))
    assert torch.equal(chosen.forget_loss(step, batch), expected)
    with pytest.raises(UsageError, match="labels=marginal counts codes"):
        method("rl", labels="marginal").prepare(session)


@pytest.mark.parametrize("name", ["encore", "wga", "ga-kl"])
def test_methods_of_token_models_say_so(name):
    assert "logits" in plugins.methods().get(name).spec.needs


def test_a_fisher_is_taken_on_the_clips_own_target(clips):
    found = []
    backend = LatentBackend()
    session = Session(
        backend, clips.forget, (), (), None, torch.Generator(), 0, None, lambda _: None,
        lambda chosen, labels, size: found.append(labels) or {},
    )  # fmt: skip
    session.fisher(clips.forget)
    assert found == ["empirical"]


def test_latents_are_heard_and_kept_as_they_are(tmp_path):
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, 6000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, LatentBackend.sample_rate, subtype="FLOAT")
    track = Track("a", tmp_path / "a.wav", "slow", file_sha256(tmp_path / "a.wav"))
    for _ in range(2):  # the second time from the cache
        (heard,) = TrackEncoder(LatentBackend(), TensorCache(tmp_path / "cache")).encode([track])
        expected = LatentBackend().encode(torch.from_numpy(samples)[None, None])[0]
        codes = torch.cat([clip.codes for clip in heard.clips], -1)
        assert codes.dtype == torch.float32
        torch.testing.assert_close(codes, expected)


def test_what_is_played_is_kept_unless_it_is_a_forget_track():
    backend = LatentBackend()
    played = generate_retain(backend, [], seed=0)
    assert len(played) == len(captions())
    near = type(played[1])("known", "x", played[1].codes + 0.1 * noise(played[1], 1))
    assert len(generate_retain(backend, [near], seed=0)) == len(played) - 1


def test_figures_are_in_the_models_own_loss(clips):
    base, unlearned = LatentBackend(), LatentBackend(seed=1)
    rows = evaluate(
        {"base": base, "unlearned": unlearned},
        {"forget": clips.forget, "retain": clips.retain, "holdout": clips.holdout},
    )
    found = {(row.metric, row.model, row.set): row for row in rows}
    nll = found["nll", "unlearned", "forget"]
    assert nll.unit == "loss"
    assert nll.value == pytest.approx(float(unlearned.losses(Batch.of(clips.forget)).mean().detach()))
    assert found["relearn", "unlearned", "forget"].unit == "loss"
    assert found["membership_auc", "base", "forget"].value is not None
    for name in ("verbatim", "kl_gold", "extraction_strength"):
        (row,) = [row for row in rows if row.metric == name]
        assert row.value is None
        assert row.why in ("not measured: the model has no tokens", "not measured: no gold model was given (--gold)")
