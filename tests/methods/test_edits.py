"""The methods that edit weights: task-vector, retrain and undo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_model import CAPTIONS, CODES, write_tiny_musicgen

from encore.api import Batch, Clip
from encore.backends.musicgen import MusicgenBackend
from encore.builtins import encore_register_methods
from encore.errors import UsageError
from encore.hashing import module_sha256
from encore.methods.retrain import Retrain
from encore.methods.task_vector import TaskVector
from encore.methods.undo import Undo, unlearning_method
from encore.plugins import methods
from encore.unlearn.engine import Clips, Engine

SPECS = {spec.name: spec for spec in encore_register_methods()}
TaskVector.spec, Retrain.spec = SPECS["task-vector"], SPECS["retrain"]
Undo.spec = SPECS["undo"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_musicgen(tmp_path_factory.mktemp("tiny"), dropout=0.1)


@pytest.fixture
def clips() -> Clips:
    generator = torch.Generator().manual_seed(0)
    made = [Clip(f"t{i}", CAPTIONS[i % 3], torch.randint(CODES, (2, 15), generator=generator)) for i in range(8)]
    return Clips(made[:2], made[2:6], made[6:])


def test_task_vector_goes_the_other_way_by_alpha(folder: Path, clips: Clips) -> None:
    base = MusicgenBackend.load(str(folder), offline=True)
    results = {}
    for alpha in (0.5, 1.0):
        model = base.clone()
        Engine(model, clips).run(TaskVector(TaskVector.Options(alpha=alpha, steps=6, lr=1e-3)))
        results[alpha] = model
    before = base.losses(Batch.of(clips.forget)).mean().item()
    assert results[1.0].losses(Batch.of(clips.forget)).mean().item() > before
    for start, half, whole in zip(
        *(model.module.parameters() for model in (base, results[0.5], results[1.0])), strict=True
    ):
        torch.testing.assert_close(whole - start, 2 * (half - start), rtol=1e-3, atol=1e-6)


def test_retrain_forgets_the_base_and_is_seeded(folder: Path, clips: Clips) -> None:
    base = MusicgenBackend.load(str(folder), offline=True)
    options = Retrain.Options(steps=4, batch_size=4, warmup=1, eval_every=2)
    first, again, other, damaged = base.clone(), base.clone(), base.clone(), base.clone()
    with torch.no_grad():
        for weight in damaged.module.parameters():
            weight.mul_(2)  # what retrain starts from must not matter
    Engine(first, clips, seed=1).run(Retrain(options))
    Engine(again, clips, seed=1).run(Retrain(options))
    Engine(damaged, clips, seed=1).run(Retrain(options))
    Engine(other, clips, seed=2).run(Retrain(options))
    assert module_sha256(first.module) == module_sha256(again.module) != module_sha256(other.module)
    assert module_sha256(first.module) == module_sha256(damaged.module)


@pytest.mark.parametrize("name", ["npo", "encore"])
def test_undo_distils_the_unlearned_model_into_its_noised_copy(
    folder: Path, clips: Clips, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = MusicgenBackend.load(str(folder), offline=True)
    chosen = methods().resolve(name)
    short = chosen(chosen.Options(steps=3, lr=0.01, eval_every=3, select="last", decay_steps=1))
    unlearned, noise, undone = base.clone(), base.clone(), base.clone()
    Engine(unlearned, clips, seed=4).run(short)
    noise.reinitialise(4)

    monkeypatch.setattr("encore.methods.undo.unlearning_method", lambda *_: chosen(short.options))
    settings = {"unlearn": name, "alpha": 0.4, "beta": 0.5, "steps": 1, "lr": 1e-9, "warmup": 0, "eval_every": 1}
    lines: list[dict[str, Any]] = []
    Engine(undone, clips, seed=4, record=lines.append).run(Undo(Undo.Options(**settings)))
    for kept, new, ours in zip(*(model.module.parameters() for model in (unlearned, noise, undone)), strict=True):
        torch.testing.assert_close(ours, 0.6 * kept + 0.4 * 0.5 * new, rtol=0, atol=1e-6)
    before = base.clone()
    with torch.no_grad():
        for kept, new, weight in zip(*(model.module.parameters() for model in (unlearned, noise, before)), strict=True):
            weight.copy_(0.6 * kept + 0.2 * new)
        expected = []
        for clip in clips.forget:
            batch = Batch.of([clip])
            target, logits = (model.logits(batch).log_softmax(-1) for model in (unlearned, before))
            each = (target.exp() * (target - logits)).sum(-1)[unlearned.token_mask(batch)]
            expected.append(each.mean().item())
    first = next(line for line in lines if line["phase"] == 2 and "forget_loss" in line)
    assert first["forget_loss"] == pytest.approx(sum(expected) / len(expected), rel=1e-3)
    assert "retain_loss" in first


def test_undo_names_what_can_not_run_inside_it() -> None:
    assert unlearning_method("graddiff").spec.name == "graddiff"
    for name, words in (("ssd", "it needs fisher"), ("task-vector", "it edits weights directly")):
        with pytest.raises(UsageError, match=f"undo can't unlearn by '{name}': {words}"):
            unlearning_method(name)
