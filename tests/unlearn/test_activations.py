"""Checkpointed activations: the same losses and gradients, whatever happens between the two runs of a block."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.latent_model import LatentBackend
from tests.tiny_model import write_tiny_musicgen
from tests.unlearn.test_engine import Plain, options, run
from torch import Tensor

from encore.api import Batch
from encore.backends.musicgen import MusicgenBackend
from encore.curvature import capture
from encore.errors import UsageError
from encore.methods.relearning_attack import with_weights
from encore.plugins import methods
from encore.unlearn import activations
from encore.unlearn.activations import checkpointed, uses_checkpoints
from encore.unlearn.engine import Clips


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_musicgen(tmp_path_factory.mktemp("dropout"), dropout=0.3)


def double(model: Path, clips: Clips) -> MusicgenBackend:
    """In float64, its text states too."""
    backend = MusicgenBackend.load(str(model), offline=True)
    backend.encode_text([clip.caption for clip in (*clips.forget, *clips.retain, *clips.holdout)])
    backend.module.double()
    backend.text_embeddings = {text: states.double() for text, states in backend.text_embeddings.items()}
    return backend


def gradients(backend: MusicgenBackend, clips: Clips, around: Callable[[], Any] | None = None) -> dict[str, Tensor]:
    """The losses, and the gradients of their sum, with dropout."""
    backend.module.train()
    backend.module.zero_grad()
    torch.manual_seed(3)
    losses = backend.losses(Batch.of(clips.forget))
    if around is not None:
        around()
    losses.sum().backward()
    drawn = torch.rand(1)
    return {name: weight.grad.clone() for name, weight in backend.module.named_parameters()} | {  # type: ignore[union-attr]
        "losses": losses.detach(), "drawn": drawn,
    }  # fmt: skip


def need_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14, msg=name)


def test_losses_gradients_and_random_state_are_the_same_with_dropout(model: Path, clips: Clips) -> None:
    backend = double(model, clips)
    expected, classes = gradients(backend, clips), [type(block) for block in backend.blocks]
    runs: list[int] = []
    backend.blocks[0].fc1.register_forward_hook(lambda *_: runs.append(1))  # type: ignore[union-attr]
    with checkpointed(backend.blocks):
        need_equal(gradients(backend, clips), expected)
        assert len(runs) == 2  # forward, and again in backward
        with torch.no_grad():
            backend.losses(Batch.of(clips.forget))
        assert len(runs) == 3
        twin = backend.clone()
    assert [type(block) for block in backend.blocks] == classes
    need_equal(gradients(twin, clips), expected)
    assert twin.blocks[0].fc1 is not backend.blocks[0].fc1


def test_a_mode_that_changes_before_backward_changes_nothing(model: Path, clips: Clips) -> None:
    backend = double(model, clips)
    expected = gradients(backend, clips)
    with checkpointed(backend.blocks):
        need_equal(gradients(backend, clips, lambda: backend.module.eval()), expected)


def test_an_attribute_that_changes_before_backward_changes_nothing(model: Path, clips: Clips) -> None:
    """The audiocraft plugin sets a mask on its cross attentions for as long as the forward pass runs."""
    backend = double(model, clips)
    block: Any = backend.blocks[1]

    def dropout(share: float) -> Callable[[], None]:
        return lambda: setattr(block, "dropout", share)

    dropout(0.6)()
    expected = gradients(backend, clips)
    with checkpointed(backend.blocks):
        need_equal(gradients(backend, clips, dropout(0.3)), expected)
    assert block.dropout == 0.3
    assert not torch.allclose(gradients(backend, clips)["losses"], expected["losses"])


def test_weights_that_were_moved_are_those_of_the_second_run(model: Path, clips: Clips) -> None:
    backend = double(model, clips)
    generator = torch.Generator().manual_seed(0)
    there = {
        name: weight.detach() + 0.1 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        for name, weight in backend.module.named_parameters()
    }

    def moved_gradients() -> dict[str, Tensor]:
        backend.module.zero_grad()
        with with_weights(backend.module, there):
            losses = backend.losses(Batch.of(clips.forget))
        losses.sum().backward()
        return {n: w.grad.clone() for n, w in backend.module.named_parameters()} | {"losses": losses.detach()}  # type: ignore[union-attr]

    expected = moved_gradients()
    with checkpointed(backend.blocks):
        need_equal(moved_gradients(), expected)


def test_captured_norms_fishers_and_sums_are_the_same(model: Path, clips: Clips) -> None:
    backend = double(model, clips)
    backend.module.eval()

    def captured() -> dict[str, Tensor]:
        with capture(backend.module, norms=True, fisher=True, keep=True) as factors:
            backend.losses(Batch.of(clips.forget)).sum().backward()
        return {"norms": factors.sq_norms, **factors.fisher, **{
            f"sum {name}": value for name, value in factors.weighted_sum(torch.arange(5.0).double()).items()
        }}  # fmt: skip

    expected = captured()
    with checkpointed(backend.blocks):
        need_equal(captured(), expected)


@pytest.mark.parametrize("clip", [None, 0.05])
def test_a_run_with_checkpoints_is_the_same_run(model: Path, clips: Clips, clip: float | None) -> None:
    results = []
    for checkpoint in (False, True):
        backend = MusicgenBackend.load(str(model), offline=True)
        settings = options(steps=3, dropout=True, per_track_clip=clip)
        engine = run(backend, clips, Plain(settings), checkpoint_activations=checkpoint)
        assert type(backend.blocks[0]).__mro__[1] is not activations._Checkpointed
        results.append(engine.backend.module.state_dict())
    need = results[0]
    for name, weight in results[1].items():
        torch.testing.assert_close(weight, need[name], rtol=1e-5, atol=1e-6)


def test_the_default_method_is_the_same_under_attack(model: Path, clips: Clips) -> None:
    cls = methods().resolve("encore")
    settings = cls.Options(steps=2, stop="never", attack_share=1.0, eval_every=2)
    results = []
    for checkpoint in (False, True):
        backend = MusicgenBackend.load(str(model), offline=True)
        run(backend, clips, cls(settings), checkpoint_activations=checkpoint)
        results.append(backend.module.state_dict())
    for name, weight in results[1].items():
        torch.testing.assert_close(weight, results[0][name], rtol=1e-4, atol=1e-5)


def test_auto_is_on_where_weights_leave_little_memory(
    backend: MusicgenBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def auto(memory: int | None) -> bool:
        monkeypatch.setattr(activations, "_device_bytes", lambda device: memory)
        return uses_checkpoints("auto", backend, 16)

    assert not auto(None)
    assert not auto(32)
    assert auto(31)
    monkeypatch.undo()
    assert activations._device_bytes(torch.device("meta")) is None
    assert (activations._device_bytes(torch.device("cpu")) or 0) > 2**28


def test_a_backend_without_blocks_says_so() -> None:
    backend = LatentBackend()
    assert not uses_checkpoints("off", backend, 1)
    try:
        len(backend.blocks)
    except UsageError:
        with pytest.raises(UsageError, match="can't be checkpointed"):
            uses_checkpoints("on", backend, 1)
