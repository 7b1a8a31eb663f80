"""A checkpoint of the loop, written and read; resumed runs are in test_engine.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from encore.api import MethodSpec
from encore.backends.musicgen import MusicgenBackend
from encore.errors import InputError
from encore.methods.ft import FineTune
from encore.store.run_folder import Checkpoints
from encore.unlearn.loop_checkpoint import LoopCheckpoints, LoopState
from encore.unlearn.lr_schedule import Decay
from encore.unlearn.monitor import Snapshot
from encore.unlearn.weight_average import WeightAverage, copied_weights


class Tuned(FineTune):
    spec = MethodSpec("tuned", "", "")


def checkpoints(backend: MusicgenBackend, folder: Path | None, phase: int = 1) -> LoopCheckpoints:
    optimizer = torch.optim.AdamW(backend.module.parameters(), lr=0.1)
    folders = Checkpoints(folder, "run") if folder else None
    average, generator = WeightAverage(backend.module), torch.Generator().manual_seed(phase)
    return LoopCheckpoints(folders, phase, backend, Tuned(Tuned.Options()), optimizer, average, generator)


def step(made: LoopCheckpoints) -> None:
    for weight in made.backend.module.parameters():
        weight.grad = torch.full_like(weight, 0.5)
    made.optimizer.step()
    made.average.update()
    torch.rand(3, generator=made.generator)


def test_what_is_read_is_what_was_written(backend: MusicgenBackend, tmp_path: Path) -> None:
    other, best = backend.clone(), copied_weights(backend.module)
    made = checkpoints(backend, tmp_path / "all")
    step(made)
    look = Snapshot({"a": 1.5}, score=2.0)
    state = LoopState(7, [1], [2, 3], [0], look, Decay(4, 5), micro_batch_size=2, seconds=1.5, tokens=9)
    assert made.save(state, best)
    read, found = checkpoints(other, tmp_path / "all"), LoopState()
    again = read.load(found)
    assert again is not None
    assert found == state
    torch.testing.assert_close(again, best, rtol=0, atol=0)
    for one in (made, read):
        step(one)  # with the same moments, mean and random numbers
    torch.testing.assert_close(dict(other.module.state_dict()), dict(backend.module.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(read.average.weights, made.average.weights, rtol=0, atol=0)
    assert torch.equal(read.generator.get_state(), made.generator.get_state())


def test_weights_in_another_order_in_memory_train_and_are_saved_the_same(
    backend: MusicgenBackend, tmp_path: Path
) -> None:
    other, models = backend.clone(), list[dict[str, torch.Tensor]]()
    for module in other.module.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()
    for model in (backend, other):
        made = checkpoints(model, tmp_path / str(len(models)))
        made.optimizer = made.method.optimizer(list(model.module.parameters()), 0.1)
        made.optimizer.zero_grad()
        for _ in range(3):
            for place, weight in enumerate(model.module.parameters()):  # gradients in the usual order
                weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(place))
            made.optimizer.step()
        assert made.save(LoopState(), copied_weights(model.module))
        models.append(dict(model.module.state_dict()))
    torch.testing.assert_close(*models, rtol=1e-5, atol=1e-6)


def test_a_gpu_has_a_random_state_of_its_own(
    backend: MusicgenBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = {"cuda:1": torch.tensor([3, 4], dtype=torch.uint8)}  # of a GPU, as torch gives it
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[str(device)])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({str(device): state}))
    made = checkpoints(backend, tmp_path)
    backend.device = torch.device("cuda:1")
    saved = made._random_states()
    states["cuda:1"] = torch.zeros(2, dtype=torch.uint8)
    elsewhere = dict(saved)
    made._set_random_states(saved)
    assert states["cuda:1"].tolist() == [3, 4]
    assert saved == {}
    states.clear()
    backend.device = torch.device("cpu")
    made._set_random_states(elsewhere)  # of a run that goes on without the GPU
    assert elsewhere == states == {}


def test_nothing_is_read_where_nothing_was_written(backend: MusicgenBackend, tmp_path: Path) -> None:
    assert not checkpoints(backend, None).save(LoopState(), {})
    assert checkpoints(backend, None).load(LoopState()) is None
    assert checkpoints(backend, tmp_path).load(LoopState()) is None
    assert checkpoints(backend, tmp_path).save(LoopState(), copied_weights(backend.module))
    assert checkpoints(backend, tmp_path, phase=2).load(LoopState()) is None  # it is of the loop before


def test_another_state_is_refused(backend: MusicgenBackend, tmp_path: Path) -> None:
    checkpoints(backend, tmp_path).save(LoopState(), {})
    (folder,) = tmp_path.glob("0*")
    state = json.loads((folder / "state.json").read_text())
    del state["decay"]
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "manifest.json").write_text(json.dumps({"identity": "run", "sha256": {}}))
    with pytest.raises(InputError):
        checkpoints(backend, tmp_path).load(LoopState())
