"""The state of the training loop, and its checkpoints: written at a step, read when a run is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from encore import distributed
from encore.api import Backend, LossMethod
from encore.errors import InputError, PluginError
from encore.store import schemas
from encore.store.run_folder import Checkpoints, read_json
from encore.unlearn import bf16_weights
from encore.unlearn.lr_schedule import Decay
from encore.unlearn.monitor import Snapshot
from encore.unlearn.sharding import gathered, split_like
from encore.unlearn.weight_average import WeightAverage, copied_weights, load_weights

MODULE = "module.safetensors"
PHASE = 1_000_000  # checkpoints of the second loop of a run are numbered from twice this on


@dataclass
class LoopState:
    """The state of the loop that a checkpoint saves beside tensors.

    `averaged`: number of steps in the weight average; `retain_weight`: see `encore.unlearn.step_rules`; `harm`: of the
    last snapshot; `seconds`, `tokens`: of the whole run, over all processes.
    """

    step: int = 0
    forget_queue: list[int] = field(default_factory=list)
    retain_queue: list[int] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    best: Snapshot | None = None
    decay: Decay = field(default_factory=Decay)
    averaged: int = 0
    micro_batch_size: int = 0
    skipped_steps: int = 0
    retain_weight: float = 1.0
    harm: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    tokens: int = 0


@dataclass
class LoopCheckpoints:
    """Writes and reads the checkpoints of one loop.

    Args:
        folders: where they are; None saves none, and finds none.
        phase: number of the loop in the run, from 1.
        backend: its trainable weights are saved.
        method: its `state_dict` is saved.
        optimizer: its state is saved.
        average: of the weights; its names are those that are saved.
        generator: of the run's random numbers.
    """

    folders: Checkpoints | None
    phase: int
    backend: Backend
    method: LossMethod
    optimizer: torch.optim.Optimizer
    average: WeightAverage
    generator: torch.Generator

    def save(self, state: LoopState, best: Mapping[str, Tensor]) -> bool:
        """Write a checkpoint of this moment, where there is a folder for it.

        Args:
            state: of the loop.
            best: the best weights so far.
        """
        if self.folders is None:
            return False
        state.averaged = self.average.steps
        slots = _flat(self.optimizer.state_dict()["state"])
        moments = gathered({key: value.contiguous() for key, value in slots.items() if isinstance(value, Tensor)})
        plain = {key: value for key, value in slots.items() if not isinstance(value, Tensor)}

        weights = copied_weights(self.backend.module, self.average.names)
        weights, best, mean = map(gathered, (weights, best, self.average.weights))
        if distributed.rank() > 0:
            return False

        def fill(folder: Path) -> None:
            save_file(weights, folder / MODULE)
            save_file(best, folder / "best.safetensors")
            if self.average.steps:
                save_file(mean, folder / "mean.safetensors")
            save_file(moments | self._random_states(), folder / "optimizer.safetensors")
            save_file(_tensors(self.method), folder / "method.safetensors")
            saved = asdict(state) | {"phase": self.phase, "optimizer": plain}
            (folder / "state.json").write_text(json.dumps(saved))

        self.folders.save(self.phase * PHASE + state.step, fill)
        return True

    def load(self, state: LoopState) -> dict[str, Tensor] | None:
        """Load the newest checkpoint of this loop.

        Args:
            state: receives the saved one.

        Returns:
            The best weights so far; None without a checkpoint.

        Raises:
            InputError: the checkpoint is of another run.
        """
        folder = self.folders.latest() if self.folders and distributed.rank() == 0 else None
        folder = distributed.first(folder)
        if folder is None:
            return None
        saved = read_json(folder / "state.json", schemas.State)
        if saved.pop("phase") != self.phase:
            return None
        try:
            return self._restore(folder, saved, state)
        except (SafetensorError, OSError, LookupError, RuntimeError, TypeError, ValueError) as error:
            line = " ".join(str(error).split())
            raise InputError(
                f"the checkpoint {folder} is not of this run: {line}", f"remove {folder.parent}, and resume again"
            ) from error

    def _restore(self, folder: Path, saved: dict[str, Any], state: LoopState) -> dict[str, Tensor]:
        plain, device = saved.pop("optimizer", {}), str(self.backend.device)
        vars(state).update(saved)
        state.best = Snapshot(**saved["best"]) if saved["best"] else None
        state.decay = Decay(**saved["decay"])
        like = self.backend.module.state_dict()

        def read(name: str) -> dict[str, Tensor]:
            return {key: split_like(tensor, like[key]) for key, tensor in load_file(folder / name).items()}

        load_weights(self.backend.module, read(MODULE), self.average.names)
        self.average.steps = state.averaged
        if state.averaged:
            self.average.weights = read("mean.safetensors")
        moments = load_file(folder / "optimizer.safetensors")
        self._set_random_states(moments)
        blank = self.optimizer.state_dict()
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        slots: dict[int, dict[str, Any]] = {}
        for key, value in (moments | plain).items():
            index, *parents, slot = key.split(".")
            if isinstance(value, Tensor) and value.shape == weights[int(index)].shape:
                value = split_like(value, weights[int(index)])
            place = slots.setdefault(int(index), {})
            for parent in parents:
                place = place.setdefault(parent, {})
            place[slot] = value
        with bf16_weights.float32(weights):  # torch casts moments to the type of their weights
            self.optimizer.load_state_dict(blank | {"state": slots})
        if (folder / "method.safetensors").exists():
            self.method.load_state_dict(load_file(folder / "method.safetensors", device=device))
        return read("best.safetensors")

    def _random_states(self) -> dict[str, Tensor]:
        """States of the run's generator and of those that dropout draws from."""
        states = {"generator": self.generator.get_state(), "dropout": torch.get_rng_state()}
        if self.backend.device.type == "cuda":
            states["dropout_cuda"] = torch.cuda.get_rng_state(self.backend.device)
        return states

    def _set_random_states(self, states: dict[str, Tensor]) -> None:
        """Restore what `_random_states` saved, and take it out of `states`.

        A checkpoint of a CPU has no state for a GPU, whose dropout then continues from the run's seed.
        """
        self.generator.set_state(states.pop("generator"))
        torch.set_rng_state(states.pop("dropout"))
        cuda = states.pop("dropout_cuda", None)
        if cuda is not None and self.backend.device.type == "cuda":
            torch.cuda.set_rng_state(cuda, self.backend.device)


def _flat(values: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables (some optimisers have them) as one, with the keys joined by dots."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        result |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return result


def _tensors(method: LossMethod) -> dict[str, Tensor]:
    state = method.state_dict()
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise PluginError(f"method {method.spec.name!r}: state_dict must return tensors by name, and nothing nested")
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
