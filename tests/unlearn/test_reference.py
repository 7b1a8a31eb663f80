"""The three references: each gives the base's figures, and the method says which it needs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.latent_model import LatentBackend, latent_clips
from tests.unlearn.test_engine import Plain, options
from torch import Tensor

from encore.api import Batch, MethodSpec, Step
from encore.backends.musicgen import MusicgenBackend
from encore.errors import PluginError
from encore.hashing import module_sha256
from encore.plugins import methods
from encore.unlearn.engine import Clips, Engine
from encore.unlearn.reference import CachedNLL, FrozenReference


def npo(**given: Any) -> Any:
    cls = methods().resolve("npo")
    return cls(cls.Options(**{"steps": 4, "stop": "never", "lr": 0.01, "eval_every": 2} | given))


def test_npo_keeps_no_copy_and_ends_in_the_weights_of_one_that_does(
    backend: MusicgenBackend, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = backend.clone()
    keeps = npo()
    keeps.spec = MethodSpec("npo", "", "", needs=frozenset({"retain", "reference"}))
    engine = Engine(twin, clips)
    engine.run(keeps)
    assert engine.outcome.reference == "frozen copy"
    monkeypatch.setattr(MusicgenBackend, "clone", lambda self: pytest.fail("a second model"))
    cached = Engine(backend, clips)
    cached.run(npo())
    assert cached.outcome.reference == "cached NLL"
    assert module_sha256(backend.module) == module_sha256(twin.module)  # to the last bit


def test_cached_nll_is_that_of_the_base(backend: MusicgenBackend, clips: Clips) -> None:
    frozen, cached = FrozenReference(backend), CachedNLL(backend, clips.forget, 2)
    with torch.no_grad():
        for weight in backend.module.parameters():
            weight.add_(1)
    batch = Batch.of([clips.forget[3], clips.forget[0]], noise_index=7)
    torch.testing.assert_close(cached.nll(batch), frozen.nll(batch))
    with pytest.raises(PluginError, match=clips.retain[0].track):
        cached.nll(Batch.of(clips.retain[:1]))
    for name, arguments in (("logits", ()), ("hidden", (0.5,))):
        with pytest.raises(PluginError, match=f"reference.{name}"):
            getattr(cached, name)(batch, *arguments)


def test_without_tokens_each_step_has_noise_of_its_own_so_a_copy_is_kept() -> None:
    engine = Engine(LatentBackend(), Clips(latent_clips(3), latent_clips(5, first=3), latent_clips(4, first=8)))
    engine.run(npo())
    assert engine.outcome.reference == "frozen copy"


def test_a_method_that_compares_with_nothing_has_no_reference(backend: MusicgenBackend, clips: Clips) -> None:
    engine = Engine(backend, clips)
    engine.run(Plain(options(steps=1)))
    assert engine.outcome.reference is None


def test_weights_without_a_gradient_are_refused_by_name(backend: MusicgenBackend, clips: Clips) -> None:
    backend.module.register_parameter("forgotten", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(PluginError, match=r"no gradient to forgotten, which is trained"):
        Engine(backend, clips).run(Plain(options()))

    class Excludes(Plain):
        def optimizer(self, parameters: Any, lr: float) -> torch.optim.Optimizer:
            return super().optimizer([weight for weight in parameters if weight.shape != (3,)], lr)

    Engine(backend, clips).run(Excludes(options(steps=1)))

    class Masks(Plain):
        def prepare(self, session: Any) -> None:
            session.masks = {"forgotten": torch.zeros(3, dtype=torch.bool)}

    Engine(backend, clips).run(Masks(options(steps=1)))

    class Alternates(Plain):
        def phase(self, index: int) -> Any:
            return "forget" if index % 2 else "retain"

    Engine(backend, clips).run(Alternates(options(steps=2)))


def test_a_step_that_leaves_out_a_part_is_named(backend: MusicgenBackend, clips: Clips) -> None:
    class Detached(Plain):
        spec = MethodSpec("detached", "", "", needs=frozenset({"logits"}))

        def forget_loss(self, step: Step, batch: Batch) -> Tensor:
            head = step.backend.module.decoder.lm_heads[0].weight  # type: ignore[union-attr, index]
            return step.backend.losses(batch).detach() + head.square().mean()

    with pytest.raises(PluginError, match=r"gives? no gradient to decoder\.\S+ and \d+ more"):
        Engine(backend, clips).run(Detached(options()))
